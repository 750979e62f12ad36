"""`DocumentSummarizer`: its ways over chats, completions and other models, its runs, its limits and its errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda

from langchain_specdec import ChatSpeculative, DocumentSummarizer, LocalBackend, SpeculativeLLM
from langchain_specdec.chat.answer_parsers import UnreadableAnswerError
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.room import larger_max_length
from langchain_specdec.documents.summarizer import SummaryProgress
from langchain_specdec.errors import (
    AuthenticationError,
    BackendUnavailableError,
    GenerationError,
    InvalidParameterError,
    PromptTooLongError,
    SpecDecError,
)
from tests.support.backends import (
    Counter,
    ScriptedBackend,
    is_idle,
    lasting,
    make_backend,
    make_chat_backend,
    scripted,
    scripted_backend,
)

pytestmark = pytest.mark.transformers


PARAGRAPH = "Once {number} upon a time there was a text of some length, and it went on. "
# 6.6 thousand tokens of a byte each.
LONG = "\n\n".join((PARAGRAPH * 8).format(number=number) for number in range(12))


def brief(prompt: str) -> str:
    """An answer that tells which paragraphs were in the prompt."""
    found = re.findall(r"Once (\d+)|saw ([\d ]+)", prompt)
    return "saw " + " ".join(dict.fromkeys(" ".join(map(" ".join, found)).split()))


def summarizer(*answers: Any, max_length: int = 4096, max_new_tokens: int = 64, **options: Any) -> DocumentSummarizer:
    model = scripted(*(answers or (brief,)), max_new_tokens=max_new_tokens)
    scripted_backend(model).max_length = max_length
    return DocumentSummarizer(model, **{"instruction": "Be brief.", **options})


def backend_of(made: DocumentSummarizer) -> ScriptedBackend:
    return scripted_backend(made.model)


class Runs(BaseCallbackHandler):
    """The names of chains, their parents, and what is noted of them."""

    def __init__(self) -> None:
        self.names: dict[Any, str] = {}
        self.parents: dict[str, str | None] = {}
        self.metadata: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, list[str]] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id, parent_run_id=None, **kwargs: Any) -> None:
        name = kwargs.get("name") or ""
        self.names[run_id] = name
        self.parents[name] = self.names.get(parent_run_id)
        self.metadata[name] = kwargs.get("metadata") or {}
        self.tags[name] = kwargs.get("tags") or []


class TestWays:
    def test_a_text_that_has_room_is_one_prompt_with_the_document_first(self):
        made = summarizer("Short.")
        assert made.invoke("Some text. {not a variable}") == "Short."
        (prompt,) = backend_of(made).prompts
        assert "<|im_start|>user\nSome text. {not a variable}\n\nBe brief.<|im_end|>" in prompt

    def test_one_that_has_none_is_read_in_pieces_and_the_summaries_are_summarised(self):
        made = summarizer()
        assert made.invoke(LONG) == "saw " + " ".join(map(str, range(12)))
        *maps, last = backend_of(made).prompts
        assert len(maps) == 2
        bodies = {body for prompt in maps for body in re.findall(r"user\n(.*)\n\nBe brief\.", prompt, re.DOTALL)}
        assert any(first + second == LONG for first in bodies for second in bodies)
        assert "user\nsaw 0 1 2 3 4 5\n\nsaw 6 7 8 9 10 11\n\nBe brief." in last

    @pytest.mark.parametrize("is_async", [False, True])
    def test_that_is_repeated_while_the_summaries_are_too_long(self, is_async):
        seen: list[SummaryProgress] = []
        made = summarizer("x" * 60, max_length=300, on_progress=seen.append)
        result = asyncio.run(made.ainvoke(LONG)) if is_async else made.invoke(LONG)
        assert result == "x" * 60
        levels = {(p.stage, p.level): p.total for p in seen}
        assert next(iter(levels)) == ("map", 1)
        assert [stage for stage, _ in levels][1:] == ["reduce"] * (len(levels) - 1)
        assert list(levels.values())[-1] == 1
        assert list(levels.values()) == sorted(levels.values(), reverse=True)
        assert len(levels) >= 4
        assert all(len(r.prompt) + 64 <= 300 for r in backend_of(made).requests)

    def test_no_prompt_is_longer_than_the_model_has_room_for_to_the_token(self):
        made = summarizer("y", max_length=512)
        made.invoke(LONG)
        longest = max(len(r.prompt) for r in backend_of(made).requests)
        assert 0.75 * (512 - 64) < longest <= 512 - 64

    def test_map_reduce_of_a_short_text_is_one_call(self):
        made = summarizer("Short.", method="map_reduce")
        assert made.invoke("Some text.") == "Short."
        assert len(backend_of(made).requests) == 1

    @pytest.mark.parametrize("is_async", [False, True])
    def test_refine_rewrites_a_summary_with_each_piece(self, is_async):
        seen: list[SummaryProgress] = []
        made = summarizer(
            *(f"So far {i}." for i in range(9)),
            method="refine",
            max_length=2048,
            on_progress=seen.append,
            combine_instruction="Put both into one.",
        )
        result = asyncio.run(made.ainvoke(LONG)) if is_async else made.invoke(LONG)
        first, *others = backend_of(made).prompts
        assert result == f"So far {len(others)}."
        assert "Summary of" not in first
        assert "Be brief." in first
        for number, prompt in enumerate(others):
            assert f"\n\nSummary of the parts before it:\n\nSo far {number}.\n\nPut both into one." in prompt
        texts = [first.partition("user\n")[2].partition("\n\nBe")[0]]
        texts += [p.partition("Next part of the text:\n\n")[2].partition("\n\nSummary of")[0] for p in others]
        assert "".join("".join(texts).split()) == "".join(LONG.split())
        total = len(texts)
        assert [(p.done, p.total) for p in seen] == [(done, total) for done in range(total + 1)]

    def test_a_list_becomes_one_summary_and_is_cut_between_documents(self):
        texts = [LONG[:3000], LONG[3000:5000]]
        made = summarizer()
        made.invoke([Document(page_content=texts[0]), texts[1]])
        bodies = [p.partition("user\n")[2].partition("\n\nBe")[0].strip() for p in backend_of(made).prompts[:-1]]
        assert sorted(bodies) == sorted(text.strip() for text in texts)

        def loaded() -> Iterator[str | Document]:
            yield from (Document(page_content="One."), Document(page_content=" "), "Two.")

        made = summarizer("Short.")
        assert made.invoke(loaded()) == "Short."
        assert "user\nOne.\n\nTwo.\n\nBe brief." in backend_of(made).prompt

    def test_a_prompt_of_the_user(self):
        template = ChatPromptTemplate.from_messages([("system", "You are {who}."), ("human", "<{text}> {instruction}")])
        made = summarizer("Short.", prompt=template.partial(who="terse"))
        made.invoke("Some text.")
        assert "You are terse.<|im_end|>\n<|im_start|>user\n<Some text.> Be brief.<|im_end|>" in backend_of(made).prompt
        made = summarizer("Short.", prompt=ChatPromptTemplate.from_messages([("human", "Sum up: {text}")]))
        made.invoke("Some text.")
        assert "Sum up: Some text.<|im_end|>" in backend_of(made).prompt


class TestInChains:
    def test_a_stream_is_the_text_of_the_last_call_as_it_comes(self):
        made = summarizer()
        pieces = list(made.stream(LONG))
        assert len(pieces) > 5
        assert "".join(pieces) == summarizer().invoke(LONG)
        chain: Any = (
            RunnableLambda(lambda text: [Document(page_content=text)]) | summarizer() | (lambda text: text.upper())
        )
        assert chain.invoke(LONG).startswith("SAW 0 1 2")
        assert len(list((RunnableLambda(lambda text: text) | summarizer()).stream(LONG))) > 5

    async def test_so_it_does_in_an_event_loop(self):
        pieces = [piece async for piece in summarizer().astream(LONG)]
        assert len(pieces) > 5
        assert "".join(pieces) == await summarizer().ainvoke(LONG)

    def test_traces_show_each_call_under_the_summary(self):
        runs, counter = Runs(), Counter()
        summarizer().invoke(LONG, {"callbacks": [runs, counter], "tags": ["mine"], "metadata": {"who": "me"}})
        parents = {name: parent for name, parent in runs.parents.items() if (name and "of" in name) or name == "reduce"}
        assert parents == dict.fromkeys(["map 1 of 2", "map 2 of 2", "reduce"], "DocumentSummarizer")
        assert "mine" in runs.tags["map 1 of 2"]
        found = {key: value for key, value in runs.metadata["map 2 of 2"].items() if key.startswith(("summary", "who"))}
        assert found == {
            "who": "me", "summary_stage": "map", "summary_level": 1, "summary_piece": 2, "summary_num_pieces": 2,
        }  # fmt: skip
        assert len(counter.ends) == 3

    def test_parameters_of_a_call_and_bound_ones_count(self):
        made = summarizer("x" * 60, max_length=300)
        made.invoke("Some text.", max_tokens=7)
        assert backend_of(made).requests[-1].params.max_new_tokens == 7
        bound = DocumentSummarizer(made.model.bind(max_new_tokens=280), method="stuff")
        with pytest.raises(PromptTooLongError, match=r"beside the 280 of the summary"):
            bound.invoke("Some text.")

    def test_a_batch_has_a_summary_of_each(self):
        made = summarizer()
        assert made.batch(["Once 1 x", "Once 2 x"], {"max_concurrency": 1}) == ["saw 1", "saw 2"]
        found = made.batch(["Once 1 x", ""], return_exceptions=True)
        assert found[0] == "saw 1"
        assert isinstance(found[1], InvalidParameterError)
        assert asyncio.run(made.abatch(["Once 1 x", "Once 2 x"])) == ["saw 1", "saw 2"]
        assert made.batch([]) == []

    @pytest.mark.parametrize("limit", [0, -1, True, "2"])
    def test_a_limit_with_which_nothing_would_run_is_refused(self, limit):
        made: Any = summarizer()
        config = {"max_concurrency": limit}
        told = pytest.raises(InvalidParameterError, match=rf"^max_concurrency must be .*, got {limit!r}\.$")
        for method in made.invoke, made.batch, lambda *given: list(made.stream(*given)):
            with told:
                method([LONG], config)
        for amethod in made.ainvoke, made.abatch:
            with told:
                asyncio.run(asyncio.wait_for(amethod([LONG], config), 10))

    def test_any_model_that_counts_its_tokens(self):
        model = FakeListChatModel(responses=["a", "b", "c"], custom_get_token_ids=lambda text: list(text.encode()))
        with pytest.raises(InvalidParameterError, match=r"FakeListChatModel .* max_input_tokens="):
            DocumentSummarizer(model).invoke("Some text.")
        assert DocumentSummarizer(model, max_input_tokens=5000).invoke(LONG) in ("a", "b", "c")
        known = model.model_copy(update={"profile": {"max_input_tokens": 5000}, "i": 0})
        assert DocumentSummarizer(known).invoke(LONG) in ("a", "b", "c")

    def test_a_model_that_does_not_say_its_room_is_refused_before_it_counts(self):
        def count(text: str) -> list[int]:
            raise AssertionError(text)

        model = FakeListChatModel(responses=["a"], custom_get_token_ids=count)
        with pytest.raises(InvalidParameterError, match=r"FakeListChatModel .* max_input_tokens="):
            DocumentSummarizer(model).invoke(LONG)

    def test_a_configurable_model_has_the_room_of_the_one_that_is_chosen(self):
        model: Any = summarizer().model
        number = model.configurable_fields(max_new_tokens=ConfigurableField(id="n"))
        other = model.configurable_alternatives(ConfigurableField(id="which"), none=summarizer(max_length=90).model)
        for made, chosen in ((number, {"n": 4090}), (other, {"which": "none"})):
            for given in (DocumentSummarizer(made), DocumentSummarizer(made.with_config(configurable=chosen))):
                config: RunnableConfig = {"configurable": chosen} if given.model is made else {}
                with pytest.raises(PromptTooLongError, match="no room for pieces"):
                    given.invoke(LONG, config)
            assert DocumentSummarizer(made).invoke("Once 7") == "saw 7"


class TestErrors:
    def failing(self, error: Exception) -> DocumentSummarizer:
        def answer(prompt: str) -> str:
            if "Once 11" in prompt:
                raise error
            return brief(prompt)

        return summarizer(answer, max_length=2048)

    @pytest.mark.parametrize("is_async", [False, True])
    def test_an_error_names_the_piece_and_keeps_its_class(self, is_async):
        made = self.failing(AuthenticationError("The server wants a key."))
        with pytest.raises(AuthenticationError, match=r"^Piece 4 of 4 of the text: The server wants a key\.$"):
            asyncio.run(made.ainvoke(LONG)) if is_async else made.invoke(LONG)

    def test_so_does_one_that_is_not_of_this_package(self):
        with pytest.raises(GenerationError, match=r"^Piece 4 of 4 of the text: ZeroDivisionError: no$"):
            self.failing(ZeroDivisionError("no")).invoke(LONG)

    @pytest.mark.parametrize("given", [AIMessage("x"), [HumanMessage("x")], ChatPromptValue(messages=[])])
    def test_what_is_no_document_is_named(self, given):
        with pytest.raises(
            InvalidParameterError, match=r"got (AIMessage\. .*StrOutputParser|HumanMessage|ChatPromptVal)"
        ):
            summarizer().invoke(given)

    def test_fallbacks_are_for_the_summariser(self):
        small, large = (summarizer(max_length=length) for length in (100, 4096))
        with pytest.raises(InvalidParameterError, match=r"DocumentSummarizer\(model\)\.with_fallbacks\("):
            DocumentSummarizer(small.model.with_fallbacks([large.model]))
        assert small.with_fallbacks([large]).invoke("Once 7") == "saw 7"

    @pytest.mark.parametrize("helps", [False, True])
    def test_whether_a_retry_helps_is_still_told(self, helps):
        of_server = BackendUnavailableError("The server is away.")
        of_others: Any = RuntimeError("The server is away.")
        of_others.is_retryable = helps  # as an error of another package's model
        for error in of_server if helps else of_server.for_good(), of_others:
            with pytest.raises(SpecDecError, match=r"^Piece 4 of 4 .* is away\.$") as raised:
                self.failing(error).invoke(LONG)
            assert raised.value.is_retryable is helps

    def test_an_error_of_a_parser_is_told_once(self):
        with pytest.raises(UnreadableAnswerError) as raised:
            self.failing(UnreadableAnswerError("It is no JSON.", llm_output="{")).invoke(LONG)
        assert str(raised.value).count("visit: ") == 1
        assert raised.value.llm_output == "{"

    def test_one_of_the_only_prompt_is_as_it_was(self):
        with pytest.raises(ZeroDivisionError, match=r"^no$"):
            self.failing(ZeroDivisionError("no")).invoke("Once 11")

    def test_summaries_that_do_not_get_shorter_end_it(self):
        made = summarizer(lambda prompt: prompt[:250], max_length=600, max_new_tokens=250)
        with pytest.raises(GenerationError, match=r"summaries of \d+ pieces have \d+ tokens .* max_new_tokens, .* 250"):
            made.invoke(LONG)

    def test_so_do_summaries_without_a_word(self):
        with pytest.raises(GenerationError, match=r"wrote nothing about any of the \d+ pieces"):
            summarizer(" ").invoke(LONG)

    @pytest.mark.parametrize("method", ["map_reduce", "refine", "auto"])
    def test_no_room_for_pieces_is_told_before_anything_runs(self, method):
        made = summarizer(method=method, max_length=300, max_new_tokens=220)
        with pytest.raises(PromptTooLongError, match=r"no room for pieces.* 220 of the summary .*lower max_new_tokens"):
            made.invoke(LONG)
        assert backend_of(made).requests == []

    @pytest.mark.parametrize("method", ["map_reduce", "refine"])
    @pytest.mark.parametrize(
        ("options", "most", "advice"),
        [
            ({"max_length": 300, "max_new_tokens": 220}, 300, "lower max_new_tokens."),
            ({"max_length": 20}, 20, "take a model that has room for more."),
            ({"max_length": 20}, 4096, "load the model with max_length=N or more (up to 4096)."),
            (
                {"max_length": 20, "max_new_tokens": 256},
                256,
                "lower max_new_tokens and load the model with max_length=N",
            ),
            ({"instruction": "x" * 500, "max_length": 300}, 300, "shorten the instruction."),
            (
                {"instruction": "x" * 500, "max_length": 300, "max_new_tokens": 220},
                300,
                "lower max_new_tokens and shorten the instruction.",
            ),
        ],
    )
    def test_no_room_names_only_what_helps(self, method, options, most, advice, monkeypatch):
        made = summarizer(**{"instruction": "Be brief.", "method": method, **options})
        monkeypatch.setattr(backend_of(made), "more_room", lambda num_tokens: larger_max_length(num_tokens, most))
        with pytest.raises(PromptTooLongError) as raised:
            made.invoke(LONG)
        told = re.sub(r"max_length=\d+", "max_length=N", str(raised.value))
        assert told.split("To make room: ")[1].startswith(advice)

    def test_stuff_says_how_much_and_what_else(self):
        with pytest.raises(PromptTooLongError, match=r"have 6615 tokens, .* room for 4028 .* method='refine'"):
            summarizer(method="stuff").invoke(LONG)

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ("", "no text to summarise"),
            (" \n", "no text to summarise"),
            ([], "no text to summarise"),
            (7, "a string, a Document, or a list of them, got int"),
            (b"x", "got bytes"),
            ({"text": "x"}, "got dict"),
            (["x", None], "got NoneType"),
        ],
    )
    def test_what_is_no_document(self, document, message):
        made = summarizer()
        with pytest.raises(InvalidParameterError, match=message):
            made.invoke(document)
        with pytest.raises(InvalidParameterError, match=message):
            asyncio.run(made.ainvoke(document))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "mapreduce"}, r"'auto', 'stuff', 'map_reduce', 'refine', got 'mapreduce'"),
            ({"combine_instruction": ""}, "combine_instruction must be a text"),
            ({"max_input_tokens": 0}, "max_input_tokens must be a whole number from 1"),
            ({"max_input_tokens": True}, "max_input_tokens must be a whole number from 1"),
            ({"prompt": "{text}"}, "prompt must be a prompt template"),
            ({"prompt": ChatPromptTemplate.from_messages(["{document}"])}, "must have the variable text.*got document"),
        ],
    )
    def test_wrong_options(self, options, message):
        with pytest.raises(InvalidParameterError, match=message):
            summarizer(**options)

    def test_what_is_no_model(self):
        with pytest.raises(InvalidParameterError, match=r"model must be a LangChain model.*RunnableSequence"):
            DocumentSummarizer(ChatPromptTemplate.from_messages(["{text}"]) | scripted("x"))

    def test_what_on_progress_raises_ends_it(self):
        def stop(progress: SummaryProgress) -> None:
            if progress.done:
                raise KeyboardInterrupt

        made = summarizer(on_progress=stop)
        with pytest.raises(KeyboardInterrupt):
            made.invoke(LONG)


@pytest.fixture(scope="module")
def backend():
    with lasting(make_backend(num_slots=4, max_length=512)) as backend:
        yield backend


@pytest.fixture(scope="module")
def chat_backend():
    with lasting(make_chat_backend(num_slots=4, max_length=512)) as backend:
        yield backend


class TestInTheEngine:
    def test_all_pieces_are_decoded_in_one_batch(self, chat_backend: LocalBackend):
        """So forward passes of the model are far fewer than its tokens are, and than they are one after another."""
        model = ChatSpeculative(backend=chat_backend, max_new_tokens=32, ignore_eos=True)
        seen: list[SummaryProgress] = []
        made = DocumentSummarizer(model, instruction="Go.", on_progress=seen.append)
        counts = []
        configs: list[RunnableConfig] = [{}, {"max_concurrency": 1}]
        for config in configs:
            chat_backend.reset()
            before = chat_backend.engine.num_target_forwards
            made.invoke(LONG[:1100], config)
            counts.append(chat_backend.engine.num_target_forwards - before)
        assert seen[0].total >= 4
        assert counts[0] < 0.75 * counts[1]
        assert is_idle(chat_backend)

    def test_special_tokens_of_a_document_are_text_in_a_completion_too(self, backend: LocalBackend):
        llm = SpeculativeLLM(backend=backend, max_new_tokens=4)
        requests: list[CompletionRequest] = []

        class Keep(BaseCallbackHandler):
            def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
                requests.extend(CompletionRequest(prompt, None) for prompt in prompts)  # type: ignore[arg-type]

        DocumentSummarizer(llm, instruction="Sum up.").invoke("Ends <eos> here.", {"callbacks": [Keep()]})
        (request,) = requests
        assert str(request.prompt).endswith("here.\n\nSum up.\n\nSummary:\n")
        assert "<eos>" not in str(request.prompt)

    @pytest.mark.parametrize("method", ["auto", "refine"])
    def test_completions_have_room_to_the_token(self, backend: LocalBackend, method):
        llm = SpeculativeLLM(backend=backend, max_new_tokens=40, ignore_eos=True, temperature=0)
        made = DocumentSummarizer(llm, method=method, instruction="Sum up.")
        assert isinstance(made.invoke(LONG[:1200]), str)

    async def test_a_cancelled_summary_leaves_nothing_running(self, chat_backend: LocalBackend):
        model = ChatSpeculative(backend=chat_backend, max_new_tokens=128, ignore_eos=True)
        begun = asyncio.Event()
        made = DocumentSummarizer(model, instruction="Go.", on_progress=lambda _: begun.set())
        task = asyncio.ensure_future(made.ainvoke(LONG[:1600]))
        await begun.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(is_idle, chat_backend)

    def test_so_does_a_stream_that_is_left(self, chat_backend: LocalBackend):
        model = ChatSpeculative(backend=chat_backend, max_new_tokens=64, ignore_eos=True)
        pieces: Any = DocumentSummarizer(model, instruction="Go.").stream(LONG[:900])
        next(iter(pieces))
        pieces.close()
        assert is_idle(chat_backend)

"""Chats whose prompt the server writes: what is sent to each kind of server, and every shape that answers come in."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_specdec import ChatSpeculative, Grammar
from langchain_specdec.errors import GenerationError, InvalidParameterError, MalformedAnswerError
from tests.standin.chat_server import USAGE, ChatStandIn, call, delta
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.server

USAGE_PIECE = {"choices": [], "usage": USAGE}
SAID = [delta(role="assistant", content=""), delta(content="All "), delta(content="well."), delta("stop"), USAGE_PIECE]
PNG = b"\x89PNG of a ship"
IMAGE = {"type": "image", "base64": base64.b64encode(PNG).decode(), "mime_type": "image/png"}
KEY = "correct-horse-battery"
DATA_URL = f"data:image/png;base64,{IMAGE['base64']}"


@tool
def tide(place: str) -> str:
    """The tide of a place."""
    return f"High in {place}."


class Sea(BaseModel):
    """What is at sea."""

    ships: int


@contextmanager
def chat_with(place: dict[str, Any], *pieces: dict[str, Any], owner: str = "somebody", **options: Any) -> Iterator[Any]:
    """A stand-in with an answer, and a chat model over it."""
    place["standin"] = standin = ChatStandIn(owner, pieces)
    with ChatSpeculative.from_server(place["url"], max_tokens=50, **options) as chat:
        yield standin, chat


def streamed(chat: Any, *args: Any, **kwargs: Any) -> Any:
    whole = None
    for chunk in chat.stream(*args, **kwargs):
        whole = chunk if whole is None else whole + chunk
    return whole


class TestAnswers:
    def test_a_text_with_its_counts(self, place):
        with chat_with(place, *SAID) as (standin, chat):
            for answer in (chat.invoke("How is the sea?"), streamed(chat, "How is the sea?")):
                assert answer.content == "All well."
                assert answer.usage_metadata == {"input_tokens": 9, "output_tokens": 6, "total_tokens": 15}
                assert answer.response_metadata["finish_reason"] == "eos_token"
                assert answer.response_metadata["speculation"]["drafted_tokens"] is None
        assert standin.asked[0] == {
            "model": "canned",
            "messages": [{"role": "user", "content": "How is the sea?"}],
            "max_tokens": 50,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    @pytest.mark.parametrize(
        "pieces",
        [
            # Azure begins with what its filters say.
            [{"choices": [], "prompt_filter_results": []}, *SAID],
            # Counts with the last piece, or with every piece; at the beginning; none at all.
            [USAGE_PIECE, *SAID],
            [*SAID[:-2], delta("stop") | {"usage": USAGE}],
            [*(piece | {"usage": None} for piece in SAID[:-1]), USAGE_PIECE],
            SAID[:-1],
            # Nulls, and an empty reason.
            [delta(role="assistant", content=None, tool_calls=None, function_call=None, refusal=None), *SAID[1:]],
            [delta("", content="All well."), delta("stop", content=None)],
            [{"choices": [{"index": 0, "delta": None, "finish_reason": None}]}, *SAID],
            [*SAID[:-1], {"choices": [], "usage": {"total_tokens": 15}}],
            [delta(content=[{"type": "text", "text": "All "}]), delta(content=[]), *SAID[2:]],
        ],
        ids=range(10),
    )
    def test_a_text_in_any_shape(self, place, pieces):
        with chat_with(place, *pieces) as (_, chat):
            assert chat.invoke("x").content == streamed(chat, "x").content == "All well."

    def test_pieces_may_be_less_than_tokens(self, place):
        pieces = [*(delta(content=letter) for letter in "All well."), delta("stop"), USAGE_PIECE]
        with chat_with(place, *pieces) as (_, chat):
            for answer in (chat.invoke("x", max_tokens=6), streamed(chat, "x", max_tokens=6)):
                assert (answer.content, answer.response_metadata["finish_reason"]) == ("All well.", "eos_token")
                assert answer.usage_metadata["output_tokens"] == 6

    def test_drafts_of_sglang_are_told_before_the_counts(self, place):
        details = {"spec_num_correct_drafts": 3, "spec_num_proposed_drafts": 8, "spec_verify_ct": 3}
        pieces = [delta(content="All well.") | {"usage": USAGE}, delta("stop") | {"usage": USAGE}]
        drafts = {"choices": [], "sglext": {"spec_tokens_details": details}}
        with chat_with(place, *pieces, drafts, USAGE_PIECE, owner="sglang") as (_, chat):
            said = chat.invoke([HumanMessage(["x", IMAGE])]).response_metadata["speculation"]
        assert (said["num_steps"], said["accepted_tokens"], said["drafted_tokens"]) == (3, 3, 8)

    @pytest.mark.parametrize(("reason", "told"), [("stop", "eos_token"), ("length", "length")])
    def test_ends(self, place, reason, told):
        with chat_with(place, delta(content="All"), delta(reason)) as (_, chat):
            assert chat.invoke("x").response_metadata["finish_reason"] == told

    @pytest.mark.parametrize("reason", ["content_filter", "abort"])
    def test_an_end_of_another_kind_is_an_error(self, place, reason):
        says = f"the answer ended by '{reason}'"
        with chat_with(place, delta(content="All"), delta(reason)) as (_, chat):
            for ask in (chat.invoke, lambda text: streamed(chat, text)):
                with pytest.raises(GenerationError, match=says):
                    ask("x")

    def test_a_server_that_repeats_the_key_in_a_piece_tells_it_to_nobody(self, place):
        pieces = [delta(content="All"), delta(f"{KEY}\n{'x' * 9000}")]
        with chat_with(place, *pieces, api_key=KEY) as (_, chat), pytest.raises(GenerationError) as caught:
            chat.invoke("x")
        assert KEY not in str(caught.value)
        assert len(str(caught.value)) < 1000

    def test_stop_strings_are_found_here_and_not_in_thoughts(self, place):
        pieces = [delta(reasoning="he; he"), delta(content="All w"), delta(content="ell; good"), delta("stop")]
        with chat_with(place, *pieces) as (standin, chat):
            answer = chat.invoke("x", stop=["; "])
            assert (answer.content, answer.response_metadata["finish_reason"]) == ("All well", "stop_sequence")
            assert answer.additional_kwargs["reasoning_content"] == "he; he"
            answer = chat.invoke("x", stop=["; "], stop_in_reasoning=True)
            assert (answer.content, answer.additional_kwargs["reasoning_content"]) == ("", "he")
        assert "stop" not in standin.asked[0]

    def test_nobody_waits_for_a_server_that_goes_on_behind_a_stop_in_a_thought(self, place):
        pieces = [delta(reasoning="he; he"), delta("stop"), USAGE_PIECE]
        for how, num_prompt in (({}, 9), ({"stop": ["; "], "stop_in_reasoning": True}, 0)):
            with chat_with(place, *pieces, owner="specdec") as (_, chat):
                answer = chat.invoke([HumanMessage(["x", IMAGE])], **how)
            assert answer.usage_metadata["input_tokens"] == num_prompt, "what comes later tells the counts"

    @pytest.mark.parametrize(
        "pieces",
        [
            [delta(reasoning_content="Hm"), delta(reasoning_content="m.")],
            [delta(reasoning="Hm"), delta(reasoning="m.", content=None)],
            # OpenRouter's and vLLM's, with both names.
            [delta(reasoning="Hmm.", reasoning_content="Hmm.", reasoning_details=[{"text": "Hmm."}])],
            # Mistral's.
            [
                delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": part}]}])
                for part in ("Hm", "m.")
            ],
        ],
        ids=["reasoning_content", "reasoning", "both", "a list"],
    )
    def test_thoughts_are_told_apart(self, place, pieces):
        usage = {**USAGE, "completion_tokens_details": {"reasoning_tokens": 4}}
        pieces = [*pieces, *SAID[:-1], {"choices": [], "usage": usage}]
        with chat_with(place, *pieces) as (_, chat):
            for answer in (chat.invoke("x"), streamed(chat, "x")):
                assert [block["type"] for block in answer.content_blocks] == ["reasoning", "text"]
                assert answer.additional_kwargs["reasoning_content"] == "Hmm."
                assert answer.content == "All well."
                assert answer.usage_metadata["output_token_details"] == {"reasoning": 4}

    def test_a_refusal_is_text(self, place):
        with chat_with(place, delta(refusal="I can"), delta(refusal="not."), delta("stop")) as (_, chat):
            assert chat.invoke("x").content == "I cannot."
            with pytest.raises(MalformedAnswerError, match="broke its grammar"):
                chat.with_structured_output(Sea).invoke("x")

    def test_marks_in_a_text_are_text(self, place):
        text = '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call><think>x</think>'
        with chat_with(place, delta(content=text), delta("stop")) as (_, chat):
            answer = chat.bind_tools([tide]).invoke("x")
            assert (answer.content, answer.tool_calls) == (text, [])

    def test_an_error_tells_what_the_server_says(self, place):
        with chat_with(place) as (standin, chat):
            standin.refusal = 400, "'max_tokens' is not supported with this model."
            with pytest.raises(InvalidParameterError, match="'max_tokens' is not supported with this model"):
                chat.invoke("x")


class TestCalls:
    @pytest.mark.parametrize(
        "pieces",
        [
            [
                call(0, "", "tide", "a"),
                call(0, '{"place": '),
                call(0, '"Kiel"}'),
                call(1, '{"place": "Åbo"}', "tide", "b"),
            ],
            # All at once; pieces of two that alternate; the name with every piece.
            [call(0, '{"place": "Kiel"}', "tide", "a"), call(1, '{"place": "Åbo"}', "tide", "b")],
            [
                call(0, '{"pla', "tide", "a"),
                call(1, '{"pla', "tide", "b"),
                call(0, 'ce": "Kiel"}'),
                call(1, 'ce": "Åbo"}'),
            ],
            [call(0, '{"place": ', "tide", "a"), call(0, '"Kiel"}', "tide"), call(1, '{"place": "Åbo"}', "tide", "b")],
            # One number for both, or none, as of Ollama and Gemini; parsed arguments.
            [call(0, '{"place": "Kiel"}', "tide", "a"), call(0, '{"place": "Åbo"}', "tide", "b")],
            [call(None, '{"place": "Kiel"}', "tide", "a"), call(None, '{"place": "Åbo"}', "tide", "b")],
            [call(0, {"place": "Kiel"}, "tide", "a"), call(1, {"place": "Åbo"}, "tide", "b")],
            # No ids either: the name comes again behind what is whole.
            [call(0, '{"place": "Kiel"}', "tide"), call(0, '{"place": "Åbo"}', "tide")],
            [call(None, '{"place": ', "tide"), call(None, '"Kiel"}', "tide"), call(None, {"place": "Åbo"}, "tide")],
        ],
        ids=range(9),
    )
    @pytest.mark.parametrize("reason", ["tool_calls", "stop"])
    def test_calls_in_any_shape(self, place, pieces, reason):
        with chat_with(place, delta(content="I look. "), *pieces, delta(reason)) as (_, chat):
            bound = chat.bind_tools([tide])
            for answer in (bound.invoke("x"), streamed(bound, "x")):
                assert [(each["name"], each["args"]) for each in answer.tool_calls] == [
                    ("tide", {"place": "Kiel"}),
                    ("tide", {"place": "Åbo"}),
                ]
                assert answer.content == "I look."
                assert answer.invalid_tool_calls == []
            for how in ({"parallel_tool_calls": False}, {"tool_choice": "tide"}):
                (only,) = chat.bind_tools([tide], **how).invoke("x").tool_calls
                assert only["args"] == {"place": "Kiel"}

    def test_the_first_interface_has_one_call_without_an_id(self, place):
        pieces = [
            delta(function_call={"name": "tide", "arguments": '{"place"'}),
            delta(function_call={"arguments": ': "Kiel"}'}),
        ]
        with chat_with(place, *pieces, delta("function_call")) as (_, chat):
            (only,) = chat.bind_tools([tide]).invoke("x").tool_calls
            assert (only["args"], bool(only["id"])) == ({"place": "Kiel"}, True)

    @pytest.mark.parametrize("nothing", ["", "null", None, "{}"])
    def test_a_call_without_arguments(self, place, nothing):
        with chat_with(place, call(0, nothing, "tide", "a"), delta("tool_calls")) as (_, chat):
            assert chat.bind_tools([tide]).invoke("x").tool_calls[0]["args"] == {}

    @pytest.mark.parametrize(("reason", "error"), [("length", "cut at max_new_tokens"), ("stop", "not an object")])
    def test_a_broken_call_is_told(self, place, reason, error):
        with chat_with(place, call(0, '{"place": "Ki', "tide", "a"), delta(reason)) as (_, chat):
            for bound in (chat.bind_tools([tide]), chat.bind_tools([tide], tool_choice="any")):
                (broken,) = bound.invoke("x").invalid_tool_calls
                assert error in broken["error"]
                assert broken["args"].startswith('<tool_call>{"name": "tide"')

    def test_a_text_where_a_call_was_forced_is_no_call(self, place):
        with chat_with(place, *SAID) as (_, chat):
            (broken,) = chat.bind_tools([tide], tool_choice="any").invoke("x").invalid_tool_calls
            assert (broken["args"], broken["error"]) == ("<tool_call>All well.", "The answer is no call of a tool.")


TOOL_CHOICES: list[tuple[str, Any, Any]] = [
    ("somebody", None, None),
    ("somebody", "none", "none"),
    ("somebody", "any", "required"),
    ("somebody", "tide", {"type": "function", "function": {"name": "tide"}}),
    ("llamacpp", "tide", "required"),
]


class TestRequests:
    @pytest.mark.parametrize(("owner", "choice", "sent"), TOOL_CHOICES)
    def test_tools_and_which_to_call(self, place, owner, choice, sent):
        with chat_with(place, *SAID, owner=owner) as (standin, chat):
            other = {"name": "ferry", "description": "A ferry.", "parameters": {"type": "object", "properties": {}}}
            chat.bind_tools([tide, other], tool_choice=choice).invoke([HumanMessage(["x", IMAGE])])
        assert standin.asked[0].get("tool_choice") == sent
        names = [each["function"]["name"] for each in standin.asked[0]["tools"]]
        # llama.cpp looks at no name.
        assert names == (["tide"] if owner == "llamacpp" else ["tide", "ferry"])

    def test_a_history_is_sent_as_the_protocol_has_it(self, place):
        calls = [{"name": "tide", "args": {"place": "Kiel"}, "id": "abcdefghi"}]
        history = [
            ("system", "Be brief."),
            ("human", "Tide?"),
            AIMessage("I look.", tool_calls=calls, additional_kwargs={"reasoning_content": "Hm."}),
            ToolMessage("High.", tool_call_id="abcdefghi"),
        ]
        with chat_with(place, *SAID) as (standin, chat):
            chat.bind_tools([tide], parallel_tool_calls=False).invoke(history)
        body = standin.asked[0]
        assert body["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tide?"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {
                        "type": "function",
                        "id": "abcdefghi",
                        "function": {"name": "tide", "arguments": '{"place": "Kiel"}'},
                    }
                ],
            },
            {"role": "tool", "content": "High.", "tool_call_id": "abcdefghi"},
        ]
        assert body["parallel_tool_calls"] is False

    def test_an_object_is_asked_for_and_checked(self, place):
        with chat_with(place, delta(content='\n{"ships": 3}'), delta("stop")) as (standin, chat):
            assert chat.with_structured_output(Sea).invoke([("system", "Count."), ("human", "x")]) == Sea(ships=3)
            standin.pieces = [delta(content='{"boats": 3}'), delta("stop")]
            with pytest.raises(MalformedAnswerError):
                chat.with_structured_output(Sea).invoke("x")
            standin.pieces = [delta(content='{"ships": 3}'), delta("stop")]
            assert chat.with_structured_output(Sea, method="json_mode").invoke("JSON!") == Sea(ships=3)
        assert standin.asked[-1]["response_format"] == {"type": "json_object"}
        sent = standin.asked[0]
        schema = sent["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["ships"]["type"] == "integer"
        # OpenAI wants it said.
        assert schema["additionalProperties"] is False
        assert sent["messages"][0]["content"].startswith(
            "Count.\n\nAnswer with a JSON object that fits this JSON schema"
        )

    def test_a_call_as_an_object(self, place):
        with chat_with(place, call(0, '{"ships": 3}', "Sea", "a"), delta("tool_calls")) as (standin, chat):
            assert chat.with_structured_output(Sea, method="function_calling").invoke("x") == Sea(ships=3)
        assert standin.asked[0]["tool_choice"]["function"] == {"name": "Sea"}

    @pytest.mark.parametrize(
        ("owner", "given", "sent"),
        [
            ("somebody", "low", {"reasoning_effort": "low"}),
            ("somebody", False, {"reasoning_effort": "none"}),
            ("vllm", False, {"chat_template_kwargs": {"enable_thinking": False}}),
            ("sglang", True, {"chat_template_kwargs": {"enable_thinking": True}}),
            ("llamacpp", "high", {"reasoning_effort": "high"}),
        ],
    )
    def test_how_much_to_think(self, place, owner, given, sent):
        with chat_with(place, *SAID, owner=owner) as (standin, chat):
            chat.invoke([HumanMessage(["x", IMAGE])], reasoning=given)
        assert sent.items() <= standin.asked[0].items()

    @pytest.mark.parametrize("owner", ["somebody", "vllm", "sglang", "llamacpp"])
    def test_images_are_sent_to_any_server(self, place, owner):
        with chat_with(
            place, *SAID, owner=owner, temperature=0.5, **({} if owner == "sglang" else {"seed": 3})
        ) as made:
            standin, chat = made
            found = ToolMessage([{"type": "text", "text": "Found:"}, IMAGE], tool_call_id="abcdefghi")
            calls = [{"name": "tide", "args": {}, "id": "abcdefghi"}]
            assert (
                chat.invoke([HumanMessage(["See: ", IMAGE]), AIMessage("", tool_calls=calls), found]).text
                == "All well."
            )
        body = standin.asked[0]
        assert body["messages"][0]["content"] == [
            {"type": "text", "text": "See: "},
            {"type": "image_url", "image_url": {"url": DATA_URL}},
        ]
        assert body["messages"][2]["content"] == "Found:\n[image, left out: it cannot be shown here]\n"
        assert body["max_tokens"] == 50
        assert not {"prompt", "n_predict", "return_token_ids", "return_tokens"} & body.keys()

    def test_llama_cpp_takes_no_number_for_its_whole_context(self, place):
        with chat_with(place, *SAID, owner="llamacpp", repetition_penalty=1.2) as (standin, chat):
            chat.invoke([HumanMessage(["x", IMAGE])])
        assert (standin.asked[0]["repeat_penalty"], standin.asked[0]["repeat_last_n"]) == (1.2, 2048)

    @pytest.mark.parametrize(("owner", "field"), [("vllm", "structured_outputs"), ("sglang", "regex")])
    def test_a_regular_expression(self, place, owner, field):
        with chat_with(place, delta(content="aa"), delta("stop"), USAGE_PIECE, owner=owner) as (standin, chat):
            assert chat.invoke([HumanMessage(["x", IMAGE])], grammar=Grammar(regex="a+")).text == "aa"
        assert "a+" in json.dumps(standin.asked[0][field])

    @pytest.mark.parametrize(
        ("how", "said"),
        [
            ({"logprobs": 1}, "logprobs cannot be honoured, since the server itself writes the prompt"),
            ({"max_reasoning_tokens": 4}, "max_reasoning_tokens cannot be honoured"),
            ({"continue_final_message": True}, "continue_final_message cannot be honoured"),
            ({"reasoning": True}, "reasoning=True cannot be honoured"),
            ({"grammar": Grammar(regex="a+")}, "A regular expression cannot be held"),
            ({"top_k": 3, "temperature": 0.5}, "top_k cannot be honoured"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_needs_a_prompt_of_ones_own_is_refused(self, place, how, said):
        with chat_with(place, *SAID) as (standin, chat):
            with pytest.raises(InvalidParameterError, match=said):
                chat.invoke("x", **how)
            assert standin.asked == []

    def test_a_template_of_ones_own_needs_the_tokenizer(self, place):
        with chat_with(place, *SAID, chat_template="{{ messages }}") as (_, chat):
            with pytest.raises(InvalidParameterError, match="chat_template cannot be honoured"):
                chat.invoke("x")
            with pytest.raises(InvalidParameterError, match="has no tokenizer, and so no chat template"):
                chat.get_num_tokens_from_messages([("human", "x")])

    @pytest.mark.transformers
    def test_a_tokenizer_has_the_prompt_written_here(self, place):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        with chat_with(place, *SAID, tokenizer=tokenizer) as (standin, chat):
            with pytest.raises(Exception, match=r"HTTP 404|does not have"):
                chat.invoke("x")
            assert standin.asked == []
            # No prompt carries an image.
            assert chat.invoke([HumanMessage(["x", IMAGE])]).text == "All well."

    def test_what_another_request_made_it_forget_is_no_matter(self, place, monkeypatch):
        with chat_with(place, *SAID) as (_, chat):
            load = chat.backend.load_tokenizer

            def forgetting(timeout: float | None = None) -> Any:
                loaded = load(timeout)
                chat.backend._facts.forget()
                return loaded

            monkeypatch.setattr(chat.backend, "load_tokenizer", forgetting)
            assert chat.invoke("x").content == "All well."

    async def test_it_is_the_same_in_an_event_loop(self, place):
        with chat_with(place, *SAID) as (_, chat):
            assert (await chat.ainvoke("x")).content == "All well."
            pieces = [piece.text async for piece in chat.astream([HumanMessage(["x", IMAGE])])]
            assert "".join(pieces) == "All well."

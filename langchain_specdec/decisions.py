"""`SpeculativeDecisions`: a decision model of LangChain over a model in this process, or one behind a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from langchain_core.version import VERSION
from pydantic import Field, PrivateAttr
from typing_extensions import Self, Unpack, override

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.arrangements import Message
from langchain_specdec.chat.image_prompts import images_for, read_into, template_for
from langchain_specdec.chat.images import Images
from langchain_specdec.chat.label_tokens import LabelTokens
from langchain_specdec.chat.prompt import Prompt
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.construction.constructors import ModelConstructors
from langchain_specdec.errors import GenerationError, InvalidParameterError, MissingDependencyError
from langchain_specdec.sampling.params import SamplingParams

try:
    from langchain_core.decisions import BaseDecisionModel, ClassifierResponse, Question, State
except ImportError as error:
    msg = (
        f"SpeculativeDecisions needs langchain-core 1.8 or later, and {VERSION} is installed: "
        'pip install -U "langchain-core>=1.8"'
    )
    raise MissingDependencyError(msg) from error

from langchain_specdec.chat.questions import (
    LabelledQuestion,
    answer_of,
    answers_of,
    checked_question,
    preferred_labels,
    prompt_of,
    state_text,
)

if TYPE_CHECKING:
    from langchain_specdec.construction import keywords

_NO_SUCH_SERVER = (
    "SpeculativeDecisions needs the probabilities of tokens that the model may think improbable, and this server tells "
    "those of the best ones only, as all do but vLLM and `specdec serve`. Use one of these by from_server or "
    'launch_server, or load the model here: SpeculativeDecisions(model="...").'
)


class _Prompts(NamedTuple):
    """What writes the prompts of questions.

    Attributes:
        tokenizer: The model's.
        template: The template.
        labels: Labels of its answers.
    """

    tokenizer: Any
    template: ChatTemplate
    labels: LabelTokens


class _Asked(NamedTuple):
    """A question, ready to run.

    Attributes:
        question: The question.
        request: Its prompt; one token is decoded.
        tokens: Those that stand for its answers, in their order.
    """

    question: LabelledQuestion
    request: CompletionRequest
    tokens: Sequence[int]

    def answer(self, completion: Completion) -> Any:
        """The answer, by the log probabilities of its tokens."""
        logprobs = next((token.top_logprobs for token in completion.tokens), None) or {}
        if any(token not in logprobs for token in self.tokens):
            msg = (
                "The server did not tell the probabilities of all answers, as vLLM does not before 0.30. Take a later "
                "one, `specdec serve`, or a model in this process."
            )
            raise GenerationError(msg)
        return answer_of(self.question, [logprobs[token] for token in self.tokens])


class SpeculativeDecisions(ModelConstructors, BaseDecisionModel):
    """Answers typed questions by how probable a language model thinks each answer: no text is written or parsed.

    Instantiate:
        ```python
        from langchain_specdec import SpeculativeDecisions

        decisions = SpeculativeDecisions(model="HuggingFaceTB/SmolLM2-1.7B-Instruct")
        ```
        `model` is an id, a local folder or a loaded model, with the options of `LocalOptions`. Beside a chat model,
        `SpeculativeDecisions(backend=chat.backend)` shares its weights and its engine.

    Ask (and `ainvoke`, `batch`, `abatch`):
        ```python
        from langchain_core.decisions import Choice, Noul, Score

        questions = {
            "urgent": Noul(instructions="Does this need an answer today?"),
            "team": Choice(instructions="Who answers?", criteria={"billing": "Payments.", "technical": "Errors."}),
            "anger": Score(instructions="How angry is the writer?", criteria=["Calm.", "Annoyed.", "Furious."]),
        }
        response = decisions.invoke({"state": "Checkout has failed since noon!", "questions": questions})
        print(response.nouls["urgent"].noul, response.choices["team"].choice, response.scores["anger"].score)
        ```

    The chat template writes a prompt with the state, the question and its answers, each with a label of one token
    (`Yes` and `No`, `0` to `9`, or `A`, `B`, ...); the forward that reads it tells the probability of each label. The
    probabilities are those of the labels among each other: the softmax of their logits. They depend neither on what
    else runs nor on what was read before. `confidence` is the probability of the most probable answer, for a `Score`
    of the most probable level.

    The state comes first in the prompt, so that it is read once for all questions about it, which are asked in turn;
    `usage.input_token_details.cache_read` counts what was not read again. A string stands in the prompt as it is, all
    else, messages included, as JSON. Texts are data: a special token in them is read as plain text. The model answers
    without a thought: it is switched off in the template unless `chat_template_kwargs` says otherwise, and a thought
    that the template opens is closed.

    Images in messages of the state, in base64, go to a model that reads images. A `Box`, and other content than text
    and these, are refused. All questions are checked before the first is asked.

    `SpeculativeDecisions.from_server(url)` asks `specdec serve`, whose answers are those of a model in this process, or
    a vLLM that does not speculate; both tell the probabilities of tokens that a request names, and `launch_server`
    starts them. Other servers are refused: they tell those of their best tokens only. Images are taken by a model in
    this process.

    Raises:
        UnsupportedModelError: The model has no chat template.
        InvalidParameterError: In a call: a question cannot be asked, or has more answers than there are labels.
        PromptTooLongError: In a call: a prompt does not fit into `max_length`.
    """

    model: str = Field(default="")
    """Name of the model, as the backend tells it; that of a server's stands in its answers."""
    chat_template: str | None = Field(default=None, repr=False)
    """A Jinja template in place of the model's own, or the name of one of several that it has."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template."""

    _known: tuple[tuple[int, str | None, str], _Prompts] | None = PrivateAttr(default=None)

    if TYPE_CHECKING:

        def __init__(self, **kwargs: Unpack[keywords.DecisionKeywords]) -> None: ...
        @override
        @classmethod
        def from_model_id(  # type: ignore[override]
            cls, model_id: keywords.ModelSource, **kwargs: Unpack[keywords.DecisionLoading]
        ) -> Self: ...
        @override
        @classmethod
        def from_server(cls, base_url: str, **kwargs: Unpack[keywords.DecisionServer]) -> Self: ...  # type: ignore[override]
        @override
        @classmethod
        def launch_server(  # type: ignore[override]
            cls, model_id: str, *, engine: keywords.Engine, **kwargs: Unpack[keywords.DecisionLaunchServer]
        ) -> Self: ...

    @classmethod
    def from_tgi(cls, *_: object, **__: object) -> NoReturn:
        """Refused: such a server does not tell what decisions are made of.

        Raises:
            InvalidParameterError: Always.
        """
        raise InvalidParameterError(_NO_SUCH_SERVER)

    @classmethod
    def launch_tgi(cls, *_: object, **__: object) -> NoReturn:
        """Refused, as `from_tgi`.

        Raises:
            InvalidParameterError: Always.
        """
        raise InvalidParameterError(_NO_SUCH_SERVER)

    @classmethod
    def _check_engine(cls, engine: str) -> None:
        if engine in ("sglang", "llama-cpp"):
            raise InvalidParameterError(_NO_SUCH_SERVER)

    @classmethod
    def _with_backend(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], Backend | None]:
        backend = values.get("backend")
        if isinstance(backend, Backend) and values.get("model") == _name_of(backend):
            # Copies that LangChain makes are given all fields.
            values = {name: value for name, value in values.items() if name != "model"}
        fields, loaded = super()._with_backend(values)
        return {**fields, "model": _name_of(fields["backend"])}, loaded

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        fields = super()._checked(values)
        backend = fields["backend"]
        if isinstance(backend, Backend) and backend.takes_logprob_token_ids is False:
            if backend.is_remote:
                raise InvalidParameterError(_NO_SUCH_SERVER)
            msg = (
                f"{type(backend).__name__} does not tell the probabilities of tokens that a request names "
                f"(takes_logprob_token_ids), which decisions are made of. Take a LocalBackend."
            )
            raise InvalidParameterError(msg)
        return fields

    def _check_made(self) -> None:
        # A server is not asked for its model before the first call.
        if not self.backend.is_remote:
            self._prompts()

    @property
    def _provider(self) -> str:
        return "specdec"

    def _prompts(self) -> _Prompts:
        """What writes prompts, made once for a model. A server is asked for its own."""
        tokenizer = self.backend.load_tokenizer()
        if not self.backend.takes_logprob_token_ids:
            raise InvalidParameterError(_NO_SUCH_SERVER)
        # A copy with other values of these fields carries what is known along, so they are compared.
        key = id(tokenizer), self.chat_template, repr(self.chat_template_kwargs)
        if self._known is None or self._known[0] != key:
            options = {"enable_thinking": False, **(self.chat_template_kwargs or {})}
            template = template_for(self.backend, tokenizer, self.chat_template, options)
            if template.reasoning.switch not in {"", *options}:
                template = template.with_reasoning(False)
            self._known = key, _Prompts(tokenizer, template, LabelTokens(template))
        return self._known[1]

    def _ask(self, state: State, questions: Mapping[str, Question]) -> dict[str, _Asked]:
        """Everything that can be refused is refused here."""
        if not questions:
            msg = "There are no questions. Give at least one."
            raise InvalidParameterError(msg)
        images = images_for(self.backend)
        told = state_text(state, images)
        checked = {name: checked_question(name, question) for name, question in questions.items()}
        return {name: self._asked(told, images, question) for name, question in checked.items()}

    def _asked(self, state: str, images: Images, question: LabelledQuestion) -> _Asked:
        tokenizer, template, label_tokens = self._prompts()
        labels = label_tokens.choose(len(answers_of(question)), preferred_labels(question))

        def write(rows: Sequence[Message]) -> Prompt:
            return template.prompt(rows, images=images)

        rows = [{"role": "user", "content": prompt_of(state, question, list(labels))}]
        prompt, read = read_into(write, rows, images, self.backend.image_reader)
        prompt_ids = prompt.token_ids(label_tokens.begin, self.backend.max_length)
        tokens = list(labels.values())
        placed = read.placed(prompt_ids) if read is not None else ()
        params = SamplingParams(max_new_tokens=1)
        template_of = tokenizer if self.backend.is_remote else None
        request = CompletionRequest(
            prompt_ids, params, logprob_token_ids=tokens, images=placed, template_of=template_of
        )
        return _Asked(question, request, tokens)

    def _classify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        asked = self._ask(state, questions)
        # One after the other: the next one takes the slot in which the state was read.
        return self._response(asked, [self.backend.complete([each.request])[0] for each in asked.values()])

    async def _aclassify(self, state: State, questions: dict[str, Question]) -> ClassifierResponse:
        asked = await asyncio.to_thread(self._ask, state, questions)
        completions = []
        for each in asked.values():
            completions += await self.backend.acomplete([each.request])
        return self._response(asked, completions)

    def _response(self, asked: Mapping[str, _Asked], completions: Sequence[Completion]) -> ClassifierResponse:
        answers = {
            name: each.answer(completion) for (name, each), completion in zip(asked.items(), completions, strict=True)
        }
        ends = [completion.finish for completion in completions]
        usage: Any = {
            "input_tokens": sum(end.prompt_tokens for end in ends),
            "output_tokens": sum(end.completion_tokens for end in ends),
            "input_token_details": {"cache_read": sum(end.cached_tokens or 0 for end in ends)},
        }
        return ClassifierResponse(model=self.model or self.backend.model_name, answers=answers, usage=usage)


def _name_of(backend: Backend) -> str:
    """Name of a backend's model; "" where a server would have to be asked."""
    return "" if backend.is_remote else backend.model_name

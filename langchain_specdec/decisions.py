"""`SpeculativeDecisions`: a decision model of LangChain over a model in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from langchain_core.version import VERSION
from pydantic import Field, PrivateAttr
from typing_extensions import Self, Unpack, override

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.arrangements import Message
from langchain_specdec.chat.image_prompts import images_for, placeholder_of, read_into
from langchain_specdec.chat.images import Images
from langchain_specdec.chat.label_tokens import LabelTokens
from langchain_specdec.chat.prompt import Prompt
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.construction.constructors import ModelConstructors
from langchain_specdec.errors import InvalidParameterError, MissingDependencyError
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

_NO_SERVERS = (
    "SpeculativeDecisions needs the probabilities of tokens that the model may think improbable, and a server of Text "
    'Generation Inference tells those of the best ones only. Load the model here: SpeculativeDecisions(model="...").'
)


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
        logprobs = completion.tokens[0].top_logprobs or {}
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
    and these, are refused. So is a server of Text Generation Inference, which tells the
    probabilities of its best tokens only. All questions are checked before the first is asked.

    Raises:
        UnsupportedModelError: The model has no chat template.
        InvalidParameterError: In a call: a question cannot be asked, or has more answers than there are labels.
        PromptTooLongError: In a call: a prompt does not fit into `max_length`.
    """

    model: str = Field(default="")
    """Name of the model, as the backend tells it."""
    chat_template: str | None = Field(default=None, repr=False)
    """A Jinja template in place of the model's own, or the name of one of several that it has."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template."""

    _known: tuple[tuple[str | None, str], tuple[ChatTemplate, LabelTokens]] | None = PrivateAttr(default=None)

    if TYPE_CHECKING:

        def __init__(self, **kwargs: Unpack[keywords.DecisionKeywords]) -> None: ...
        @override
        @classmethod
        def from_model_id(  # type: ignore[override]
            cls, model_id: keywords.ModelSource, **kwargs: Unpack[keywords.DecisionLoading]
        ) -> Self: ...

    @classmethod
    def from_tgi(cls, *_: object, **__: object) -> NoReturn:
        """Refused: such a server does not tell what decisions are made of.

        Raises:
            InvalidParameterError: Always.
        """
        raise InvalidParameterError(_NO_SERVERS)

    @classmethod
    def from_server(cls, *_: object, **__: object) -> NoReturn:
        """Refused, as `from_tgi`.

        Raises:
            InvalidParameterError: Always.
        """
        raise InvalidParameterError(_NO_SERVERS)

    @classmethod
    def launch_tgi(cls, *_: object, **__: object) -> NoReturn:
        """Refused, as `from_tgi`.

        Raises:
            InvalidParameterError: Always.
        """
        raise InvalidParameterError(_NO_SERVERS)

    @classmethod
    def launch_server(cls, *_: object, **__: object) -> NoReturn:
        """Refused, as `from_tgi`.

        Raises:
            InvalidParameterError: Always.
        """
        raise InvalidParameterError(_NO_SERVERS)

    @classmethod
    def _with_backend(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], Backend | None]:
        backend = values.get("backend")
        if isinstance(backend, Backend) and values.get("model") == backend.model_name:
            # Copies that LangChain makes are given all fields.
            values = {name: value for name, value in values.items() if name != "model"}
        fields, loaded = super()._with_backend(values)
        return {**fields, "model": fields["backend"].model_name}, loaded

    @classmethod
    def _checked(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        fields = super()._checked(values)
        backend = fields["backend"]
        if isinstance(backend, Backend) and not backend.takes_logprob_token_ids:
            if backend.is_remote:
                raise InvalidParameterError(_NO_SERVERS)
            msg = (
                f"{type(backend).__name__} does not tell the probabilities of tokens that a request names "
                f"(takes_logprob_token_ids), which decisions are made of. Take a LocalBackend."
            )
            raise InvalidParameterError(msg)
        return fields

    def _check_made(self) -> None:
        self._prompts()

    @property
    def _provider(self) -> str:
        return "specdec"

    def _prompts(self) -> tuple[ChatTemplate, LabelTokens]:
        """The template and the labels of its answers, made once."""
        tokenizer = self.backend.private_tokenizer or self.backend.tokenizer
        # A copy with other values of these fields carries what is known along, so they are compared.
        key = self.chat_template, repr(self.chat_template_kwargs)
        if self._known is None or self._known[0] != key:
            options = {"enable_thinking": False, **(self.chat_template_kwargs or {})}
            template = ChatTemplate(tokenizer, self.model, self.chat_template, options, placeholder_of(self.backend))
            if template.reasoning.switch not in {"", *options}:
                template = template.with_reasoning(False)
            self._known = key, (template, LabelTokens(template))
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
        template, label_tokens = self._prompts()
        labels = label_tokens.choose(len(answers_of(question)), preferred_labels(question))

        def write(rows: Sequence[Message]) -> Prompt:
            return template.prompt(rows, images=images)

        rows = [{"role": "user", "content": prompt_of(state, question, list(labels))}]
        prompt, read = read_into(write, rows, images, self.backend.image_reader)
        prompt_ids = prompt.token_ids(label_tokens.begin, self.backend.max_length)
        tokens = list(labels.values())
        placed = read.placed(prompt_ids) if read is not None else ()
        params = SamplingParams(max_new_tokens=1)
        request = CompletionRequest(prompt_ids, params, logprob_token_ids=tokens, images=placed)
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
        return ClassifierResponse(model=self.model, answers=answers, usage=usage)

"""A talk with a model: questions, answers shown as they come, another answer, and what is said when one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage

from langchain_specdec.completions.events import Token
from langchain_specdec.errors import InvalidParameterError

if TYPE_CHECKING:
    from langchain_specdec.chat_models import ChatSpeculative
    from langchain_specdec.cli.chat_conversation import Conversation
    from langchain_specdec.cli.chat_view import View

_NUM_SEEDS = 2**64


class Talk:
    """A conversation, the model that answers in it, and the view that shows it."""

    def __init__(self, model: ChatSpeculative, conversation: Conversation, view: View) -> None:
        self.model = model
        self.conversation = conversation
        self.view = view
        self._num_retries = 0
        # What the last answer that came to its end was asked for.
        self._finished: list[BaseMessage] | None = None

    def ask(self, text: str) -> None:
        """Ask a question. It stays to be asked again if the answer fails.

        Raises:
            SpecDecError: It has no answer. The conversation is as before.
            OSError: The file that keeps the conversation cannot be written.
        """
        self._num_retries = 0
        question = HumanMessage(text)
        self.conversation.unanswered = question
        self._answer(question)

    def retry(self) -> None:
        """Ask the last question again, with another seed. The old answer stays until there is a new one.

        Raises:
            InvalidParameterError: There is no question, or its answer would be the same.
            SpecDecError, OSError: As in `ask`.
        """
        question = self.conversation.last_question
        if question is None:
            msg = "There is no question to ask again."
            raise InvalidParameterError(msg)
        if not self.model.temperature and self.conversation.asked(question) == self._finished:
            msg = (
                "Without sampling the same question has the same answer. "
                "For others, start with --temperature 0.7, or change the system message by /system."
            )
            raise InvalidParameterError(msg)
        self._num_retries += 1
        seed = self.model.seed
        self._answer(question, **({} if seed is None else {"seed": (seed + self._num_retries) % _NUM_SEEDS}))

    def _answer(self, question: HumanMessage, **parameters: Any) -> None:
        asked = self.conversation.asked(question)
        self._finished = None
        with self.view.answer():
            answer = self._stream(asked, parameters)
        self.view.sum_up(answer)
        if not answer.content:
            return  # stopped before it began
        if "finish_reason" in answer.response_metadata:
            self._finished = asked
        self.conversation.add(asked, answer)

    def _stream(self, asked: list[BaseMessage], parameters: dict[str, Any]) -> AIMessageChunk:
        """The answer, shown as it comes. After Ctrl-C it is what had come by then."""
        view = self.view

        class _Shown(BaseCallbackHandler):
            run_inline = True
            raise_error = True

            def on_llm_new_token(self, token: Any, *, chunk: Any = None, **_: Any) -> None:
                if thought := chunk.message.additional_kwargs.get("reasoning_content"):
                    view.think(thought)
                if text := chunk.message.text:
                    tokens = chunk.tokens
                    # Those of a step that ended a thought hold more than the answer.
                    is_all = "".join(each.text for each in tokens) == text
                    view.add(tokens if is_all else [Token(-1, text, drafted=False)])

        answer = AIMessageChunk(content="")
        stream = self.model.stream(asked, {"callbacks": [_Shown()]}, **parameters)
        try:
            for chunk in stream:
                answer = answer + chunk
        except KeyboardInterrupt:
            stream.close()  # type: ignore[attr-defined]  # it is a generator
        return answer

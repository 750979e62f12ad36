"""What a source of completions offers, whether it is a model in this process or a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import Self

from langchain_specdec.completions.completion import Completion, CompletionRequest, collect
from langchain_specdec.completions.stream import CompletionStream, started_in_thread
from langchain_specdec.grammar.text_check import TextCheck

if TYPE_CHECKING:
    from langchain_specdec.grammar.grammar import Grammar
    from langchain_specdec.models.image_reader import ImageReader
    from langchain_specdec.models.private_tokenizer import PrivateTokenizer

SHORT_TEXT = 20_000
"""Characters that are encoded at once also in an event loop: a few milliseconds' work."""


class Backend(ABC):
    """A source of completions. All methods may be called from any thread at any time.

    A backend of your own is a subclass with `model_name`, `identity`, `start`, `token_ids` and `close`.
    """

    takes_token_ids: bool = False
    """Whether a prompt may be a sequence of tokens."""
    takes_calls_or_object: bool | None = False
    """Whether a grammar may be a `CallGrammar`, which is neither one schema nor a regular expression; None where that
    is known only once a server was asked."""
    takes_logprob_token_ids: bool | None = False
    """Whether a request may name tokens whose log probabilities it is told, however improbable they are; None where
    that is known only once a server was asked."""
    takes_thoughts: bool = False
    """Whether a thought may be limited, and come before the text of a grammar."""
    takes_messages: bool = False
    """Whether a request may be a chat, of which a server makes the prompt, also one with images."""
    writes_prompts: bool = False
    """Whether the server makes the prompt of every chat, as far as it is known what answers."""
    needs_properties: bool = False
    """Whether the schema of a grammar has to be that of an object with properties."""
    is_remote: bool = False
    """Whether a server knows what there is to know of the model, and is asked when that is first needed."""

    @property
    @abstractmethod
    def model_name(self) -> str:
        """Name of the model, for messages and traces."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What the text depends on beside prompt and parameters; tells caches of two backends apart."""

    @property
    def tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer with its chat template; None where there is none in this process."""
        return None

    @property
    def private_tokenizer(self) -> PrivateTokenizer | None:
        """The tokenizer that the backend itself works with; None where it keeps none."""
        return None

    def load_tokenizer(self, timeout: float | None = None) -> Any:
        """The tokenizer that chats are rendered with, loaded if it has to be; None where there is none.

        Args:
            timeout: Most seconds that it may take, where a server has to be asked; None is without limit.
        """
        return self.private_tokenizer or self.tokenizer

    async def aload_tokenizer(self, timeout: float | None = None) -> Any:
        """The same without blocking the running event loop; cancelling the task ends the wait."""
        return self.load_tokenizer(timeout)

    def name_within(self, seconds: float) -> str:
        """`model_name`, waited for no longer than that, nor is it soon after; it may be the address of a server."""
        return self.model_name

    @property
    def max_length(self) -> int | None:
        """Most tokens of a prompt and its completion together; None where it is not known."""
        return None

    @property
    def max_prompt_length(self) -> int | None:
        """Most tokens of a prompt alone, where it has a limit of its own that is known; else None."""
        return None

    @property
    def image_reader(self) -> ImageReader | None:
        """Reads images for the model; None where it takes text only, see `why_no_images`."""
        return None

    @property
    def why_no_images(self) -> str:
        """Why there is no `image_reader`, as the end of a sentence."""
        return "what is sent to its server is text"

    @property
    def adapter_names(self) -> Sequence[str] | None:
        """The adapters that calls can choose among; None where that is not known."""
        return None

    def more_room(self, num_tokens: int) -> str | None:
        """How to make room for that many tokens of a prompt and its completion, for messages; None where one cannot."""
        return None

    @staticmethod
    def check_grammar(grammar: Grammar) -> None:
        """Look at a grammar before a request has it. One that passes may still need too many tokens.

        Raises:
            InvalidParameterError: It cannot be held; the message names the part.
        """
        TextCheck(grammar)

    @abstractmethod
    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """Start several completions at once; their streams in the same order, each to be read to its end or closed.

        Parameters that cannot be honoured raise here. All are checked before the first starts, so that a bad one costs
        nobody anything.
        """

    def stream(self, request: CompletionRequest) -> CompletionStream:
        """Start a completion; its stream is read by `for` or `async for`. Raises what `start` does."""
        return self.start([request])[0]

    async def astart(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """`start` without blocking the running event loop, however long the prompts are and whatever a grammar asks."""
        is_quick = all(request.params.grammar is None for request in requests)
        if is_quick and sum(len(request.prompt) for request in requests) <= SHORT_TEXT:
            return self.start(requests)
        return await started_in_thread(lambda: self.start(requests))

    def complete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Run several completions at once, in the order given. If one fails the others are stopped and it raises."""
        streams = self.start(requests)
        try:
            return [collect(stream.whole()) for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    async def acomplete(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """The same without blocking the running event loop; cancelling the task stops them."""
        streams = await self.astart(requests)
        completions = []
        try:
            for stream in streams:
                completions.append(collect([event async for event in stream.whole()]))  # noqa: PERF401
        finally:
            for stream in streams:
                stream.close()
        return completions

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, without those that a prompt gets in front: as many as it adds to a prompt."""

    @abstractmethod
    def close(self) -> None:
        """Free what the backend holds. It cannot be used afterwards."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Copies of what holds a backend, such as a chain, share its model.
        return self

    def __reduce__(self) -> NoReturn:
        msg = f"A running model cannot be pickled ({self.model_name}). Make it in the process that is to use it."
        raise TypeError(msg)

"""The text of an answer whose tokens are told: decoded and cut here, as that of the engine in this process is."""

from __future__ import annotations

from collections.abc import Callable, Collection

from langchain_specdec.backends.openai.chunks import Chunk
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishReason, Token
from langchain_specdec.engine.detokenizer import Detokenizer
from langchain_specdec.engine.stopping import StopChecker
from langchain_specdec.models.private_tokenizer import PrivateTokenizer

# Far more than the tokens that decide what the first token's text is.
_CONTEXT_CHARACTERS = 256


class DecodedText:
    """Makes tokens with text of a server's tokens.

    Args:
        request: What was asked for.
        tokenizer: The model's.
        is_at_end: Told the text as it is released; whether the answer is cut there.
        eos_token_ids: Tokens that end a text, as far as the server tells them before they come.

    Attributes:
        num_tokens: Tokens so far, up to where the text is cut.
    """

    def __init__(
        self,
        request: CompletionRequest,
        tokenizer: PrivateTokenizer,
        is_at_end: Callable[[str], bool] | None,
        eos_token_ids: Collection[int],
    ) -> None:
        params, prompt = request.params, request.prompt
        context: list[int] = []
        if request.continues_prompt:
            context = tokenizer.encode(prompt[-_CONTEXT_CHARACTERS:]) if isinstance(prompt, str) else [*prompt]
        self._stopper = StopChecker(
            Detokenizer(tokenizer, context),
            params.max_new_tokens,
            params.stop,
            () if params.ignore_eos else eos_token_ids,
            tokenizer.special_texts,
            request.shown_specials,
            is_at_end,
            request.thoughts,
        )
        self._logprobs, self._named = params.logprobs, request.logprob_token_ids
        self._texts: list[str] = []
        self.num_tokens = 0

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text has ended; None while it has not."""
        return self._stopper.finish_reason

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._texts)

    def add(self, chunk: Chunk) -> tuple[Token, ...]:
        """The tokens of a piece, up to where the text is cut."""
        made: list[Token] = []
        for told in chunk.tokens:
            if self.finish_reason is not None:
                break
            is_end = chunk.finish_reason == "eos_token" and told is chunk.tokens[-1]
            text = self._stopper.add(told.id, is_end=is_end)
            self.num_tokens += 1
            self._texts.append(text)
            if self._logprobs is None and not self._named:
                made.append(Token(told.id, text, None))
            else:
                top = told.best(self._logprobs or 0, self._named)
                made.append(Token(told.id, text, None, told.logprob, top))
        return tuple(made)

    def end(self, reason: FinishReason) -> tuple[Token, ...]:
        """What is left of the text where the server has ended it, and nothing here."""
        rest = self._stopper.end(reason)
        self._texts.append(rest)
        return (Token(-1, rest, None),) if rest else ()

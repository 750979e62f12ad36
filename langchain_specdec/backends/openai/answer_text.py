"""The text of an answer that comes in pieces of several tokens."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from langchain_specdec.backends.openai.chunks import Chunk, ChunkToken
from langchain_specdec.backends.openai.decoded_text import DecodedText
from langchain_specdec.backends.remote.answer import Answer
from langchain_specdec.backends.remote.frames import Frame
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishReason, Token
from langchain_specdec.models.private_tokenizer import PrivateTokenizer


class AnswerText:
    """Makes tokens with text of a server's pieces.

    Where the tokenizer is known and a piece has the ids of all its tokens, they are decoded, and the server's text is
    not looked at. Else a piece's text belongs to its last token.

    The last token is held back while something may still be added to its text: the end of an incomplete character, or
    what could have become a stop string.

    Args:
        request: What was asked for.
        tokenizer: The model's, where it is known and tokens are told.
        eos_token_ids: Tokens that end a text, as far as the server tells them.

    Attributes:
        is_counted: Whether each token of the text was told.
    """

    def __init__(
        self, request: CompletionRequest, tokenizer: PrivateTokenizer | None, eos_token_ids: Collection[int] = ()
    ) -> None:
        is_at_end = request.make_end_check() if request.make_end_check is not None else None
        self._answer = Answer(request.params, request.shown_specials, is_at_end, request.thoughts, counts_limit=False)
        self._decoded: DecodedText | None = None
        self._how = request, is_at_end, eos_token_ids
        self.is_counted = True
        self._params = request.params
        self._specials = tokenizer.special_texts if tokenizer is not None else {}
        self._tokenizer = tokenizer
        self._held: Token | None = None
        self._is_first = True

    @property
    def _text(self) -> Answer | DecodedText:
        return self._answer if self._decoded is None else self._decoded

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text has come to its end here, whatever the server sends; None where it has not."""
        return self._text.finish_reason

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return self._text.num_tokens

    @property
    def text(self) -> str:
        """All text so far."""
        return self._text.text

    @property
    def is_cut(self) -> bool:
        """Whether the text has come to its end here."""
        return self.finish_reason is not None

    def add(self, chunk: Chunk) -> tuple[Token, ...]:
        """The tokens of a piece that are whole, up to where the text is cut."""
        tokens = chunk.tokens
        self.is_counted = self.is_counted and all(token.id >= 0 for token in tokens)
        if self._is_first and tokens:
            self._is_first = False
            self._decoded = self._decoder_of(chunk)
        if self._decoded is not None:
            return self._decoded.add(chunk)
        made = [] if self._held is None else [self._held]
        self._held = None
        for told in tokens:
            # A piece without an id may be less than a token, and the server keeps to the limit.
            if told.id >= 0 and told.num_tokens + self._answer.num_tokens > self._params.max_new_tokens:
                # llama.cpp goes on to the end of a character.
                made += self._cut_at_limit(told)
                break
            made.append(self._token(told, chunk.text if told is tokens[-1] else ""))
            if self.is_cut:
                break
        if made and not self.is_cut and (self._params.stop or not made[-1].text):
            self._held = made.pop()
        return tuple(made)

    def end(self, reason: FinishReason) -> tuple[Token, ...]:
        """What was held back, with all text that is left."""
        if self._decoded is not None:
            return self._decoded.end(reason)
        rest = self._answer.end(reason)
        held, self._held = self._held, None
        if held is None:
            return (Token(-1, rest, None),) if rest else ()
        return (replace(held, text=held.text + rest),)

    def _decoder_of(self, chunk: Chunk) -> DecodedText | None:
        """What decodes the tokens, if they can be, by the first piece that has some."""
        is_known = all(token.id >= 0 and token.num_tokens == 1 for token in chunk.tokens)
        if self._tokenizer is None or not is_known or not chunk.decodes_here:
            return None
        request, is_at_end, eos_token_ids = self._how
        return DecodedText(request, self._tokenizer, is_at_end, eos_token_ids)

    def _token(self, told: ChunkToken, text: str) -> Token:
        special = self._specials.get(told.id)
        shown = text if special is None or text else special
        return self._answer.add(
            Frame(told.id, shown, special is not None, told.logprob, told.top, None, told.num_tokens)
        )

    def _cut_at_limit(self, told: ChunkToken) -> list[Token]:
        left = self._params.max_new_tokens - self._answer.num_tokens
        self._answer.num_tokens += left
        rest = self._answer.end("length", "\ufffd" if left else "")
        return [Token(told.id, rest, None)] if left or rest else []

"""The text of an answer that comes in pieces of several tokens."""

from __future__ import annotations

from dataclasses import replace

from langchain_specdec.backends.openai.chunks import Chunk, ChunkToken
from langchain_specdec.backends.remote.answer import Answer
from langchain_specdec.backends.remote.frames import Frame
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.events import FinishReason, Token
from langchain_specdec.engine.detokenizer import Detokenizer
from langchain_specdec.models.private_tokenizer import PrivateTokenizer


class AnswerText:
    """Makes tokens with text of a server's pieces.

    Where the tokenizer is known and a piece has the ids of all its tokens, they are decoded here, and the server's text
    is not looked at. Else a piece's text belongs to its last token.

    The last token is held back while something may still be added to its text: the end of an incomplete character, or
    what could have become a stop string.

    Args:
        answer: Cuts the text.
        request: What was asked for.
        tokenizer: The model's, where it is known and tokens are told.

    Attributes:
        answer: The same.
        is_counted: Whether each token of the text was told.
    """

    def __init__(self, answer: Answer, request: CompletionRequest, tokenizer: PrivateTokenizer | None) -> None:
        self.answer = answer
        self.is_counted = True
        self._params = request.params
        self._specials = tokenizer.special_texts if tokenizer is not None else {}
        self._tokenizer = tokenizer
        self._context: list[int] = []
        if tokenizer is not None and request.continues_prompt:
            prompt = request.prompt
            self._context = tokenizer.encode(prompt[-256:]) if isinstance(prompt, str) else [*prompt]
        self._decoder: Detokenizer | None = None
        self._held: Token | None = None
        self._is_first = True

    @property
    def is_cut(self) -> bool:
        """Whether the text has come to its end here, whatever the server sends."""
        return self.answer.finish_reason is not None

    def add(self, chunk: Chunk) -> tuple[Token, ...]:
        """The tokens of a piece that are whole, up to where the text is cut."""
        made = [] if self._held is None else [self._held]
        self._held = None
        for told, text in self._texts(chunk):
            if told.num_tokens + self.answer.num_tokens > self._params.max_new_tokens:
                # llama.cpp goes on to the end of a character.
                made += self._cut_at_limit(told)
                break
            made.append(self._token(told, text))
            if self.is_cut:
                break
        if made and not self.is_cut and (self._params.stop or not made[-1].text):
            self._held = made.pop()
        return tuple(made)

    def end(self, reason: FinishReason) -> tuple[Token, ...]:
        """What was held back, with all text that is left."""
        rest = self.answer.end(reason, "" if self._decoder is None else self._decoder.flush())
        held, self._held = self._held, None
        if held is None:
            return (Token(-1, rest, None),) if rest else ()
        return (replace(held, text=held.text + rest),)

    def _texts(self, chunk: Chunk) -> list[tuple[ChunkToken, str]]:
        tokens = chunk.tokens
        self.is_counted = self.is_counted and all(token.id >= 0 for token in tokens)
        is_known = all(token.id >= 0 and token.num_tokens == 1 for token in tokens)
        if self._is_first and tokens:
            self._is_first = False
            if self._tokenizer is not None and is_known and chunk.decodes_here:
                self._decoder = Detokenizer(self._tokenizer, self._context)
        if self._decoder is not None:
            return [(token, self._decoder.add(token.id)) for token in tokens]
        return [(token, chunk.text if token is tokens[-1] else "") for token in tokens]

    def _token(self, told: ChunkToken, text: str) -> Token:
        special = self._specials.get(told.id)
        shown = text if special is None or text else special
        return self.answer.add(
            Frame(told.id, shown, special is not None, told.logprob, told.top, None, told.num_tokens)
        )

    def _cut_at_limit(self, told: ChunkToken) -> list[Token]:
        left = self._params.max_new_tokens - self.answer.num_tokens
        self.answer.num_tokens += left
        rest = self.answer.end("length", "\ufffd" if left else "")
        return [Token(told.id, rest, None)] if left or rest else []

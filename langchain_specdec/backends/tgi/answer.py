"""What a TGI server answers, read as this package reads any completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langchain_specdec.backends.tgi.client import Frame
from langchain_specdec.completions.events import FinishReason, Token
from langchain_specdec.completions.stop_strings import StopText
from langchain_specdec.errors import BackendUnavailableError
from langchain_specdec.sampling.params import SamplingParams

__all__ = ["Answer", "ServerInfo"]


@dataclass(frozen=True)
class ServerInfo:
    """What `/info` tells, as far as it matters here; None where a server does not tell."""

    model_id: str
    model_sha: str | None
    version: str | None
    max_concurrent_requests: int
    max_stop_sequences: int | None
    max_total_tokens: int | None

    @classmethod
    def of(cls, info: Any, url: str) -> ServerInfo:
        """Read the answer of `/info`.

        Raises:
            BackendUnavailableError: It is not the answer of a TGI server.
        """
        if not isinstance(info, dict) or "model_id" not in info or "max_concurrent_requests" not in info:
            msg = f"The server at {url} is not a TGI server: its /info names no model_id and max_concurrent_requests."
            raise BackendUnavailableError(msg)
        return cls(
            model_id=str(info["model_id"]),
            model_sha=info.get("model_sha"),
            version=info.get("version"),
            max_concurrent_requests=int(info["max_concurrent_requests"]),
            max_stop_sequences=info.get("max_stop_sequences"),
            max_total_tokens=info.get("max_total_tokens"),
        )


class Answer:
    """The text of an answer as it comes: special tokens left out, cut at the first stop string."""

    def __init__(self, params: SamplingParams) -> None:
        self._stop_text = StopText(tuple(params.stop))
        self._logprobs = params.logprobs
        self._length = 0
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, frame: Frame) -> Token:
        """Take a token; sets `finish_reason` if it is the last."""
        self.num_tokens += 1
        text = "" if frame.is_special else frame.text
        if frame.end is not None:
            text = self._last_text(text, frame.end.text, frame.end.finish_reason)
        self._length += len(text)
        text = self._stop_text.add(text)
        if self._stop_text.is_found:
            # The server sees a stop string only where a token ends with it, and goes on past any other.
            self.finish_reason = "stop_sequence"
        elif frame.end is not None:
            self.finish_reason = frame.end.finish_reason
            text += self._stop_text.flush()
        if self._logprobs is None:
            return Token(frame.token_id, text, drafted=None)
        top = dict(frame.top[: self._logprobs])
        return Token(frame.token_id, text, None, frame.logprob, top)

    def _last_text(self, text: str, whole: str, reason: FinishReason) -> str:
        """Text that the last token releases: with it goes what was held back of an incomplete character."""
        rest = whole[self._length :]
        if reason == "eos_token":
            # It has no text of its own, even where the tokenizer does not call it special.
            return rest.removesuffix(text)
        return rest if rest.endswith(text) else text

"""What goes wrong between here and a server that speaks OpenAI's protocol, in the errors of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_specdec.backends.remote.failures import Failure, Failures
from langchain_specdec.completions.room import IN_PIECES
from langchain_specdec.errors import BackendUnavailableError, InvalidParameterError, PromptTooLongError

# vLLM's, SGLang's and llama.cpp's words, and OpenAI's code.
_TOO_LONG = (
    *("maximum context length", "exceeds the available context size", "context_length_exceeded"),
    *("longer than the model's context length", "longer than the maximum model length"),
    "cannot be greater than max_model_len",
    # This package's own.
    ", but max_length is ",
)


class OpenAIFailures(Failures):
    """What a server answers in OpenAI's form of errors, and what httpx raises."""

    kind = "server"
    whose = "in OpenAI's form"
    root_hint = "without /v1/completions or /v1/chat/completions, and see that it has these paths"

    def unreadable(self, path: str, why: str) -> Failure:
        """The failure of a short answer that cannot be of such a server."""
        msg = (
            f"The server at {self._url} does not speak OpenAI's protocol: its answer to {path} {self._quote(why)}. "
            f"Give the root address of a vLLM, SGLang, llama.cpp or other such server."
        )
        return Failure(BackendUnavailableError(msg).for_good())

    def of_error(self, error: object) -> Failure:
        """The failure that a server tells in its stream, where the status was a good one already."""
        said: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": error}
        message, code = str(said.get("message", said)), said.get("code")
        if isinstance(code, int) and 400 <= code < 600:
            return self.by_status(code, message)
        return self._failed(f"The server at {self._url} failed: {self._quote(message)}", message, is_transient=False)

    def _not_there(self, status: int, detail: str) -> Failure:
        if not detail:
            return super()._not_there(status, detail)
        msg = f"The server at {self._url} does not have what was asked for (HTTP {status}).{detail}"
        return Failure(BackendUnavailableError(msg).for_good())

    def _refused(self, message: str) -> InvalidParameterError:
        refused = f"The server at {self._url} refuses the request: {self._quote(message)}"
        if not any(words in message for words in _TOO_LONG):
            return InvalidParameterError(refused)
        before, in_pieces, _ = refused.partition(IN_PIECES)
        if in_pieces:
            # This package's own server says what to do.
            return PromptTooLongError(before + in_pieces)
        advice = f"Lower max_new_tokens, or shorten the prompt, or start the server with more room. {IN_PIECES}"
        return PromptTooLongError(f"{refused.rstrip('.')}. {advice}")

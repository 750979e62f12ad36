"""What goes wrong between here and a TGI server, in the errors of this package.

The two clients have different exceptions for the same things. So exceptions are told apart by what all of them have: an
HTTP status, TGI's `error_type` in the class's name, and the base classes of the HTTP libraries.
"""

from __future__ import annotations

from typing import Any

from langchain_specdec.backends.remote.failures import Failure, Failures, chain_of, error_text, no_http_of
from langchain_specdec.completions.room import IN_PIECES
from langchain_specdec.errors import (
    BackendUnavailableError,
    GenerationError,
    InvalidParameterError,
    PromptTooLongError,
    SpecDecError,
)
from langchain_specdec.grammar.grammar import Grammar

# Every refusal's message begins so; see InferError in TGI's router/src/infer/mod.rs.
_REFUSAL = "Input validation error: "
_TOO_LONG = ("`inputs` tokens + `max_new_tokens` must be", "`inputs` must have less than")
# A router's words, those of its gRPC library, where it does not reach the process with the model; see ClientError in
# TGI's backends/client/src/lib.rs.
_MODEL_GONE = (
    "Could not connect to Text Generation server: ",
    "Server error: transport error",
    "Server error: error trying to connect",
    "Server error: h2 protocol error",
    "Server error: tcp connect error",
)
# What follows are an exception's words in the process of the model.
_FAILURE = "Request failed during generation: Server error: "
# All of those by which interegular 0.3 and outlines-core 0.1, which TGI 3.3 makes grammars with, refuse one. A syntax
# error has none.
_GRAMMAR_WORDS = (
    *("is not implemented", "are not implemented", "Invalid Character-range: ", "Unknown group-extension: "),
    *("regex module unicode properties are not supported", "Can't multiply an FSM by ", "REFlags.", "'^'", "'$'"),
    *("lookbacks have to have fixed length", "Group can not have lookbacks/lookaheads", "attribute 'simplify'"),
    *("The vocabulary does not allow us to build a sequence", "maximum recursion depth exceeded"),
    *("max() arg is an empty sequence", "int too large"),
)
# The clients' names for TGI's error_type, and for a status where there is no error_type.
_REFUSED = ("ValidationError", "BadRequestError")
_FAILED = ("GenerationError", "IncompleteGenerationError", "UnknownError")
_STATUS = {
    "OverloadedError": 429,
    "RateLimitExceededError": 429,
    "ShardNotReadyError": 503,
    "ShardTimeoutError": 503,
    "NotFoundError": 404,
}


class TGIFailures(Failures):
    """What TGI's clients raise and its servers answer."""

    kind = "TGI server"
    whose = "TGI's"
    root_hint = "without /generate or /v1"

    def of(self, error: BaseException, grammar: Grammar | None = None) -> Failure:
        """The failure behind an exception; `grammar` is that of the request, if it has one."""
        failure = self._of(error)
        # Typed errors of the clients say what the server says; others may hold its answer.
        said = _body(error) or str(error)
        if grammar is None or type(failure.error) is not GenerationError or not _refuses_grammar(said):
            return failure
        reason = said.removeprefix(_FAILURE).strip()
        why = f"It says: {self._quote(reason)}" if reason else "It does not say why; most often it is no valid one."
        msg = f"The TGI server refuses the {grammar.kind} of the request. {why}"
        return Failure(InvalidParameterError(msg), is_transient=failure.is_transient, is_of_model=True)

    def _of(self, error: BaseException) -> Failure:
        if isinstance(error, Failure):
            return error
        if isinstance(error, SpecDecError):
            return Failure(error)
        name = type(error).__name__
        is_clients = type(error).__module__.startswith(("text_generation", "huggingface_hub"))
        no_http = no_http_of(error)
        if no_http is None and (status := _status(error)) is not None:
            is_typed = is_clients and name in (*_REFUSED, *_FAILED, *_STATUS)
            return self.by_status(status, str(error) if is_typed else _body(error))
        if is_clients and name in _REFUSED:
            return Failure(self._refused(str(error)))
        if is_clients and name in _STATUS:
            return self.by_status(_STATUS[name], str(error))
        if is_clients and name in _FAILED:
            message = f"The TGI server at {self._url} failed to complete the request: {self._quote(str(error), 200)}"
            return self._failed(message, str(error), is_transient=name == "GenerationError")
        if name == "OfflineModeIsEnabled":
            msg = (
                f"huggingface_hub refuses to reach {self._url}: it refuses every address while HF_HUB_OFFLINE is set. "
                f"Unset it, or use the other client, which takes no notice: client='text-generation'."
            )
            return Failure(BackendUnavailableError(msg).for_good())
        return self._of_connection(error, no_http)

    def _failed(self, failed: str, said: str, *, is_transient: bool) -> Failure:
        """See `Failures`; where the process of the model has ended, it may be started again."""
        if not any(words in said for words in _MODEL_GONE):
            return Failure(GenerationError(failed), is_transient=is_transient)
        msg = (
            f"{failed.rstrip('.')}. So the process that runs its model has ended. If the server is started again, "
            f"max_retries=6 waits half a minute for it, and each one more twice as long."
        )
        return Failure(BackendUnavailableError(msg), is_transient=True)

    def _refused(self, message: str) -> InvalidParameterError:
        message = message.removeprefix(_REFUSAL)
        refused = f"The TGI server refuses the request: {self._quote(message)}"
        if not message.startswith(_TOO_LONG):
            return InvalidParameterError(refused)
        advice = f"Lower max_new_tokens, or shorten the prompt, or {larger_server()}. {IN_PIECES}"
        return PromptTooLongError(f"{refused.rstrip('.')}. {advice}")


def larger_server(num_tokens: int | None = None) -> str:
    """How to start a TGI server with room for so many tokens of a prompt and its completion, or for more."""
    if num_tokens is None:
        return "start the server with a larger --max-total-tokens (launch_tgi: max_total_tokens=)"
    return f"start the server with --max-total-tokens {num_tokens} or more (launch_tgi: max_total_tokens={num_tokens})"


def _refuses_grammar(said: str) -> bool:
    """Whether a failure of the model is a grammar that cannot be made."""
    reason = said.removeprefix(_FAILURE.rstrip()).strip()
    return said.startswith(_FAILURE.rstrip()) and (not reason or any(words in reason for words in _GRAMMAR_WORDS))


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer that was refused: of the exception, of what it came from, or of who raised it."""
    for source in chain_of(error):
        response = getattr(source, "response", None)
        status = getattr(response, "status_code", None) or getattr(source, "status", None)
        if isinstance(status, int) and status != 200:
            return status
    # text_generation keeps neither status nor response, and calls a 403 a shard that is not ready.
    trace = error.__traceback__
    while trace is not None:
        status = getattr(trace.tb_frame.f_locals.get("resp"), "status", None)
        if isinstance(status, int) and status != 200:
            return status
        trace = trace.tb_next
    return None


def _body(error: BaseException) -> str:
    """What the answer says, where the client kept it."""
    for source in chain_of(error):
        payload: Any = getattr(source, "response_error_payload", None)
        if isinstance(payload, dict):
            return str(payload.get("error", ""))
        try:
            text = getattr(getattr(source, "response", None), "text", None)
        except Exception:  # an answer that was streamed and not read
            return ""
        if isinstance(text, str):
            return error_text(text)
    return ""

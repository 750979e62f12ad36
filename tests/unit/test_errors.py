"""The errors as others know them: Python's classes, LangChain's, copies, and what may be tried again."""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core import exceptions

from langchain_specdec import errors
from langchain_specdec.backends.remote.failures import Failure
from langchain_specdec.backends.tgi.errors import TGIFailures as Failures
from langchain_specdec.chat.answer_parsers import UnreadableAnswerError
from langchain_specdec.errors import BackendUnavailableError, GenerationError, SpecDecError

# LangChain's class, Python's class, and whether the same call may succeed later.
KINDS = {
    "AuthenticationError": ("ModelAuthenticationError ModelPermissionDeniedError", PermissionError, False),
    "BackendUnavailableError": ("ModelConnectionError", ConnectionError, True),
    "CompletionTimeoutError": ("ModelTimeoutError", TimeoutError, True),
    "EngineClosedError": ("ModelError", RuntimeError, False),
    "GenerationError": ("ModelAPIError", RuntimeError, True),
    "InvalidParameterError": ("ModelInvalidRequestError", ValueError, False),
    "MalformedAnswerError": ("ModelAPIError", RuntimeError, False),
    "MissingDependencyError": ("ModelError", ImportError, False),
    "ModelLoadError": ("ModelNotFoundError", OSError, False),
    "OverloadedError": ("ModelRateLimitError", RuntimeError, True),
    "PromptTooLongError": ("ContextOverflowError ModelInvalidRequestError", ValueError, False),
    "RequestTimeoutError": ("ModelTimeoutError", TimeoutError, True),
    "SpecDecError": ("ModelError", Exception, False),
    "UnsupportedModelError": ("ModelError", ValueError, False),
}
OF_LANGCHAIN = {name for names, _, _ in KINDS.values() for name in names.split()}


@contextmanager
def langchain_with(names: set[str]) -> Iterator[Any]:
    """The errors of this package over a LangChain that has these classes of errors and no others."""
    core = types.ModuleType("langchain_core.exceptions")
    core.LangChainException = exceptions.LangChainException  # type: ignore[attr-defined]
    for name in names:
        # As in langchain-core 1.5, which has one of them without its base.
        setattr(core, name, type(name, (exceptions.LangChainException,), {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["langchain_core"], "exceptions", core)
        spec = importlib.util.spec_from_file_location("langchain_specdec_errors_of_old", errors.__file__)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def _sent(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error))  # noqa: S301


def test_every_error_is_in_the_table() -> None:
    defined = {name for name in errors.__all__ if issubclass(getattr(errors, name), SpecDecError)}
    assert defined == set(KINDS)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_error_is_one_of_python_and_one_of_langchain(name: str) -> None:
    of_langchain, of_python, is_retryable = KINDS[name]
    error = getattr(errors, name)("The prompt is too long.")
    assert isinstance(error, SpecDecError)
    assert isinstance(error, of_python)
    assert getattr(error, "is_retryable") is is_retryable  # noqa: B009
    for each in of_langchain.split():
        kind = getattr(exceptions, each, None)
        assert kind is None or isinstance(error, kind)


@pytest.mark.skipif(not hasattr(exceptions, "ModelError"), reason="langchain-core has them since 1.6")
def test_langchain_says_the_same_of_what_may_be_tried_again() -> None:
    for name, (of_langchain, _, is_retryable) in KINDS.items():
        if name != "MalformedAnswerError":
            assert {getattr(exceptions, each).is_retryable for each in of_langchain.split()} == {is_retryable}


@pytest.mark.parametrize("has", [set(), {"ContextOverflowError"}])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_older_langchain_takes_nothing_away(has: set[str], name: str) -> None:
    _, of_python, is_retryable = KINDS[name]
    with langchain_with(has) as old:
        error: Any = getattr(old, name)("The prompt is too long.")
        assert isinstance(error, old.SpecDecError)
        assert isinstance(error, of_python)
        assert getattr(error, "is_retryable") is is_retryable  # noqa: B009
        assert str(error) == "The prompt is too long."
        for each in has:
            assert isinstance(error, getattr(old.exceptions, each)) is (name == "PromptTooLongError")


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_error_survives_copies_and_other_processes(name: str) -> None:
    error = getattr(errors, name)("The prompt is too long.").for_good()
    for other in (_sent(error), copy.copy(error)):
        assert type(other) is type(error)
        assert (str(other), other.is_retryable) == ("The prompt is too long.", False)


def test_an_error_of_a_parser_keeps_its_words_in_copies() -> None:
    error = UnreadableAnswerError("It is no JSON.", llm_output="{")
    for other in (_sent(error), copy.copy(error)):
        assert (str(other), other.llm_output) == (str(error), "{")
    assert not error.is_retryable


def test_one_error_for_good_says_nothing_of_others() -> None:
    assert not GenerationError("The model computed NaN.").for_good().is_retryable
    assert GenerationError("Out of memory.").is_retryable
    assert GenerationError.is_retryable


@pytest.mark.parametrize(
    ("status", "kind", "is_retryable"),
    [
        (401, "AuthenticationError", False),
        (403, "AuthenticationError", False),
        (404, "BackendUnavailableError", False),
        (302, "BackendUnavailableError", False),
        (422, "InvalidParameterError", False),
        (429, "OverloadedError", True),
        (500, "GenerationError", True),
        (503, "BackendUnavailableError", True),
        (200, "GenerationError", False),
    ],
)
def test_a_status_of_a_server_tells_whether_to_try_again(status: int, kind: str, is_retryable: bool) -> None:
    failure = Failures("http://127.0.0.1:8080", None, 1.0).by_status(status, "")
    for error in (failure.error, failure.copy().error):
        assert (type(error).__name__, error.is_retryable) == (kind, is_retryable)


@pytest.mark.parametrize(
    ("error", "is_retryable"),
    [(ConnectionRefusedError("no"), True), (ConnectionResetError("no"), True), (ValueError("no frame"), False)],
)
def test_a_connection_tells_whether_to_try_again(error: Exception, is_retryable: bool) -> None:
    assert Failures("http://127.0.0.1:8080", None, 1.0).of(error).error.is_retryable is is_retryable


def test_a_server_of_another_kind_stays_one() -> None:
    failures = Failures("http://127.0.0.1:8080", None, 1.0)
    assert not failures.unreadable("/info", "is no JSON").error.is_retryable
    assert failures.lost().error.is_retryable
    assert Failure(BackendUnavailableError("It has another model by now. Call again.")).error.is_retryable

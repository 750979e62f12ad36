"""Keywords of connections to servers that speak OpenAI's protocol, for editors and type checkers."""

# What each is, `OpenAIBackend` says; tests/unit/langchain/test_keywords.py compares the names and the types.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from pydantic import SecretStr


class OpenAIOptions(TypedDict, total=False):
    """Keywords of `OpenAIBackend`."""

    api_key: str | SecretStr | None
    model: str | None
    read_timeout: float | None
    max_retries: int | None
    max_concurrency: int | None
    tokenizer: Any

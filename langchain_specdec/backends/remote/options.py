"""How a server is reached: its address, its key and the patience with it, checked before anything is sent."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import urlsplit

from langchain_specdec.errors import InvalidParameterError

READ_TIMEOUT = 120.0
"""Most seconds to wait for the next token, unless another number is given."""
MAX_RETRIES = 2
"""How often a request is sent again, unless another number is given."""

_HUGGING_FACE_HOSTS = ("huggingface.co", "hf.co", "huggingface.cloud", "hf.space")


def checked_url(base_url: object) -> str:
    """The root address without a slash at its end.

    Raises:
        InvalidParameterError: It is not the root address of a server, or holds a password.
    """
    if not isinstance(base_url, str):
        msg = f"base_url must be a string such as 'http://127.0.0.1:8080', got {base_url!r}."
        raise InvalidParameterError(msg)
    parts = urlsplit(base_url.strip())
    try:
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_valid = False
    if parts.username is not None or parts.password is not None:
        msg = "base_url must not hold a user or a password. Give the server's key as api_key."
        raise InvalidParameterError(msg)
    if not is_valid or parts.query or parts.fragment:
        msg = f"base_url must be the root address of a server, such as 'http://127.0.0.1:8080', got {base_url!r}."
        raise InvalidParameterError(msg)
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    for ending in ("/generate", "/generate_stream", "/v1", "/v1/chat/completions", "/v1/completions"):
        if url.endswith(ending):
            msg = f"base_url must be the server's root address: give {url.removesuffix(ending)!r} without {ending}."
            raise InvalidParameterError(msg)
    return url


def checked_key(api_key: Any, url: str) -> str | None:
    """The key as a plain string; a pydantic `SecretStr` is opened.

    Raises:
        InvalidParameterError: It cannot be sent, or is a Hugging Face token and the host is not Hugging Face's.
    """
    if hasattr(api_key, "get_secret_value"):
        api_key = api_key.get_secret_value()
    if api_key is None:
        return None
    if not isinstance(api_key, str) or not api_key or not api_key.isprintable() or not api_key.isascii():
        msg = "api_key must be a non-empty string of plain characters, or None."
        raise InvalidParameterError(msg)
    host = urlsplit(url).hostname or ""
    is_theirs = any(host == name or host.endswith(f".{name}") for name in _HUGGING_FACE_HOSTS)
    if api_key.startswith("hf_") and not is_theirs:
        msg = (
            f"api_key is a Hugging Face token, and {host} is not a host of Hugging Face: it would give your account "
            f"away. Give the key that the server was started with (--api-key), or none."
        )
        raise InvalidParameterError(msg)
    return api_key


def checked_options(read_timeout: Any, max_retries: Any, max_concurrency: Any) -> tuple[float, int, int | None]:
    """The three, with the defaults in place of None.

    Raises:
        InvalidParameterError: One is out of its range.
    """
    read_timeout = READ_TIMEOUT if read_timeout is None else read_timeout
    max_retries = MAX_RETRIES if max_retries is None else max_retries
    is_number = isinstance(read_timeout, (int, float)) and not isinstance(read_timeout, bool)
    if not is_number or not math.isfinite(read_timeout) or read_timeout <= 0:
        msg = f"read_timeout must be a number of seconds above 0, got {read_timeout!r}."
        raise InvalidParameterError(msg)
    if not isinstance(max_retries, int) or isinstance(max_retries, bool) or not 0 <= max_retries <= 10:
        msg = f"max_retries must be a whole number from 0 to 10, got {max_retries!r}."
        raise InvalidParameterError(msg)
    if max_concurrency is not None and (
        not isinstance(max_concurrency, int) or isinstance(max_concurrency, bool) or max_concurrency < 1
    ):
        msg = f"max_concurrency must be a whole number from 1, or None for the server's limit, got {max_concurrency!r}."
        raise InvalidParameterError(msg)
    return float(read_timeout), max_retries, max_concurrency

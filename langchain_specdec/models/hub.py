"""What the Hugging Face Hub has to say of a model, in one request and a few seconds. PyTorch is not imported."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public by its documentation
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_HUB = "https://huggingface.co"
# The library's own 10 seconds, for each file and repeated, are long where a network swallows what is sent.
_SECONDS = 5.0
# A command line and the loader look for a model, its draft model and its adapter one after the other: the Hub is asked
# once whether it is there, and waited for once.
_KNOWN_SECONDS = 60.0
# By the Hub's address: until when it is known, and whether it is out of reach.
_known: dict[str, tuple[float, bool]] = {}
_MOST_LISTED = 12
EXAMPLE = "'HuggingFaceTB/SmolLM2-135M-Instruct'"
GGUF_ADVICE = (
    "Give the path of a GGUF file, the folder that holds one, or one on the Hugging Face Hub as 'owner/name:file.gguf'."
)
CONFIG_FILES = ("config.json", "adapter_config.json")
"""One of these is in every model and adapter."""


def is_here(source: str, revision: str | None = None) -> bool:
    """Whether nothing has to be downloaded, as far as one can tell without asking the Hub."""
    try:
        if source == "embedded" or Path(source).exists():
            return True
        if (on_hub := hub_file(source)) is not None:
            return downloaded_file(*on_hub, revision) is not None
        return downloaded(source, revision) is not None
    except (HFValidationError, OSError):
        return True  # it is no id, or must not be looked at, so nothing will be downloaded


def downloaded(name: str, revision: str | None = None) -> Path | None:
    """The folder that a model of the Hub was downloaded to; None where it was not."""
    # Where transformers 4 looks, too.
    for cache in (None, os.environ.get("TRANSFORMERS_CACHE") or None):
        for file in CONFIG_FILES:
            if isinstance(path := try_to_load_from_cache(name, file, cache_dir=cache, revision=revision), str):
                return Path(path).parent
    return None


def hub_file(name: str) -> tuple[str, str] | None:
    """The id and the file of a name such as `owner/name:file.gguf`; None where it is no such name."""
    match = re.fullmatch(r"((?:[\w.-]+/)?[\w.-]+):([^:\\\n]+\.gguf)", name, re.IGNORECASE)
    return None if match is None or match[2].startswith(("/", ".")) or len(match[1]) == 1 else (match[1], match[2])


def downloaded_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """Where a file of the Hub was downloaded to; None where it was not."""
    path = try_to_load_from_cache(name, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def is_out_of_reach(name: str, revision: str | None, token: str | bool | None) -> bool:
    """Whether the Hub does not answer, so that a model can only be loaded as it was downloaded before."""
    known_until, is_away = _known.get(constants.ENDPOINT, (0.0, False))
    if time.monotonic() < known_until:
        return is_away
    is_away = False
    try:
        _head(name, revision, token)
    except (HfHubHTTPError, EntryNotFoundError, LocalTokenNotFoundError, UnicodeEncodeError):
        pass  # an answer, or a token that is wrong, with which transformers deals
    except Exception as error:
        is_away = True
        _logger.info(
            "%s cannot be reached (%s): %s is loaded as it was downloaded before.",
            hub_address(), unreachable(error), name,
        )  # fmt: skip
    _known[constants.ENDPOINT] = time.monotonic() + _KNOWN_SECONDS, is_away
    return is_away


def obstacle(name: str, revision: str | None, token: str | bool | None, file: str | None = None) -> str | None:
    """Why an id, or a file of it, that was not downloaded cannot be loaded from the Hub.

    Args:
        name: The id.
        revision: Its revision.
        token: Access token.
        file: The file; None: a model that transformers reads.

    Returns:
        The reason in words; None where one request tells of none.
    """
    shown = name if file is None else f"{name}:{file}"
    shown = shown if revision is None else f"{shown} (revision {revision!r})"
    if constants.HF_HUB_OFFLINE:
        wanted = name if file is None else f"{name} {file}"
        return (
            f"Cannot load {shown}: it is not on this machine, and HF_HUB_OFFLINE is set, so the Hugging Face Hub is "
            f"not asked. Unset it, download the model before (hf download {wanted}), or give a local folder."
        )
    try:
        return _of_answer(name, shown, revision, token, file)
    except GatedRepoError:
        return (
            f"Cannot load {shown}: access to it has to be granted. Accept its conditions on "
            f"{hub_address()}/{name}, then run hf auth login, or set HF_TOKEN to the access token of that account."
        )
    except RevisionNotFoundError:
        return f"Cannot load {name}: there is no revision {revision!r} of it. Give a branch, a tag or a commit of it."
    except RepositoryNotFoundError:
        return (
            f"Cannot load {name}: there is no such model on {hub_address()}, or it is private. Is the id spelt "
            f"right? For a private one, run hf auth login, or set HF_TOKEN to a valid access token."
        )
    except LocalTokenNotFoundError:
        return (
            f"Cannot load {shown}: token=True takes the access token that is logged in, and there is none. Run hf auth "
            f"login, set HF_TOKEN to an access token, or give one as token=."
        )
    except UnicodeEncodeError:
        return (
            f"Cannot load {shown}: the access token (token=, or HF_TOKEN) holds a character that no token has. Copy it "
            f"again from {hub_address()}/settings/tokens."
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        advice = "Try again later." if constants.ENDPOINT == _HUB else "Is HF_ENDPOINT the address of a Hub?"
        return f"Cannot load {shown}: {hub_address()} answers with status {status}. {advice}"
    except Exception as error:
        return (
            f"Cannot load {shown}: it is not on this machine, and {hub_address()} cannot be reached: "
            f"{unreachable(error)}. Download it where there is a network, or give a local folder."
        )


def unreachable(error: Exception) -> str:
    """Why the Hub cannot be reached, in a few words that hold no address but its own."""
    text = f"{type(error).__name__} {error}".lower()
    if "proxy" in text:
        return "the proxy does not let it through (HTTPS_PROXY, HTTP_PROXY)"
    if isinstance(error, TimeoutError) or "timeout" in text or "timed out" in text:
        return "it does not answer"
    if any(words in text for words in ("name or service", "name resolution", "getaddrinfo", "nodename", "to resolve")):
        return "its name is not found, as without a network"
    if "certificate" in text or "ssl" in text:
        return "its certificate is not trusted here"
    if "refused" in text:
        return "the connection is refused"
    return f"there is no connection ({type(error).__name__})"


def within(seconds: float, ask: Callable[[], _T]) -> _T:
    """What a function returns or raises; a name server may take longer than any time-out of a request.

    Raises:
        TimeoutError: It did not end in that many seconds. It is left to a thread that nobody waits for.
    """
    answers: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="specdec-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        msg = f"no answer within {seconds:g} seconds"
        raise TimeoutError(msg)
    return answers[0]


def hub_address() -> str:
    """Where the Hub is, as it may be shown."""
    return without_login(constants.ENDPOINT)


def without_login(address: str) -> str:
    """An address that may be shown: without the key that may stand in front of its host, and without its query."""
    return re.sub(r"//[^/]*@", "//***@", address).partition("?")[0]


def _of_answer(name: str, shown: str, revision: str | None, token: str | bool | None, file: str | None) -> str | None:
    """What the Hub's answer says against an id. Raises what the request raises."""
    try:
        _head(name, revision, token, file or CONFIG_FILES[0])
    except EntryNotFoundError:
        pass
    else:
        return None
    found = _ask("get", f"api/models/{name}/revision/{quote(revision or 'main', safe='')}", token).json()
    files = [entry["rfilename"] for entry in found.get("siblings") or ()]
    given = sorted(name for name in files if name.lower().endswith(".gguf"))
    listed = f"{', '.join(given[:_MOST_LISTED])}{', ...' * (len(given) > _MOST_LISTED)}"
    if file is not None:
        return f"Cannot load {shown}: there is no such file. " + (
            f"Its GGUF files are {listed}." if given else f"{name} has no GGUF files: give it itself as the model."
        )
    if "adapter_config.json" in files:
        return None
    if given:
        return f"Cannot load {shown}: it holds GGUF files. Name one, such as {f'{name}:{given[0]}'!r}: {listed}."
    return (
        f"Cannot load {shown}: it has no config.json, so it holds no model that transformers reads. Give another one."
    )


def _head(name: str, revision: str | None, token: str | bool | None, file: str = CONFIG_FILES[0]) -> None:
    """Ask the Hub for a file of a model. Raises what the request raises."""
    _ask("head", f"{name}/resolve/{quote(revision or 'main', safe='')}/{quote(file)}", token)


def _ask(method: str, path: str, token: str | bool | None) -> Any:
    """One request through the library's session, with its proxies and certificates, but without its repetitions."""
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else _SECONDS

    def ask() -> Any:
        headers = build_hf_headers(token=token)  # may ask for something itself
        return getattr(get_session(), method)(f"{constants.ENDPOINT}/{path}", headers=headers, timeout=seconds)

    response = within(seconds + 1, ask)
    hf_raise_for_status(response)
    return response

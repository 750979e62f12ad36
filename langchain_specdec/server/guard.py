"""Who may reach the server: names it answers to, pages in browsers, and the API key."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

# What tells no more than that a server is there.
_OPEN = frozenset({"/", "/health", "/ping", "/info", "/metrics", "/openapi.json", "/api-doc/openapi.json"})
_CROSS = frozenset({"cross-site", "same-site"})

Refuse = Callable[[str, int, str], Response]
"""The answer of a path to a status and a message, in the form that clients of the path read."""


class Guard:
    """Lets through what may reach the server; an ASGI middleware.

    A page in a browser reaches servers of its user's machine in two ways: by a request across origins, which has the
    header `Origin`, and by a name of its own that it has point here (DNS rebinding), which the header `Host` tells. An
    address cannot be made to point elsewhere, so addresses are let through.

    Args:
        app: What serves.
        names: Names that the server answers to, beside `localhost` and addresses.
        api_keys: One of them is what all but requests for health and figures have to carry, where there are any.
        is_shared: Whether what the engine keeps of earlier requests is shared between keys.
        refuse: Makes the answers.
    """

    def __init__(
        self, app: ASGIApp, *, names: Collection[str], api_keys: Sequence[str], is_shared: bool, refuse: Refuse
    ) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}
        # The name of its namespace for each key.
        self._namespaces = {
            f"Bearer {key}".encode(): "" if is_shared else str(place) for place, key in enumerate(api_keys)
        }
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope)
        app = self._app if problem is None else self._refuse(scope["path"], *problem)
        # The server ends, and the time of those that run has passed: the client sees an answer that breaks off.
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_known(host):
            return 403, "This server does not answer to that name in the header Host (specdec serve --allowed-host)."
        # Programs in front of the server might take the rest of such a body for another request.
        if "transfer-encoding" in headers and "content-length" in headers:
            return 400, "A request has Content-Length or Transfer-Encoding, not both."
        if _is_foreign(headers.get("origin"), host) or headers.get("sec-fetch-site") in _CROSS:
            return 403, "This server does not answer to pages of other sites in a browser."
        needs_key = scope["path"] not in _OPEN or scope["method"] not in ("GET", "HEAD")
        namespace = self._namespace(headers)
        if needs_key and namespace is None:
            return 401, "The API key is missing or wrong: Authorization: Bearer KEY."
        scope.setdefault("state", {})["namespace"] = namespace or ""
        return None

    def _namespace(self, headers: Headers) -> str | None:
        """Whose request it is; None where it has no key that is known."""
        if not self._namespaces:
            return ""
        given = headers.get("authorization", "").encode("utf-8", "surrogateescape")
        # All are looked at, each for as long for any two texts of one length.
        found = [name for known, name in self._namespaces.items() if hmac.compare_digest(given, known)]
        return found[0] if found else None

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _is_foreign(origin: str | None, host: str) -> bool:
    """Whether a page of another site asks."""
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        return True

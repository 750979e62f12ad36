"""Faults that the stand-in can be asked for, `name[:key=value]...`, as in `drop:after=3:times=2`.

On the command line (`--fault`), or while it runs (`POST /standin/faults`, a JSON list).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

START_FAULTS = {
    "slow-start": "takes `seconds` (default 3) longer to answer",
    "crash-loading": "ends with exit code 1 after `seconds` (default 0) instead of answering",
}
REQUEST_FAULTS = {
    "crash": "the whole server dies after `after` tokens of this request, as after a CUDA fault",
    "drop": "the connection is reset after `after` tokens",
    "cut": "the answer ends after `after` tokens, cleanly but without its last frame",
    "silence": "nothing more is sent after `after` tokens",
    "generation": "the model fails after `after` tokens: 424, or an error frame",
    "incomplete": "the model stops after `after` tokens without having finished: 500, or an error frame",
    "overshoot": "`after` tokens more than `max_new_tokens`, as where TGI makes long texts in pieces",
    "overloaded": "429, or an error frame",
    "garbage": "a frame that is no JSON after `after` tokens",
    "split-bytes": "every byte of the answer travels alone, so characters are split",
    "break-grammar": "from the token behind `after` on, the grammar is not looked at, as under TGI's speculation",
    "slow": "waits `seconds` (default 0.05) before each token",
    "batch-seeds": "a seed counts for nothing beside other requests, as in TGI's batches",
    "empty-end": "the last frame has no text of the whole, as may be where its token is half a character",
    "one-packet": "the tokens of a forward pass travel in one packet, as they mostly do",
    "dead-shard": "the model's process is gone and the router is not: 424, or an error frame, after `after` tokens",
    "bad-gateway": "502 with a page of HTML, as from a proxy",
    "unavailable": "503 with a page of HTML, as from a proxy",
    "plain-text": "422 in plain text, as for a body of the wrong types",
    "unhealthy": "503 from /health",
    "no-info": "404 from /info, as from a server of another kind",
    "slow-info": "waits `seconds` (default 1) before it answers /info",
    "no-metrics": "500 from /metrics",
    "quoted": "the log quotes the request, as in the traceback of a regex that does not compile",
    "no-tokenize": "500 from /tokenize",
}
# These concern a route of their own and stay until they are taken back.
ROUTE_FAULTS = {"unhealthy", "no-info", "slow-info", "no-metrics", "no-tokenize"}


@dataclass
class Fault:
    """One fault.

    Attributes:
        name: What goes wrong.
        after: Tokens that the request still gets.
        times: How many requests it hits, 0 for all.
        skip: How many requests pass before it hits one.
        seconds: How long, where the fault has a length.
    """

    name: str
    after: int = 0
    times: int = 0
    skip: int = 0
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read `name[:key=value]...`; ValueError if that is unknown."""
        name, *options = text.split(":")
        if name not in START_FAULTS and name not in REQUEST_FAULTS:
            msg = f"unknown fault {name!r}; there are {', '.join([*START_FAULTS, *REQUEST_FAULTS])}"
            raise ValueError(msg)
        kinds = {"after": int, "times": int, "skip": int, "seconds": float}
        pairs = dict(option.split("=") for option in options)
        return cls(name, **{key: kinds[key](value) for key, value in pairs.items()})


_in_force: ContextVar[Mapping[str, Fault]] = ContextVar("faults")


def in_force() -> Mapping[str, Fault]:
    """The faults that hit the request that is answered here, by name."""
    return _in_force.get({})


class Faults:
    """The faults in force."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = list(faults)

    def replace(self, texts: list[str]) -> None:
        """Take these, and none of the earlier ones."""
        self._faults = [Fault.parse(text) for text in texts]

    def of_start(self, name: str) -> Fault | None:
        """The fault of that name, if asked for."""
        return next((fault for fault in self._faults if fault.name == name), None)

    def has(self, name: str) -> bool:
        """Whether a fault of a route is in force."""
        return self.of_start(name) is not None

    def take(self) -> dict[str, Fault]:
        """The faults that hit the request that begins now, by name; they are `in_force` for what answers it."""
        taken: dict[str, Fault] = {}
        for fault in list(self._faults):
            if fault.name in START_FAULTS or fault.name in ROUTE_FAULTS:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            taken[fault.name] = fault
            if fault.times == 1:
                self._faults.remove(fault)
            elif fault.times:
                fault.times -= 1
        _in_force.set(taken)
        return taken

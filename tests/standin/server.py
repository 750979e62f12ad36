"""A stand-in for Text Generation Inference 3.3, for tests: the server's own routes, TGI's rules, faults on request.

As a process: `python -m tests.standin.server --port 8080 --model-id embedded --speculate 3 --fault drop:after=3`; with
`--model-id fake` it needs no model and starts at once. In a thread of a test: `ServerThread(...)`. Faults can be asked
for while it runs, too: `POST /standin/faults`, a JSON list.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

from starlette.applications import Starlette

from langchain_specdec.server.guard import Guard
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.settings import ServerSettings
from langchain_specdec.server.tgi.dialect import Dialect
from langchain_specdec.server.tgi.errors import kept_out
from langchain_specdec.server.tgi.fields import Limits
from langchain_specdec.server.tgi.routes import TGIRoutes
from tests.standin.app_server import AppServer, AppThread, bound
from tests.standin.faults import Fault, Faults
from tests.standin.faulty_app import FaultyApp
from tests.standin.inference import Shard, TokenEnd
from tests.standin.models import EngineModel, FakeModel, Model


class StandIn:
    """The server's application, and what tests look at.

    Args:
        model: Where tokens come from; it is not closed.
        limits: What the server takes.
        api_key: Key that POST routes ask for.
        faults: What goes wrong.
        on_crash: Called by the fault `crash`; the default breaks all answers.
        disable_grammar_support: Refuse grammars, as with TGI's option of that name.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits,
        *,
        api_key: str | None = None,
        faults: list[Fault] | None = None,
        on_crash: Callable[[AppServer], None] = AppServer.abort_answers,
        disable_grammar_support: bool = False,
    ) -> None:
        self.model = model
        self.faults = Faults(faults or [])
        self._shard = Shard(
            model,
            limits.max_total_tokens,
            limits.max_concurrent_requests,
            takes_grammars=not disable_grammar_support,
        )
        settings = ServerSettings(api_key=api_key, max_waiting=0)
        self._served = ServedModel(cast("Any", self._shard), settings)
        dialect = Dialect(limits, "text-generation-router", "3.3.6-dev0", 2, TokenEnd)
        routes = Starlette(routes=TGIRoutes(self._served, dialect).routes())
        self._faulty = FaultyApp(routes, self.faults, lambda: self.num_running, on_crash)
        self.app = Guard(
            self._faulty,
            names=[],
            api_keys=settings.api_keys,
            is_shared=True,
            refuse=lambda _, status, message: kept_out(status, message),
        )

    @property
    def counts(self) -> Counter[str]:
        """How often it was asked for health, `/info` and figures."""
        return self._faulty.counts

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Paths, headers and bodies of what was posted."""
        return self._faulty.requests

    @property
    def num_running(self) -> int:
        """Requests that run."""
        return self._served.admission.num_inside

    @property
    def max_running(self) -> int:
        """Most that ran at a time."""
        return self._faulty.max_running

    @property
    def is_model_dead(self) -> bool:
        """Whether a request has ended the model's process."""
        return self._shard.is_dead

    def figure(self, name: str) -> float:
        """A figure of `/metrics` without labels."""
        samples = [sample for metric in self._served.metrics.collect() for sample in metric.samples]
        return next(sample.value for sample in samples if sample.name == name)


class ServerThread(AppThread):
    """The stand-in in a thread of this process, on a free port, until `close`.

    Args:
        model: Where tokens come from; it is not closed.
        limits: What the server takes.
        port: Port to listen on, 0 for a free one.
        options: Passed to `StandIn`.
    """

    def __init__(self, model: Model, limits: Limits | None = None, *, port: int = 0, **options: Any) -> None:
        self.standin = StandIn(model, limits or Limits(), **options)
        super().__init__(self.standin.app, port=port)

    def set_faults(self, *faults: str) -> None:
        """Let these faults happen from now on, and no others."""
        self.standin.faults.replace(list(faults))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.standin.server", description=__doc__)
    parser.add_argument("--hostname", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--model-id", default="fake")
    parser.add_argument("--speculate", type=int, default=0)
    parser.add_argument("--disable-grammar-support", action="store_true")
    parser.add_argument("--fault", action="append", default=[], type=Fault.parse, metavar="NAME[:KEY=VALUE]...")
    for field in fields(Limits):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=None)
    return parser


async def _serve_process(options: argparse.Namespace) -> None:
    faults = Faults(options.fault)
    if slow := faults.of_start("slow-start"):
        await asyncio.sleep(slow.seconds if slow.seconds is not None else 3.0)
    if crash := faults.of_start("crash-loading"):
        await asyncio.sleep(crash.seconds or 0.0)
        sys.exit("torch.OutOfMemoryError: CUDA out of memory")
    is_fake = options.model_id == "fake"
    model: Model = FakeModel(options.speculate) if is_fake else EngineModel(options.model_id, options.speculate)
    given = {f.name: getattr(options, f.name) for f in fields(Limits) if getattr(options, f.name) is not None}
    given.setdefault("max_total_tokens", model.max_positions)
    given.setdefault("max_input_tokens", given["max_total_tokens"] - 1)
    standin = StandIn(
        model,
        Limits(**given),
        api_key=os.environ.get("API_KEY"),
        faults=options.fault,
        on_crash=lambda _: os._exit(1),
        disable_grammar_support=options.disable_grammar_support,
    )
    server = AppServer(standin.app, bound(options.hostname, options.port))
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    try:
        await server.start()
        sys.stdout.write(f"listening on http://{options.hostname}:{options.port}\n")
        sys.stdout.flush()
        await done.wait()
    finally:
        await server.close(2.0)
        model.close()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    asyncio.run(_serve_process(_parser().parse_args()))


if __name__ == "__main__":
    main()

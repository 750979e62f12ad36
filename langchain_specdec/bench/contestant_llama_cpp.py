"""Contestants that run llama.cpp on the same GGUF file, by the package xllamacpp."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from langchain_specdec.bench import llama_cpp_server
from langchain_specdec.bench.child_process import child_process, tell
from langchain_specdec.bench.contestant import Prompt, RunResult
from langchain_specdec.sampling.params import SamplingParams

_WARM_UP_TOKENS = 16
_START_SECONDS = 120.0


class LlamaCppServer:
    """A running server, in a process of its own and on an address of this machine alone.

    Args:
        options: See `llama_cpp_server.start`.

    Attributes:
        address: Where it listens, as `http://127.0.0.1:12345`.
        pid: Of its process.

    Raises:
        RuntimeError: It does not start; its own words are on standard error.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._ending = contextlib.ExitStack()
        # Its text and not its file, whose folder has modules by names that others look for.
        program = Path(llama_cpp_server.__file__).read_text(encoding="utf-8")
        process = self._ending.enter_context(child_process("-c", program, stdout=subprocess.PIPE))
        self.pid = process.pid
        patience = threading.Timer(_START_SECONDS, process.kill)
        patience.start()
        tell(process, json.dumps(dict(options)).encode() + b"\n")
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        self.address = process.stdout.readline().decode().strip()
        patience.cancel()
        if not self.address:
            self.close()
            msg = f"llama.cpp's server did not start: its process ended with code {process.returncode}."
            raise RuntimeError(msg)

    def close(self) -> None:
        """End it."""
        self._ending.close()


class LlamaCppContestant:
    """llama.cpp's server, with its own process, cache of keys and values and threads.

    It tells how long it decoded by its own clock. All else, as prefill and HTTP, counts for the first delivery.
    Its matrix products round the activations to 8 bits, so its text may differ.

    Args:
        name: As in tables.
        note: How it runs.
        gguf: The model's file.
        params: What to generate.
        num_slots: Prompts decoded at once.
        max_length: Positions of a slot.
        num_threads: Threads that compute.
        speculation: Its kind of drafts, as `"ngram-simple"`; "" drafts nothing.
    """

    def __init__(
        self,
        name: str,
        note: str,
        gguf: str | os.PathLike[str],
        params: SamplingParams,
        *,
        num_slots: int,
        max_length: int,
        num_threads: int,
        speculation: str,
    ) -> None:
        self.name = name
        self.note = note
        self._params = params
        self._num_slots = num_slots
        self._key = secrets.token_hex(16)
        self._options = {
            "gguf": os.fspath(gguf),
            "num_slots": num_slots,
            "max_length": max_length,
            "num_threads": num_threads,
            "speculation": speculation,
            "key": self._key,
        }
        self._server: LlamaCppServer | None = None

    def warm_up(self, groups: Sequence[Sequence[Prompt]]) -> None:
        """Load the file, and run the longest prompts."""
        if self._server is None:
            self._server = LlamaCppServer(self._options)
        longest = sorted((p for group in groups for p in group), key=lambda p: -len(p.token_ids))
        self._complete(longest[: self._num_slots], min(_WARM_UP_TOKENS, self._params.max_new_tokens))

    def run(self, prompts: Sequence[Prompt]) -> RunResult:
        """Decode the prompts."""
        started = time.perf_counter()
        answers = self._complete(prompts, self._params.max_new_tokens)
        seconds = time.perf_counter() - started
        timings = [answer["timings"] for answer in answers]
        rows = tuple(tuple(answer["tokens"]) for answer in answers)
        accepted = sum(t.get("draft_n_accepted", 0) for t in timings)
        # The first token comes of the prefill, and the clock of decoding starts with it.
        is_single = len(prompts) == 1
        first = seconds - timings[0]["predicted_ms"] / 1e3 if is_single else timings[0]["prompt_ms"] / 1e3
        return RunResult(
            token_ids=rows,
            first_seconds=first,
            first_tokens=1,
            seconds=seconds,
            num_steps=sum(map(len, rows)) - accepted,
            drafted_tokens=sum(t.get("draft_n", 0) for t in timings),
            accepted_tokens=accepted,
            prefilled_tokens=sum(t["prompt_n"] for t in timings),
        )

    def close(self) -> None:
        """End its server."""
        if self._server is not None:
            self._server.close()
        self._server = None

    def _complete(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Mapping[str, Any]]:
        """Its answers, in the order of the prompts."""
        assert self._server is not None  # noqa: S101 - it warms up first
        asked = {
            "prompt": [list(p.token_ids) for p in prompts],
            "n_predict": max_new_tokens,
            "ignore_eos": self._params.ignore_eos,
            "return_tokens": True,
            "cache_prompt": False,
            **_sampling(self._params),
        }
        # An HTTP connection of its own: libraries for requests would go through the proxy that a variable names.
        connection = http.client.HTTPConnection(urlsplit(self._server.address).netloc)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
            connection.request("POST", "/completion", json.dumps(asked), headers)
            response = connection.getresponse()
            answers = json.load(response)
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            msg = f"llama.cpp refused the request: {answers.get('error', {}).get('message', answers)}"
            raise RuntimeError(msg)
        # A single prompt is answered by an object.
        answers = answers if isinstance(answers, list) else [answers]
        return sorted(answers, key=lambda answer: int(answer["index"]))


def _sampling(params: SamplingParams) -> dict[str, Any]:
    if not params.temperature:
        # The cheapest way to its most likely token.
        return {"samplers": ["top_k"], "top_k": 1}
    return {"samplers": ["temperature"], "temperature": params.temperature, "seed": params.seed or 0}

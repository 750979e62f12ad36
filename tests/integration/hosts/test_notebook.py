"""A notebook in a real kernel: cells that load a model again, stream, are interrupted, await, and a restart."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from langchain_specdec import SpeculativeLLM
from tests.support.hosts.programs import environment

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = [pytest.mark.process, pytest.mark.server, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# By PyTorch's attention: the native decoder is done with all tokens by the time that a kernel hears of an interrupt.
LOAD = """
import json, os, threading, time
from langchain_specdec import ChatSpeculative, SpeculativeLLM
from tests.support.hosts.figures import num_files, resident_mb, taken_slots
options = {"num_slots": 2, "max_length": 4000, "attn_implementation": "sdpa"}
llm = SpeculativeLLM.from_model_id(os.environ["MODEL_ID"], max_new_tokens=24, **options)
llm.invoke("The sea")
"""
FIGURES = """
for _ in range(200):  # the thread of a model that is gone ends soon after it
    threads = sum(thread.name == "specdec-engine" for thread in threading.enumerate())
    if threads == 1:
        break
    time.sleep(0.05)
print(json.dumps({"mb": resident_mb(), "files": num_files(), "engines": threads,
                  "taken": taken_slots(llm), "forwards": llm.backend.engine.num_target_forwards}))
"""


class Notebook:
    """A notebook whose cells are run one after the other in one kernel."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def _cell(self, source: str) -> tuple[Any, int]:
        cells = self.client.nb.cells
        cells.append(nbformat.v4.new_code_cell(source))
        return cells[-1], len(cells) - 1

    async def run(self, source: str) -> Any:
        """The outputs of a cell."""
        return (await self.client.async_execute_cell(*self._cell(source))).outputs

    async def printed(self, source: str) -> str:
        """What a cell prints."""
        outputs = await self.run(source)
        assert [each.output_type for each in outputs] == ["stream"] * len(outputs), outputs
        return "".join(each.text for each in outputs if each.name == "stdout")

    async def figures(self) -> dict[str, int]:
        return dict(json.loads(await self.printed(FIGURES)))

    async def interrupted(self, source: str, until: str) -> Any:
        """The outputs of a cell that is interrupted once it has printed `until`."""
        cell, number = self._cell(source)
        running = asyncio.create_task(self.client.async_execute_cell(cell, number))
        while not any(until in each.get("text", "") for each in cell.outputs):
            assert not running.done(), cell.outputs
            await asyncio.sleep(0.02)
        await self.client.km.interrupt_kernel()
        with pytest.raises(nbclient.exceptions.CellExecutionError, match=r"KeyboardInterrupt|CancelledError"):
            await asyncio.wait_for(running, 20.0)
        return cell.outputs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def notebook(tiny_folder, tmp_path_factory) -> AsyncIterator[Notebook]:
    home = tmp_path_factory.mktemp("jupyter")
    own = {name: str(home) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    client = nbclient.NotebookClient(nbformat.v4.new_notebook(), timeout=120, kernel_name="python3")
    async with client.async_setup_kernel(env=environment(tiny_folder, **own), cwd=str(home)):
        notebook = Notebook(client)
        await notebook.run(LOAD)
        yield notebook


@pytest.fixture(scope="module")
def plain(tiny_folder) -> str:
    with SpeculativeLLM.from_model_id(tiny_folder, drafter="none", num_slots=1, max_new_tokens=24) as llm:
        return llm.invoke("The sea")


async def test_a_cell_that_loads_is_run_again_and_again(notebook, plain):
    """Nobody closes the models before: each goes as the name is bound anew."""
    outputs = await notebook.run(LOAD)
    # IPython keeps what a cell returns, as `Out`; a text holds no model.
    assert [each.data["text/plain"] for each in outputs if each.output_type == "execute_result"] == [repr(plain)]
    # Progress is text, and no widget, which would stand there broken where ipywidgets are not installed.
    assert not any("widget" in kind for each in outputs for kind in each.get("data", {}))
    await notebook.run(LOAD)
    before = await notebook.figures()
    for _ in range(4):
        await notebook.run(LOAD)
    after = await notebook.figures()
    assert before["engines"] == after["engines"] == 1
    assert after["files"] <= before["files"] + 3
    assert after["mb"] <= before["mb"] + 60


async def test_top_level_await(notebook, plain):
    assert await notebook.printed('print(await llm.ainvoke("The sea"), end="")') == plain
    source = 'async for piece in llm.astream("The sea"):\n    print(piece, end="")'
    assert await notebook.printed(source) == plain
    source = 'print(json.dumps(await llm.abatch(["The sea"] * 5)))'
    assert json.loads(await notebook.printed(source)) == [plain] * 5


@pytest.mark.parametrize(
    "source",
    [
        'for piece in llm.stream("Long", max_new_tokens=3500):\n    print("piece", flush=True)',
        'async for piece in llm.astream("Long", max_new_tokens=3500):\n    print("piece", flush=True)',
        'print("piece", flush=True)\nllm.invoke("Long", max_new_tokens=3500)',
        'print("piece", flush=True)\nllm.batch(["Long"] * 4, max_new_tokens=3500)',
        'print("piece", flush=True)\nChatSpeculative(backend=llm.backend).batch(["Long"] * 4, max_tokens=1800)',
    ],
    ids=["stream", "astream", "invoke", "batch", "batch of chats"],
)
async def test_a_cell_is_interrupted_and_the_next_goes_on(notebook, plain, source):
    begun = await notebook.figures()
    await notebook.interrupted(source, "piece")
    # The stream that the traceback holds, which IPython keeps, has no slot.
    assert await notebook.printed('print(llm.invoke("The sea"), end="")') == plain
    ended = await notebook.figures()
    assert ended["taken"] == 0
    assert ended["forwards"] - begun["forwards"] < 1500, "the work of the interrupted cell went on"
    assert ended["engines"] == 1


async def test_a_restarted_kernel_begins_anew(notebook, plain):
    """In the middle of a stream that nobody reads on."""
    source = 'stream = llm.stream("Long", max_new_tokens=3500)\nprint(next(stream) and "begun", os.getpid())'
    begun, pid = (await notebook.printed(source)).split()
    assert begun == "begun"
    await notebook.client.km.restart_kernel(now=False)
    await notebook.client.kc.wait_for_ready(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    outputs = await notebook.run(LOAD)
    assert outputs[-1].data["text/plain"] == repr(plain)

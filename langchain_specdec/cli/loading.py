"""Loading a model with something to look at: progress on stderr, and no bars of the libraries underneath."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR, INFO, StreamHandler, getLogger
from typing import TYPE_CHECKING, Any

from langchain_specdec.cli.terminal_text import visible

if TYPE_CHECKING:
    from rich.progress import Progress

    from langchain_specdec.backends.local import LocalBackend


def load_backend(
    model: str,
    *,
    draft_model: str | None = None,
    debug: bool = False,
    **options: Any,
) -> LocalBackend:
    """Load a model, with a spinner, and with bars while the embedded model is prepared or files are downloaded.

    Args:
        model: Model id, folder or `"embedded"`.
        draft_model: The same for the draft model.
        debug: Show what the libraries underneath have to say.
        options: Passed to `LocalBackend`.
    """
    from langchain_specdec.models.hub import is_here
    from langchain_specdec.models.model_source import check_source

    if not debug:
        getLogger("huggingface_hub").setLevel(ERROR)
    asked = [(model, options.get("revision")), (draft_model, options.get("draft_revision"))]
    asked += [(options.get("adapter"), None)]
    away = [name for name, revision in asked if name is not None and not is_here(name, revision)]
    if away and sys.stderr.isatty():
        # The hub's own bars follow, which a spinner would overwrite.
        print(visible(f"Looking for {' and '.join(away)} on the Hugging Face Hub"), file=sys.stderr)
    for name, revision in asked:
        if name is not None:
            # Before PyTorch is imported, which takes seconds.
            check_source(name, revision=revision)
    with spinner(f"Loading {model}", is_shown=not away) as progress:
        # This takes seconds, so the spinner has to turn before it.
        from langchain_specdec.backends.local import LocalBackend

        calm_libraries(downloads=progress is None, debug=debug)
        told = tell_rich(progress) if progress is not None else _tell_lines()
        return LocalBackend(model, draft_model=draft_model, progress=told, **options)


@contextmanager
def spinner(description: str, *, is_shown: bool = True) -> Iterator[Progress | None]:
    """Turn a spinner on stderr, in a terminal only.

    Args:
        description: What is going on; shown as it is, brackets included.
        is_shown: False where something else writes to the terminal meanwhile.

    Yields:
        The display, for more lines; None where nothing is shown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    if not is_shown or not sys.stderr.isatty() or console.is_dumb_terminal:
        with _heeding_ctrl_c():
            yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress, _heeding_ctrl_c():
        progress.add_task(visible(description), total=None, note="")
        yield progress


@contextmanager
def _heeding_ctrl_c() -> Iterator[None]:
    """End the block by Ctrl-C also where something in it swallows that: PyTorch does while it imports NumPy.

    What is imported after that fails in ways that nobody understands.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    is_pressed = False

    def press(*_: object) -> None:
        nonlocal is_pressed
        is_pressed = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception:
        if not is_pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if is_pressed:
        raise KeyboardInterrupt


def tell_rich(progress: Progress) -> Callable[[str, int, int], None]:
    """What the loader is to call, so that each of its steps gets a bar beside the spinner."""
    tasks: dict[str, Any] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total, note="")
        progress.update(tasks[what], completed=done, total=total, note=f"{done}/{total}" if total > 1 else "")

    return tell


def _tell_lines() -> Callable[[str, int, int], None]:
    told: set[str] = set()

    def tell(what: str, *_: int) -> None:
        if what not in told:
            told.add(what)
            print(f"{what} (once)", file=sys.stderr)

    return tell


def calm_libraries(*, downloads: bool, debug: bool) -> None:
    """Silence what the libraries underneath write to the terminal.

    Args:
        downloads: Leave the hub its bars, for a download that nothing else shows.
        debug: Leave messages and warnings.
    """
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()  # that of the hub too
    if downloads and sys.stderr.isatty():
        enable_progress_bars()
    if debug:
        # Where messages go while a model is loaded.
        kept = getLogger("langchain_specdec.models.quiet_loading")
        if not kept.handlers:
            kept.addHandler(StreamHandler())
            kept.setLevel(INFO)
    else:
        logging.set_verbosity_error()
        getLogger("huggingface_hub").setLevel(ERROR)
        warnings.simplefilter("ignore")

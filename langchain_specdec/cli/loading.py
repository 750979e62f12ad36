"""Loading a model with progress on stderr, and no bars of the libraries underneath."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR, INFO, StreamHandler, getLogger
from typing import TYPE_CHECKING, Any

from langchain_specdec.backends.local_options import OPTIONS
from langchain_specdec.cli.progress import Bars, Display, Lines, rows_on, ticking
from langchain_specdec.cli.reporting import flag_of
from langchain_specdec.cli.signals import handled
from langchain_specdec.cli.terminal_text import is_drawable, visible
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.progress import READING_WEIGHTS

if TYPE_CHECKING:
    from langchain_specdec.backends.base import Backend
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.cli.options import Given

API_KEY = "SPECDEC_API_KEY"
"""The variable of the environment that has the key, which no other user of the machine sees there."""


def load_backend(
    model: str,
    *,
    draft_model: str | None = None,
    debug: bool = False,
    **options: Any,
) -> LocalBackend:
    """Load a model, and show on stderr that it goes on, how the embedded model is prepared, and downloads.

    Args:
        model: Model id, folder, GGUF file or `"embedded"`.
        draft_model: The same for the draft model.
        debug: Show what the libraries underneath have to say.
        options: Passed to `LocalBackend`.
    """
    from langchain_specdec.models.hub import is_here
    from langchain_specdec.models.model_source import ADAPTER, check_source

    if not debug:
        getLogger("huggingface_hub").setLevel(ERROR)
    asked = [(model, options.get("revision")), (draft_model, options.get("draft_revision"))]
    adapter = options.get("adapter")
    away = [name for name, revision in [*asked, (adapter, None)] if name is not None and not is_here(name, revision)]
    if away and sys.stderr.isatty():
        # The hub's own bars follow, which a spinner would overwrite.
        print(visible(f"Looking for {' and '.join(away)} on the Hugging Face Hub"), file=sys.stderr)
    for name, revision in asked:
        if name is not None:
            # Before PyTorch is imported, which takes seconds.
            check_source(name, revision=revision)
    if adapter is not None:
        check_source(adapter, holds=ADAPTER)
    with spinner(f"Loading {model}", is_shown=not away) as display:
        # This takes seconds, so the spinner has to turn before it.
        from langchain_specdec.backends.local import LocalBackend

        calm_libraries(downloads=not display.is_drawn, debug=debug)
        return LocalBackend(model, draft_model=draft_model, progress=tell_once(display), **options)


def connected(url: str, given: Given) -> Backend:
    """A connection to a server that speaks OpenAI's protocol. Nothing is sent yet.

    The key, if it asks for one, is that of the environment: other users see command lines.

    Args:
        url: Its address.
        given: What the command is given; a model that is named is one of the server's.

    Raises:
        InvalidParameterError: An option of a model that is loaded here is given, too.
    """
    for name in given.named:
        if name in OPTIONS:
            msg = (
                f"{flag_of(name)} is an option of a model that is loaded here, and a server has its own. Leave it out."
            )
            raise InvalidParameterError(msg)
    from langchain_specdec.backends.openai.backend import OpenAIBackend

    model = given.model if "model" in given.named else None
    # A server takes several.
    key = next(iter(os.environ.get(API_KEY, "").split()), None)
    return OpenAIBackend(url, model=model, api_key=key)


@contextmanager
def spinner(description: str, *, is_shown: bool = True, has_time_left: bool = False) -> Iterator[Display]:
    """Show on stderr that something is going on: in a terminal by a spinner, elsewhere by a line every few seconds.

    Args:
        description: What is going on; shown as it is, brackets included.
        is_shown: False where something else writes to the terminal meanwhile.
        has_time_left: Whether to show how long each part will take still.

    Yields:
        The display, to tell it how far parts of the work are.
    """
    if not is_shown or not is_drawable(sys.stderr):
        with ticking(Lines(description)) as lines, _heeding_ctrl_c():
            yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[note]}", markup=False),
        *([TimeRemainingColumn(compact=True)] if has_time_left else []),
    )
    with rows_on(Console(stderr=True), *columns) as progress, _heeding_ctrl_c():
        yield Bars(progress, description)


def tell_once(display: Display) -> Callable[[str, int, int], None]:
    """What a loader is to call; lines say of what takes so long that it is done once only, where it is."""

    def tell(what: str, done: int, total: int) -> None:
        display.tell(what if display.is_drawn or what == READING_WEIGHTS else f"{what} (once)", done, total)

    return tell


@contextmanager
def _heeding_ctrl_c() -> Iterator[None]:
    """End the block by Ctrl-C also where something in it swallows that: PyTorch does while it imports NumPy.

    What is imported after that fails in ways that nobody understands.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    is_pressed = False

    def press(*_: object) -> None:
        nonlocal is_pressed
        is_pressed = True
        raise KeyboardInterrupt

    with handled(signal.SIGINT, press):
        try:
            yield
        except Exception:
            if not is_pressed:
                raise
    if is_pressed:
        raise KeyboardInterrupt


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

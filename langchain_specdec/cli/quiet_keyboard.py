"""A keyboard that the terminal does not echo, while text is redrawn that the echo would get into."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from langchain_specdec.cli.signals import handled, leaving_on_sigterm
from langchain_specdec.cli.standard_input import is_terminal

_LOCAL_MODES = 3  # where tcgetattr has ECHO


if sys.platform == "win32":

    @contextmanager
    def quiet_keyboard() -> Iterator[None]:
        """Nothing is done on Windows, which has no `termios`."""
        yield
else:
    import termios

    @contextmanager
    def quiet_keyboard() -> Iterator[None]:
        """Echo nothing that is typed while the block runs. It waits for who reads next; Ctrl-C and Ctrl-Z work.

        The terminal gets its echo back at the end, also by SIGTERM, and for as long as Ctrl-Z suspends the program.
        Where standard input is no terminal, nothing is done.
        """
        if not is_terminal() or threading.current_thread() is not threading.main_thread():
            yield
            return
        try:
            keyboard = _Keyboard(sys.stdin.fileno())
        except (OSError, ValueError):  # it has no descriptor
            yield
            return
        with leaving_on_sigterm(), keyboard.heeding_ctrl_z():
            keyboard.silence()
            try:
                yield
            finally:
                keyboard.restore()

    class _Keyboard:
        """The terminal of a descriptor, and how it was set before."""

        def __init__(self, descriptor: int) -> None:
            self._descriptor = descriptor
            self._before: list[int | list[bytes | int]] | None = None

        def silence(self) -> None:
            """Switch echo off."""
            if not self._is_ours():
                return
            with suppress(termios.error):  # the terminal is gone
                before = termios.tcgetattr(self._descriptor)
                quiet = list(before)
                quiet[_LOCAL_MODES] &= ~(termios.ECHO | termios.ECHONL)
                # Not TCSAFLUSH, which forgets what was typed ahead.
                termios.tcsetattr(self._descriptor, termios.TCSANOW, quiet)
                self._before = before

        def restore(self) -> None:
            """Set the terminal as it was."""
            before, self._before = self._before, None
            if before is not None and self._is_ours():
                with suppress(termios.error):
                    termios.tcsetattr(self._descriptor, termios.TCSANOW, before)

        @contextmanager
        def heeding_ctrl_z(self) -> Iterator[None]:
            """Give the terminal back while the program is suspended: not every shell sets its own modes."""

            def suspend(*_: object) -> None:
                self.restore()
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTSTP)
                signal.signal(signal.SIGTSTP, suspend)
                self.silence()

            # It is ignored where the shell has no job control.
            if signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
                yield
                return
            with handled(signal.SIGTSTP, suspend):
                yield

        def _is_ours(self) -> bool:
            """Whether the program is in the foreground: one that is not is stopped where it sets the terminal."""
            try:
                return os.tcgetpgrp(self._descriptor) == os.getpgrp()
            except OSError:  # it is another session's, which stops nobody
                return True

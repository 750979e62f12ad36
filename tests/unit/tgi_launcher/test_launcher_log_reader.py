"""The reader of TGI's log: no line ends it, none is too long for it, and nothing in the log hides the end of TGI."""

from __future__ import annotations

import io
import json
import sys
import threading
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_launcher import launcher_process
from tgi_launcher.command import Addresses, Command
from tgi_launcher.config import TGIConfig
from tgi_launcher.diagnosis import Evidence, diagnose
from tgi_launcher.launcher_process import LauncherProcess
from tgi_launcher.logs import LogRecord, parse_line, read_lines, shortened, stage_of
from tgi_launcher.plan import LaunchPlan
from tgi_launcher.ports import PortLocks
from tgi_launcher.redaction import Redactor
from tgi_launcher.server_folder import make_server_folder
from tgi_launcher.server_run import ServerRun

TIME = "2026-01-08T15:02:49.123456Z"
DEEP = "[" * 100_000
ODD_LINES = [
    '{"level":"INFO","spans":5}',
    '{"level":"INFO","spans":{"rank":1},"span":7,"fields":3}',
    '{"level":"INFO","span":{"rank":true},"message":{"a":[1]}}',
    '{"level":{"a":1},"target":[2],"message":3.5}',
    '{"level":"ERROR","message":' + DEEP,
    '{"level":"ERROR","message":' + 450 * "[" + 450 * "]" + "}",
    '{"level":' + 900 * '{"a":' + "1" + 900 * "}" + "}",
    '{"level":"INFO","message":' + "9" * 5000 + "}",
    '{"level":"INFO","message":1e999}',
    '{"level":"INFO","message":"\\ud800\\u0000\\u001b[2Jx"}',
    DEEP,
    "null",
    "{}",
    "\0\0\0",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m",
    f"{TIME} INFO rank={'9' * 5000}",
    f"{TIME} INFO {'a::' * 80_000}",
    f"{TIME} INFO {'a:' * 80_000}",
    f"{TIME} INFO {'a{' * 80_000}",
    f"{TIME} ERROR {'panicked at ' * 10_000}",
]
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
_names = st.sampled_from(["level", "message", "fields", "span", "spans", "target", "rank"])


def read(line: str) -> LogRecord:
    record = parse_line(line)
    assert all(type(value) is str for value in (record.message, record.level, record.target))
    for shown in record.lines():
        assert not any(ord(sign) < 32 and sign != "\t" for sign in shown)
    stage_of(record)
    for code in (1, None):
        diagnose(Evidence([record], code, model_id="m", port=1, is_docker=False))
    return record


@pytest.mark.parametrize("line", ODD_LINES, ids=range(len(ODD_LINES)))
def test_an_odd_line_is_read(line):
    read(line)


@settings(max_examples=50)
@given(st.dictionaries(_names, st.dictionaries(_names, _json) | _json))
def test_any_json_is_read(value):
    read(json.dumps(value))


@given(st.binary())
def test_any_bytes_are_read(data):
    for line, is_cut in read_lines(io.BytesIO(data)):
        assert not is_cut
        read(line)


def test_the_level_of_a_broken_record_is_kept():
    assert read('{"level":"INFO","message":"Error: ' + DEEP).level == "INFO"


@pytest.mark.parametrize("sign", ["\x1b[2J", "\r", "\x9b", "\u202e", "\u2066", "\u200f", "\u061c", "\ud800"])
def test_nothing_that_a_terminal_would_obey_or_could_not_print_is_shown(sign):
    for line in (f"a{sign}b", json.dumps({"level": "ERROR", "message": f"a{sign}b\n{sign}c"})):
        shown = "\n".join(read(line).lines())
        assert sign[0] not in shown
        shown.encode()


def test_further_lines_of_a_record_are_indented():
    assert LogRecord("a\nb\n  c", "ERROR", rank=1).lines() == ["ERROR [shard 1] a", "    b", "      c"]


class Long(io.RawIOBase):
    """64 MiB without an end of line, then a line."""

    left = 2**26

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.left == 0:
            return 0
        self.left -= (count := min(self.left, len(buffer)))
        buffer[:count] = b"x" * count
        if self.left == 0:
            buffer[count - 6 : count] = b"\nlast\n"
        return count


def test_a_line_without_end_takes_little_memory():
    tracemalloc.start()
    try:
        (first, is_cut), (last, is_last_cut) = read_lines(io.BufferedReader(Long()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(first) == 2**18
    assert (is_cut, last, is_last_cut) == (True, "last", False)
    assert peak < 2**22


def test_a_long_message_keeps_its_begin_and_its_end():
    message = "begin" + "x" * 10**6 + "ValueError: end"
    short = shortened(message)
    assert len(short) < 17_000
    assert short.startswith("begin")
    assert short.endswith("ValueError: end")
    assert "characters" in short


@pytest.mark.parametrize("length", range(30))
def test_no_part_of_a_secret_is_left_where_a_line_is_cut(length):
    secret = "".join(map(chr, range(65, 85)))
    text = f"{'x' * 50}{secret}{secret}"[: 50 + length]
    shown = Redactor([secret])(text, is_cut=True)
    assert not any(secret[:size] in shown for size in range(2, 20))


# With processes


def run(program: str, on_line: Any) -> LauncherProcess:
    command = Command((sys.executable, "-c", program), env={})
    process = LauncherProcess(command, make_server_folder(), on_line, drain_seconds=5.0)
    process.start()
    return process


PRINT_AND_STAY = "import time\nprint('ready', flush=True)\ntime.sleep(60)"


@pytest.mark.process
def test_a_server_run_reads_whatever_is_printed(tmp_path):
    data = (
        "\n".join(ODD_LINES)
        + "\n"
        + f"the key is {'k' * 20}\n"
        + r'{"level": "INFO", "message": "escaped KEY"}'.replace("KEY", 20 * r"\u006b")
    )
    (tmp_path / "log").write_bytes(data.encode("utf-8", "replace") + b"\n\xff\xfe\nlast\n")
    program = f"import sys\nsys.stdout.buffer.write(open({str(tmp_path / 'log')!r}, 'rb').read())"
    seen: list[str] = []
    command = Command((sys.executable, "-c", program), env={}, secrets=("k" * 20,))
    plan = LaunchPlan(command, Addresses(1, 2, 3, ""), is_docker=False, folder=make_server_folder())
    with PortLocks() as locks:
        server = ServerRun(TGIConfig(model_id="m"), plan, locks, on_log=seen.append)
        server.process.start()
        exit_ = server.process.wait(60)
    assert exit_ is not None
    assert exit_.returncode == 0
    assert seen[-1] == "last"
    assert "the key is ***" in seen
    assert "INFO escaped ***" in seen
    assert server.why_ended(exit_).log_tail[-1] == "last"


@pytest.mark.process
@pytest.mark.parametrize("error", [ValueError, SystemExit])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_fails_is_no_obstacle_to_the_end(error):
    failed = threading.Event()

    def on_line(line: str, is_cut: bool) -> None:
        failed.set()
        raise error

    process = run("import time\nfor _ in range(100000): print('x' * 100)\ntime.sleep(60)", on_line)
    assert failed.wait(60)
    assert process.stop(5.0).was_stopped


@pytest.mark.process
def test_a_callback_that_never_returns_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(launcher_process, "_LOG_SECONDS", 0.1)
    reached, released = threading.Event(), threading.Event()

    def on_line(line: str, is_cut: bool) -> None:
        reached.set()
        released.wait(60)

    process = run("print('x')", on_line)
    try:
        assert reached.wait(60)
        exit_ = process.wait(60)
        assert exit_ is not None
        assert exit_.returncode == 0
    finally:
        released.set()


@pytest.mark.process
def test_a_server_may_be_stopped_from_its_own_log_callback(monkeypatch):
    monkeypatch.setattr(launcher_process, "_LOG_SECONDS", 0.1)
    ends: list[Any] = []
    started = threading.Event()

    def on_line(line: str, is_cut: bool) -> None:
        started.wait(60)
        ends.append(process.stop(5.0))

    process = run(PRINT_AND_STAY, on_line)
    started.set()
    assert process.wait(60) is not None

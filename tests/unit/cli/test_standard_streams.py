"""Both programs with standard streams that are closed, full, or in an encoding without Unicode."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import without_progress

pytestmark = pytest.mark.process

MAIN = {
    "specdec": "from langchain_specdec.cli import main; main()",
    "tgi-launch": "from tgi_launcher.cli import main; main()",
}
CLOSED = "error: Standard output is closed. To run without it, add: > /dev/null\n"
FULL = "error: Standard output cannot be written to: No space left on device.\n"
# A program of one line, on the streams as the commands have them.
PRINT = """
from langchain_specdec.cli.terminal_text import json_line
from tgi_launcher.standard_streams import run_program
run_program(lambda: print("Gr\\xfc\\xdfe \\u4e16\\u754c", json_line({"a": "\\u4e16"})))
"""
# An interrupt that comes while an object goes, where Python drops what is raised.
INTERRUPTED_IN_A_FINALIZER = """
import signal, time
from tgi_launcher.standard_streams import run_program

class Goes:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def program():
    Goes()
    time.sleep(30)
    print("went on")

run_program(program)
"""
ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "cp1252"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def run(
    code: str, *arguments: str, redirections: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A program started by a shell, without what a busy machine adds to standard error."""
    ran = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", code, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False, env={**os.environ, **(env or {})},
    )  # fmt: skip
    ran.stderr = without_progress(ran.stderr)
    return ran


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("specdec", ["--help"]),
        ("specdec", ["--version"]),
        ("specdec", ["generate", "x", "-m", "no/model"]),
        ("specdec", ["chat", "-m", "no/model"]),
        ("specdec", ["demo", "-m", "no/model"]),
        ("specdec", ["bench", "-m", "no/model"]),
        ("specdec", ["doctor"]),
        ("tgi-launch", ["--help"]),
        ("tgi-launch", ["no/model"]),
        ("tgi-launch", ["check"]),
        ("tgi-launch", ["print-command", "no/model"]),
        ("tgi-launch", ["cleanup"]),
    ],
)
def test_without_standard_output_every_command_says_so_at_once(program: str, arguments: list[str]) -> None:
    ran = run(MAIN[program], *arguments, redirections=">&-")
    assert (ran.returncode, ran.stderr) == (1, CLOSED)


@pytest.mark.parametrize("program", MAIN)
def test_without_any_stream_a_program_ends(program: str) -> None:
    ran = run(MAIN[program], "--help", redirections="<&- >&- 2>&-")
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", "")


@pytest.mark.parametrize(("program", "arguments"), [("specdec", ["--version"]), ("tgi-launch", ["cleanup"])])
@pytest.mark.parametrize("redirections", ["2>&-", "<&-", "<&- 2>&-"])
def test_the_other_streams_are_not_missed(
    program: str, arguments: list[str], redirections: str, tmp_path: Path
) -> None:
    ran = run(MAIN[program], *arguments, redirections=redirections, env={"TMPDIR": str(tmp_path)})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1


def test_a_completion_needs_standard_output_only(folder: str) -> None:
    arguments = ["generate", "x", "-m", folder, "--max-new-tokens", "2", "--stats"]
    ran = run(MAIN["specdec"], *arguments, redirections="<&- 2>&-")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    code = """
import os
from tgi_launcher.standard_streams import run_program
run_program(lambda: print(os.open(os.devnull, os.O_RDONLY) > 2, os.get_inheritable(0), os.get_inheritable(2)))
"""
    assert run(code, redirections="<&- 2>&-").stdout == "True True True\n"


def test_the_library_needs_no_stream(folder: str, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from langchain_specdec import SpeculativeLLM
assert (sys.stdin, sys.stdout, sys.stderr) == (None, None, None)
with SpeculativeLLM.from_model_id(sys.argv[1], max_new_tokens=3, ignore_eos=True) as llm:
    Path(sys.argv[2]).write_text(str(llm.generate(["x"]).llm_output))
"""
    ran = run(code, folder, str(tmp_path / "out"), redirections="<&- >&- 2>&-")
    assert ran.returncode == 0
    assert "completion_tokens" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("specdec", ["--version"]),
        ("specdec", ["generate", "--help"]),
        ("tgi-launch", ["--help"]),
        ("tgi-launch", ["check"]),
        ("tgi-launch", ["cleanup"]),
    ],
)
def test_a_full_disk_is_one_line(program: str, arguments: list[str], unbuffered: str, tmp_path: Path) -> None:
    env = {"PYTHONUNBUFFERED": unbuffered, "TMPDIR": str(tmp_path)}
    ran = run(MAIN[program], *arguments, redirections="> /dev/full", env=env)
    assert (ran.returncode, ran.stderr) == (1, FULL)


@pytest.mark.parametrize("is_json", [False, True])
def test_a_full_disk_under_a_completion_is_one_line(folder: str, is_json: bool) -> None:
    arguments = ["generate", "x", "-m", folder, "--max-new-tokens", "2", *["--json"] * is_json]
    ran = run(MAIN["specdec"], *arguments, redirections="> /dev/full")
    assert (ran.returncode, ran.stderr) == (1, FULL)


def test_where_nothing_can_be_told_the_exit_code_says_it() -> None:
    for program in MAIN.values():
        ran = run(program, "--help", redirections="> /dev/full 2> /dev/full")
        assert ran.returncode == 1


@pytest.mark.parametrize("env", ENCODINGS)
def test_pipes_get_utf_8_whatever_the_locale_and_json_in_ascii(env: dict[str, str]) -> None:
    ran = run(PRINT, env=env)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == 'Grüße 世界 {"a": "\\u4e16"}\n'


def test_json_is_readable_where_utf_8_is_meant() -> None:
    ran = run(PRINT, env={"PYTHONIOENCODING": "utf-8"})
    assert ran.stdout == 'Grüße 世界 {"a": "世"}\n'


def test_a_completion_in_json_is_whole_in_any_encoding(folder: str) -> None:
    arguments = ["generate", "x", "-m", folder, "--max-new-tokens", "8", "--ignore-eos", "--json", "--seed", "1"]
    ascii_only, readable = (
        run(MAIN["specdec"], *arguments, env={"PYTHONIOENCODING": encoding}).stdout for encoding in ("ascii", "utf-8")
    )
    assert ascii_only.isascii()
    assert json.loads(ascii_only)["text"] == json.loads(readable)["text"]


def test_a_terminal_without_unicode_shows_replacements_and_says_so_once() -> None:
    reader, writer = pty.openpty()
    with os.fdopen(reader, "rb", buffering=0) as terminal:
        ran = subprocess.run(  # noqa: S603
            [sys.executable, "-c", PRINT], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, check=False,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        )  # fmt: skip
        assert terminal.read(1000).decode("latin-1") == 'Grüße ?? {"a": "\\u4e16"}\r\n'
    os.close(writer)
    assert ran.returncode == 0
    assert ran.stderr.decode().startswith("Characters that latin-1, the encoding of this terminal, does not have ")
    assert ran.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("argument", "env", "encoding"), [(b"caf\xe9", {}, "utf-8"), ("café".encode(), ENCODINGS[-1], "ascii")]
)
def test_the_launcher_says_which_argument_is_no_text(argument: bytes, env: dict[str, str], encoding: str) -> None:
    ran = run(MAIN["tgi-launch"], "print-command", os.fsdecode(argument), env=env)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: Argument 2 is not text in {encoding}, the encoding of this locale. ")
    assert ran.stderr.count("\n") == 1


def test_an_interrupt_within_a_finalizer_interrupts_the_program() -> None:
    ended = run(INTERRUPTED_IN_A_FINALIZER)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "Interrupted.\n")

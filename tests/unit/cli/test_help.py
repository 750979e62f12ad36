"""The help of both programs: every option whole, with its text, at the widths of terminals."""

from __future__ import annotations

import re
import runpy
from importlib import metadata

import pytest
import typer
from typer.testing import CliRunner

import langchain_specdec.cli.app
import tgi_launcher.cli.app
from tgi_launcher import TGIConfig

PROGRAMS = {"specdec": langchain_specdec.cli.app.app, "tgi-launch": tgi_launcher.cli.app.app}
COMMANDS = [
    (program, command)
    for program, app in PROGRAMS.items()
    for command in (None, *typer.main.get_command(app).commands)  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_is_whole(program: str, command: str | None, width: int) -> None:
    app = PROGRAMS[program]
    result = CliRunner().invoke(app, [*([command] if command else []), "--help"], terminal_width=width)
    assert result.exit_code == 0
    assert "…" not in result.output
    assert not [name for name in TGIConfig.model_fields if "_" in name and name in result.output], "names of Python's"
    assert "..." not in result.output.replace("COMMAND [ARGS]...", "").replace("N,N,...", "").replace("[FILE]...", "")
    # An address alone may be longer than its column.
    assert all(len(line) <= width or len(line.split()[-1]) > 24 for line in result.output.splitlines())
    group = typer.main.get_command(app)
    found = group.commands[command] if command else group  # type: ignore[attr-defined]
    said = " ".join(result.output.split())
    if "\nArguments:" in result.output:
        assert re.findall(r"^(\w.*):$", result.output, re.MULTILINE)[0] == "Arguments"
    if "\nArguments:" in result.output:
        assert re.findall(r"^(\w.*):$", result.output, re.MULTILINE)[0] == "Arguments"
    for parameter in found.params:
        for flag in (*parameter.opts, *parameter.secondary_opts):
            if flag.startswith("-"):
                assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", result.output), flag
        assert " ".join((getattr(parameter, "help", None) or "").split()) in said
    for name in getattr(found, "commands", ()):
        assert re.search(rf"^  {name}  +\w", result.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["start", "x/y", "--frob"], "error: No such option: --frob\n"),
        (["start"], "error: Missing argument 'MODEL'.\n"),
        (
            ["start", "x/y", "--speculate", "four"],
            "error: --speculate: Input should be a valid integer, unable to parse string as an integer, got 'four'\n",
        ),
    ],
)
def test_wrong_use_of_tgi_launch_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(PROGRAMS["tgi-launch"], arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["langchain_specdec", "tgi_launcher"])
def test_the_packages_run_as_programs(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(f"{module}.cli.main", lambda: ran.append(module))
    runpy.run_module(module, run_name="__main__")
    assert ran == [module]


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_programs_tell_their_version(program: str) -> None:
    assert re.fullmatch(
        rf"{program} (\d+\.\d+\S*|of a .*)\n", CliRunner().invoke(PROGRAMS[program], ["--version"]).stdout
    )


def test_the_version_of_tgi_launch_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    result = CliRunner().invoke(PROGRAMS["tgi-launch"], ["--version"])
    assert result.stdout == "tgi-launch of a checkout that is not installed\n"

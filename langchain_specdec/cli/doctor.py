"""`specdec doctor`: what this machine has, what a model would run on, and what is missing."""

from __future__ import annotations

import sys
from logging import NullHandler, getLogger
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_specdec.cli.loading import calm_libraries, spinner, tell_once
from langchain_specdec.cli.reporting import FAILED, reported
from langchain_specdec.cli.terminal_text import json_line
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.progress import telling

if TYPE_CHECKING:
    from rich.text import Text

    from langchain_specdec.cli.doctor_finding import Finding

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red"), "info": (" ", "")}


def doctor(
    model: Annotated[
        str | None, typer.Option(help="A model: whether it can draft for itself, or the draft model for it.")
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option(help="A model, or a trained head, that is to draft for it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Show versions, devices and the embedded model, and what is missing and how to get it.

    With --model, show whether it has MTP layers to draft by too; with --draft-model, whether that can draft for it.
    """
    with reported(debug=debug):
        if model is None and draft_model is not None:
            msg = "Give --model too, to see whether the draft model can draft for it."
            raise InvalidParameterError(msg)
        # What is logged of a missing compiler is a finding.
        getLogger("langchain_specdec").addHandler(NullHandler())
        with spinner("Looking around") as display, telling(tell_once(display)):
            from langchain_specdec.cli.doctor_checks import examine

            sections = examine()
            if model is not None:
                from langchain_specdec.cli import doctor_mtp, doctor_pair

                calm_libraries(downloads=False, debug=debug)
                doctor_pair.check_model(model)
                if draft_model is None:
                    sections[f"{model} drafts for itself"] = doctor_mtp.findings(model)
                else:
                    sections[f"{draft_model} drafts for {model}"] = doctor_pair.findings(model, draft_model)
        findings = [finding for section in sections.values() for finding in section]
        is_fine = all(finding.status != "error" for finding in findings)
        if as_json:
            report = {name: [finding.as_dict() for finding in section] for name, section in sections.items()}
            print(json_line({"ok": is_fine, **report}))
        else:
            _show(sections)
        if not is_fine:
            raise typer.Exit(FAILED)


def _show(sections: dict[str, list[Finding]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, force_terminal=None if sys.stdout.isatty() else False)
    findings = [finding for section in sections.values() for finding in section]
    width = max(len(finding.name) for finding in findings)
    for number, (name, section) in enumerate(sections.items()):
        heading = Text(name, style="bold")
        console.print(Text("\n").append(heading) if number else heading)
        for finding in section:
            # A path that is cut by a line break cannot be copied.
            console.print(_line(finding, width), soft_wrap=True)
    advised = [finding for finding in findings if finding.advice]
    console.print()
    if not advised:
        console.print("Nothing is missing.")
    for finding in advised:
        mark, style = _MARKS[finding.status]
        console.print(Text(f"{mark} {finding.name}: ", style=style).append(finding.advice, style=""), soft_wrap=True)


def _line(finding: Finding, width: int) -> Text:
    from rich.text import Text

    mark, style = _MARKS[finding.status]
    line = Text(f"  {mark} ", style=style).append(finding.name.ljust(width + 2), style="")
    return line.append(finding.value, style="dim" if finding.value == "not installed" else "")

"""Applications whose help is readable at any width: each option is written whole, and under its heading."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_NAME_WIDTH = 30
_NEVER_CUT = 1000
# Wrong use of a command; of the click that typer comes with, or stands on.
UsageError: Any = typer.BadParameter.__mro__[1]


class Command(TyperCommand):
    """A command. Made without `rich_markup_mode`, whose tables cut the names of options to fit them in."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, by the heading that each was given."""
        _write_parameters(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands, which says in one line what was wrong on the command line.

    Attributes:
        shown: Makes a message fit to be printed.
    """

    shown: Callable[[str], str] = staticmethod(lambda text: text)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands."""
        _write_parameters(self, ctx, formatter)
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        shown = [(name, command.get_short_help_str(limit=_NEVER_CUT)) for name, command in commands if command]
        _write_section(formatter, "Commands", shown)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that the arguments name, and end the process unless `standalone_mode=False`."""
        is_alone = kwargs.get("standalone_mode", True)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                sys.stderr.write(f"error: {self.shown(' '.join(error.format_message().split()))}\n")
            code = error.exit_code
        if is_alone:
            sys.exit(code)
        return code


def make_app(
    name: str, description: str, version: Callable[[], str], *, group: type[Group] = Group, add_completion: bool = True
) -> typer.Typer:
    """An application without commands, which prints its version.

    Args:
        name: What it is called.
        description: What it does, for its help.
        version: Called where the version is asked for.
        group: Class of its commands' group.
        add_completion: Whether it can install completion for shells.
    """
    app = typer.Typer(
        name=name,
        cls=group,
        help=description,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=add_completion,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(is_wanted: bool) -> None:
        if is_wanted:
            sys.stdout.write(f"{name} {version()}\n")
            raise typer.Exit

    option = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version and exit.")

    @app.callback()
    def root(version: bool = option) -> None:
        # Everything is done by the option's callback.
        del version

    return app


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or kind
            sections.setdefault(heading, []).append(record)
    # Options are explained by them.
    for heading, records in sorted(sections.items(), key=lambda section: section[0] != "Arguments"):
        _write_section(formatter, heading, records)


def _write_section(formatter: Any, heading: str, records: list[tuple[str, str]]) -> None:
    """Write names and what is said of them; as click does, but names within a text are not broken at hyphens."""
    column = min(_NAME_WIDTH, max(len(name) for name, _ in records)) + 4
    with formatter.section(heading):
        for name, text in records:
            width = formatter.width - column
            lines = textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False) or [""]
            if len(name) + 4 > column:
                lines.insert(0, "")
            formatter.write(f"  {name.ljust(column - 2)}{lines[0]}".rstrip() + "\n")
            for line in lines[1:]:
                formatter.write(" " * column + line + "\n")

"""The application: its commands and what holds for all of them."""

from __future__ import annotations

from langchain_specdec._version import __version__
from langchain_specdec.cli.bench import bench
from langchain_specdec.cli.chat import chat
from langchain_specdec.cli.demo import demo
from langchain_specdec.cli.doctor import doctor
from langchain_specdec.cli.generate import generate
from langchain_specdec.cli.make_draft import make_draft
from langchain_specdec.cli.options import Command
from langchain_specdec.cli.serve import serve
from langchain_specdec.cli.summarize import summarize
from langchain_specdec.cli.terminal_text import visible
from tgi_launcher.cli.help_text import Group, make_app


class _Group(Group):
    shown = staticmethod(visible)


app = make_app(
    "specdec", "Language models with speculative decoding: the same text, sooner.", lambda: __version__, group=_Group
)
for command in (demo, generate, summarize, bench, chat, serve, make_draft, doctor):
    app.command(cls=Command)(command)

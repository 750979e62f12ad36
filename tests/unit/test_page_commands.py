"""Every command that a page shows is known: it is run by a test, or what it names exists."""

from __future__ import annotations

import re

import pytest

from langchain_specdec.bench.contestant import parse_contestants
from langchain_specdec.cli.app import app as specdec
from tests.support.page_commands import (
    PAGES,
    Shown,
    blocks_of,
    commands_of,
    flags_of,
    lines_of,
    option_spans,
    parse,
    shown_commands,
)
from tests.support.source_code import ROOT
from tgi_launcher.cli.app import app as tgi_launch
from tools.gpu_check.parts import PHASES

SPECDEC, TGI_LAUNCH = commands_of(specdec), commands_of(tgi_launch)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z0-9.-]+):.*##", MAKEFILE, re.MULTILINE)) | {"plan"}
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Other people's programs, and what of them the pages may use. Their options are theirs to change.
OTHERS = {
    "cat": set[str](), "echo": set(), "git": {"-m"}, "read": {"-r"}, "docker": set(),
    "pytest": {"-m", "--hypothesis-profile"},
    "curl": {"-N", "-H", "-d"},
    "env": {"-u"},
    "llama-server": {"-m", "--port"},
    "vllm": {"--port", "--per-request-spec-decode-metrics", "--speculative-config"},
    "gunicorn": {"--chdir", "-k", "--workers", "--graceful-timeout", "--preload", "--threads"},
    "uvicorn": {"--app-dir", "--timeout-graceful-shutdown", "--workers"},
    "uv": {"--torch-backend", "-e", "--no-deps"},
    ".venv/bin/pre-commit": set(),
}  # fmt: skip
OURS = {"specdec", "tgi-launch", "make", "pip", "python", "gpu-check/run.sh"}
# Blocks that are no commands, by how they begin.
NO_COMMANDS = ("You can call the functions below", "token = argmax", "E(g) = 1 + a", "2 × layers ×", "<!--")
# Options of programs in docs/examples, of pip and of TGI's own launcher, which prose speaks of.
FOREIGN_FLAGS = {
    "--tgi",
    "--server",
    "--no-deps",
    "--index-url",
    "--cuda-graphs",
    "--json-output",
    "--disable-grammar-support",
    "--split",
    "--model-id",
    # vLLM's.
    "--enable-lora",
    "--enable-prompt-tokens-details",
    "--gpu-memory-utilization",
    "--lora-modules",
    "--max-model-len",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--per-request-spec-decode-metrics",
    "--reasoning-parser",
    "--tensor-parallel-size",
    "--tool-call-parser",
    # SGLang's.
    "--chunked-prefill-size",
    "--config",
    "--context-length",
    "--dist-init-addr",
    "--dp-size",
    "--enable-cache-report",
    "--enable-deterministic-inference",
    "--lora-paths",
    "--max-running-requests",
    "--mem-fraction-static",
    "--pp-size",
    "--tp-size",
    # llama.cpp's.
    "--batch-size",
    "--ctx-size",
    "--lora",
    "--parallel",
    "--rpc",
}

COMMANDS = [
    shown
    for shown in shown_commands(frozenset({*OURS, *OTHERS} - {"cat", "echo", "read", "docker", "git"}))
    if not shown.line.startswith(NO_COMMANDS)
]


def of(program: str) -> list[Shown]:
    return [shown for shown in COMMANDS if shown.words[0] == program]


def name(shown: Shown) -> str:
    return f"{shown.page}: {shown.line}"


def test_each_line_of_a_block_is_a_command_of_a_known_program():
    strange, seen = [], 0
    for page in PAGES:
        for block in blocks_of(
            re.sub(r"<!-- plan: .*?<!-- end of the plan -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        ):
            lines = lines_of(block)
            seen += len(lines)
            if not lines or lines[0].startswith(NO_COMMANDS):
                continue
            shown = {c.line: c.words[0] for c in COMMANDS if c.in_block and c.page == str(page.relative_to(ROOT))}
            strange += [f"{page.name}: {line}" for line in lines if shown.get(line) not in {*OURS, *OTHERS}]
    assert seen > 40
    assert not strange, "neither run nor looked at by a test: give its program a place in this file"


@pytest.mark.parametrize("shown", of("specdec"), ids=name)
def test_specdec_has_what_a_page_shows(shown):
    _, command, *arguments = shown.words
    if command.startswith("-"):
        assert command in ("--version", "--help")
        return
    assert command in SPECDEC
    parse(SPECDEC[command], arguments)
    if "--contestants" in arguments:
        names = arguments[arguments.index("--contestants") + 1].split(",")
        assert parse_contestants(names, has_draft_model=True, batch=1)


@pytest.mark.parametrize("shown", of("tgi-launch"), ids=name)
def test_tgi_launch_has_what_a_page_shows(shown):
    command, *arguments = shown.words[1:] or ("--help",)
    if command.startswith("-"):
        assert command in ("--version", "--help")
    elif command in TGI_LAUNCH:
        parse(TGI_LAUNCH[command], arguments)
    else:
        parse(TGI_LAUNCH["start"], [command, *arguments])


@pytest.mark.parametrize("shown", of("make"), ids=name)
def test_make_has_what_a_page_shows(shown):
    targets = [word for word in shown.words[1:] if "=" not in word]
    assert targets
    assert set(targets) <= TARGETS
    for word in shown.words[1:]:
        if "=" in word:
            assert re.search(rf"^{word.partition('=')[0]} \?=|\$\({word.partition('=')[0]}\)", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("shown", of("pip"), ids=name)
def test_pip_installs_what_this_project_knows(shown):
    """tests/unit/test_install_commands.py holds that its extras exist."""
    _, command, *words = shown.words
    assert command == "install"
    named = (word for word in words if not word.startswith("-") and word != "ADDRESS")
    packages = [word for word in named if not re.fullmatch(r"\.(\[[\w,-]+\])?", word)]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    for package in packages:
        bare = re.split(r"[=<>]", package.lower())[0]
        assert f"\n{bare}==" in pins or f'"{bare}' in PYPROJECT.lower()
    assert {word for word in words if word.startswith("-")} <= {"-e", "-U", "--no-deps", "--index-url"}


@pytest.mark.parametrize("shown", of("python") + of("gpu-check/run.sh"), ids=name)
def test_programs_of_the_repository_are_there(shown):
    program, *words = shown.words
    if program == "python" and words[0] == "-m":
        package = ROOT / words[1].replace(".", "/")
        assert (package / "__main__.py").is_file() or package.with_suffix(".py").is_file()
    elif program == "python":
        assert (ROOT / words[0]).is_file()
    else:
        # The commands of a phase stand there as they are to be pasted.
        assert " ".join(words) in {phase.arguments for phase in PHASES}
        assert (ROOT / "tools" / program.replace("-", "_")).is_file()


@pytest.mark.parametrize("shown", [c for c in COMMANDS if c.words[0] in OTHERS], ids=name)
def test_of_other_programs_only_known_options_are_used(shown):
    program, *words = shown.words
    assert {word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)} <= OTHERS[program]


def test_options_in_prose_exist():
    ours = {flag for command in (*SPECDEC.values(), *TGI_LAUNCH.values()) for flag in flags_of(command)}
    ours |= {"--version", *FOREIGN_FLAGS, *(flag for flags in OTHERS.values() for flag in flags), "-e"}
    spans = option_spans()
    unknown = {(page, word) for page, words in spans for word in words if word.startswith("--") and word not in ours}
    assert len(spans) > 60
    assert not unknown
    # Rows of the table of measurements are what follows `specdec bench`.
    for page, words in spans:
        if page == "docs/benchmarks.md" and not words[0].startswith(("--max-draft", "--no-deps")):
            parse(SPECDEC["bench"], [*words, "1"] if len(words) == 1 else words)


def test_every_target_is_in_the_table_of_contributing():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    missing = {target for target in TARGETS if f"make {target}" not in table} - {"help"}
    assert not missing


def test_an_option_that_does_not_exist_is_found():
    with pytest.raises(Exception, match="--no-such-option"):
        parse(SPECDEC["generate"], ["--no-such-option", "x"])
    with pytest.raises(Exception, match="--speculates"):
        parse(TGI_LAUNCH["start"], ["model", "--speculates", "3"])

"""The documentation is true: its Python code runs and prints what it says, and what it names exists."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.outputs import LLMResult
from langchain_core.tracers.context import register_configure_hook
from pydantic import BaseModel
from typer.main import get_command

import langchain_specdec
from langchain_specdec import (
    ChatSpeculative,
    DocumentSummarizer,
    LocalBackend,
    SamplingParams,
    SpeculativeDecisions,
    SpeculativeLLM,
    errors,
)
from langchain_specdec.bench.contestant_llama_cpp import LlamaCppServer
from langchain_specdec.chat.tool_prompt import GENERIC_TOOL_PROMPT
from langchain_specdec.cli.app import app
from langchain_specdec.completions.completion import Completion, CompletionRequest
from langchain_specdec.completions.events import FinishEvent, Token, TokenEvent
from langchain_specdec.models.embedded import gguf_file
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.support.backends import lasting

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
QUICKSTART = ROOT / "docs/quickstart.md"
CHAT = ROOT / "docs/chat.md"
APPLICATIONS = ROOT / "docs/applications.md"
DOCUMENTS = ROOT / "docs/documents.md"
MAKE_DRAFT = ROOT / "docs/make-draft.md"
TGI = ROOT / "docs/tgi.md"
SERVE = ROOT / "docs/serve.md"
SERVERS = ROOT / "docs/servers.md"
HOW_IT_WORKS = ROOT / "docs/how-it-works.md"
FIGURE = ROOT / "docs/images/speculation.svg"
SVG = "{http://www.w3.org/2000/svg}"

_BLOCK = re.compile(
    r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```\n(?:\n *```text\n(?P<output>.*?)^ *```\n)?",
    re.DOTALL | re.MULTILINE,
)
_WATCHED: ContextVar[Answers | None] = ContextVar("answers of the examples", default=None)
register_configure_hook(_WATCHED, inheritable=True)


class Example(NamedTuple):
    """A block of Python code, the line it begins at, and the output that the page shows below it."""

    line: int
    code: str
    output: str | None


class Answers(BaseCallbackHandler):
    """What models answered: a text, or calls of tools."""

    raise_error = True

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        for generations in response.generations:
            for generation in generations:
                calls = getattr(getattr(generation, "message", None), "tool_calls", [])
                self.texts.append(generation.text or "".join(call["name"] for call in calls))


def examples_in(text: str) -> list[Example]:
    return [
        Example(text.count("\n", 0, m.start()) + 1, textwrap.dedent(m["code"]), m["output"])
        for m in _BLOCK.finditer(text)
    ]


def examples_of(page: Path) -> list[Example]:
    return examples_in(page.read_text(encoding="utf-8"))


def run_example(source: str, example: Example, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Answers:
    """Run an example: it prints what is shown, or else some text, and no answer of a model in it is empty."""
    # Empty lines before the code give tracebacks the line numbers of the page.
    # The postponed annotations of this file are not for them.
    code = compile("\n" * example.line + example.code, source, "exec", dont_inherit=True)
    capsys.readouterr()
    answers = Answers()
    token = _WATCHED.set(answers)
    try:
        exec(code, names)  # noqa: S102 - the code is our own
    finally:
        _WATCHED.reset(token)
    printed = capsys.readouterr().out
    where = f"{source}:{example.line}"
    if example.output is not None:
        assert printed == example.output, f"{where} prints something else than the page shows"
    elif "print(" in example.code:
        assert printed.strip(), f"{where} prints nothing"
    assert all(text.strip() for text in answers.texts), f"{where}: an answer is empty: {answers.texts}"
    return answers


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """The names that examples define; the models among them are closed at the end."""
    names: dict[str, Any] = {"__name__": "__main__"}
    yield names
    for value in names.values():
        if isinstance(value, (ChatSpeculative, SpeculativeDecisions, SpeculativeLLM, LocalBackend)):
            value.close()


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("example", examples_of(README), ids=lambda example: f"line {example.line}")
def test_examples_of_the_readme_run_by_themselves(example, names, capsys):
    assert run_example("README.md", example, names, capsys).texts


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("page", [QUICKSTART, CHAT, APPLICATIONS, DOCUMENTS], ids=lambda page: page.name)
def test_examples_of_a_page_run_from_top_to_bottom(page, names, capsys):
    pytest.importorskip("langchain")
    for example in examples_of(page):
        run_example(page.name, example, names, capsys)


def test_examples_of_the_page_of_drafts_run(names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # One writes a file.
    for example in examples_of(MAKE_DRAFT):
        run_example(MAKE_DRAFT.name, example, names, capsys)


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("example", examples_of(TGI), ids=lambda example: f"line {example.line}")
def test_examples_of_the_tgi_page_have_answers(example, names, capsys, monkeypatch):
    """On the model that comes along, in the place of a server with another."""

    def from_tgi(place: str, *, speculate: int | None = None, **fields: Any) -> SpeculativeLLM:
        del place, speculate
        return SpeculativeLLM(model="embedded", num_slots=1, max_length=512, **fields)

    monkeypatch.setattr(SpeculativeLLM, "from_tgi", from_tgi)
    monkeypatch.setattr(SpeculativeLLM, "launch_tgi", from_tgi)
    assert run_example("tgi.md", example, names, capsys).texts


@pytest.fixture(scope="module")
def served_url() -> Iterator[str]:
    """The address of a server of the model that comes along."""
    with (
        lasting(LocalBackend("embedded", num_slots=2, max_length=512)) as backend,
        Server(ServerSettings(port=0)).start(backend) as server,
    ):
        yield server.url


# OpenAI's client asks the system for its name.
@pytest.mark.process
@pytest.mark.server
@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("example", examples_of(SERVE), ids=lambda example: f"line {example.line}")
def test_examples_of_the_server_page_run(example, served_url, names, capsys):
    if "langchain_openai" in example.code:
        pytest.importorskip("langchain_openai")
    there = example._replace(code=example.code.replace("http://127.0.0.1:8000", served_url))
    assert there.code != example.code
    run_example("serve.md", there, names, capsys)


def elsewhere(make: Any, address: str) -> Any:
    """A constructor over a server that is somewhere else than it is told."""
    return lambda place, **fields: make(address, api_key="key", **fields)


@pytest.fixture(scope="module")
def llama_cpp_server() -> Iterator[LlamaCppServer]:
    options = {"num_slots": 1, "max_length": 512, "num_threads": 1, "speculation": "ngram-simple", "key": "key"}
    server = LlamaCppServer({"gguf": str(gguf_file()), **options})
    yield server
    server.close()


@pytest.mark.embedded
@pytest.mark.process
@pytest.mark.server
@pytest.mark.skipif(not find_spec("xllamacpp"), reason="xllamacpp is not installed")
@pytest.mark.parametrize("example", examples_of(SERVERS), ids=lambda example: f"line {example.line}")
def test_examples_of_the_page_of_servers_have_answers(example, names, capsys, monkeypatch, llama_cpp_server):
    """On a real llama.cpp server at another address."""
    for kind in (SpeculativeLLM, ChatSpeculative):
        monkeypatch.setattr(kind, "from_server", elsewhere(kind.from_server, llama_cpp_server.address))
    assert run_example("servers.md", example, names, capsys).texts


class Person(BaseModel):
    """For the docstrings."""

    name: str
    age: int


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"It rains in {city}."


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize(
    "owner",
    [SpeculativeLLM, ChatSpeculative, DocumentSummarizer, SpeculativeDecisions],
    ids=lambda owner: owner.__name__,
)
def test_examples_of_a_docstring_run_from_top_to_bottom(owner, names, capsys):
    names |= {"Person": Person, "get_weather": get_weather, "text": "The lamp of Cordouan was lit in 1611."}
    examples = examples_in(owner.__doc__)
    assert len(examples) == owner.__doc__.count("```python")
    texts = []
    for line, code, output in examples:
        embedded = code.replace("HuggingFaceTB/SmolLM2-1.7B-Instruct", "embedded").replace("=200)", "=16)")
        texts += run_example(owner.__name__, Example(line, embedded, output), names, capsys).texts
    # A decision is no text.
    assert bool(texts) == (owner is not SpeculativeDecisions)


def test_an_example_without_an_answer_fails(names, capsys):
    names["llm"] = FakeListLLM(responses=[" \n"])
    with pytest.raises(AssertionError, match=r"page\.md:7 prints nothing"):
        run_example("page.md", Example(7, "print(llm.invoke('x'))", None), names, capsys)
    with pytest.raises(AssertionError, match=r"page\.md:7: an answer is empty"):
        run_example("page.md", Example(7, "print('summary:', llm.invoke('x'))", None), names, capsys)


def test_the_chat_page_shows_the_generic_prompt_as_it_is():
    page = " ".join(CHAT.read_text(encoding="utf-8").split())
    assert " ".join(GENERIC_TOOL_PROMPT.format(tools="[…]").split()) in page


def test_the_reader_of_examples_finds_code_and_output():
    pages = [README, *(ROOT / "docs").glob("*.md")]
    examples = [example for page in pages for example in examples_of(page)]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert len(examples) == len(re.findall(r"```py", text))
    assert sum(example.output is not None for example in examples) == text.count("```text\n")
    # test_tgi_processes.py and test_engine_processes.py run those of the other pages.
    of_launchers = {ROOT / f"docs/{name}.md" for name in ("tgi-launcher", "engines", "from-tgi")}
    tried = {README, QUICKSTART, CHAT, APPLICATIONS, DOCUMENTS, MAKE_DRAFT, SERVE, SERVERS, TGI, *of_launchers}
    assert {page for page in pages if examples_of(page)} == tried


@pytest.mark.embedded
@pytest.mark.slow
def test_the_figure_shows_a_real_run():
    svg = {group.get("id"): group for group in ElementTree.parse(FIGURE).iter(f"{SVG}g")}  # noqa: S314 - our own

    def boxes(group: str) -> list[ElementTree.Element]:
        return [text for text in svg[group].iter(f"{SVG}text") if text.get("class") in ("own", "accepted", "rejected")]

    def words(group: str) -> list[str]:
        return [(text.text or "").replace("⏎", "\n") for text in boxes(group)]

    prompt = "".join((text.text or "").replace("⏎", "\n") for text in svg["prompt"].iter(f"{SVG}text"))
    request = CompletionRequest(prompt, SamplingParams(stop=["\n"]))
    options: dict[str, Any] = {"num_slots": 1, "max_length": 512}
    drafting = LocalBackend("embedded", drafter="prompt_lookup", draft_length=4, **options)
    plain = LocalBackend(drafting.model, drafting.tokenizer, drafter="none", **options)
    try:
        (reference,), events = plain.complete([request]), list(drafting.stream(request))
    finally:
        plain.close()
        drafting.close()

    def decoded(tokens: Iterable[Token]) -> list[str]:
        return [plain.tokenizer.decode([token.id]).strip(" ") for token in tokens]

    steps, finish = [event for event in events[:-1] if isinstance(event, TokenEvent)], events[-1]
    assert isinstance(finish, FinishEvent)
    emitted = [token for step in steps for token in step.tokens]
    assert decoded(reference.tokens) == words("plain") == decoded(emitted) == words("texts")
    assert [token.drafted for token in emitted] == [text.get("class") == "accepted" for text in boxes("texts")]
    rows = Counter(text.get("y") for text in boxes("texts"))
    assert [len(step.tokens) for step in steps] == list(rows.values())
    assert finish.speculation.drafted_tokens == len(boxes("drafts"))
    assert finish.speculation.accepted_tokens == sum(text.get("class") == "accepted" for text in boxes("drafts"))
    assert (reference.finish.speculation.num_steps, finish.speculation.num_steps) == (13, 7)
    assert ">13 forward passes<" in FIGURE.read_text(encoding="utf-8")
    assert ">7 forward passes, the same 13 tokens<" in FIGURE.read_text(encoding="utf-8")


def test_the_readme_names_options_that_exist_and_both_models():
    text = README.read_text(encoding="utf-8")
    options = text.split("\n## Options\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| (.*`.*) \|$", options.split("| --- |")[1], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)\b", row)}
    known = {*inspect.signature(LocalBackend).parameters, *SpeculativeLLM.model_fields, "logprobs"}
    assert len(named) > 15
    assert named <= known, f"README.md names what does not exist: {', '.join(sorted(named - known))}"
    assert all(f"`{name}`" in text for name in ("ChatSpeculative", "BaseChatModel", "SpeculativeLLM", "BaseLLM"))


def test_the_readme_links_every_page_of_the_guide():
    text = README.read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    assert len(pages) > 8
    assert [page for page in pages if f"](docs/{page}" not in text] == []


def test_the_quickstart_lists_every_command():
    table = QUICKSTART.read_text(encoding="utf-8").split("## Command line")[1]
    listed = re.findall(r"^\| `specdec ([\w-]+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(get_command(app).commands)  # type: ignore[attr-defined]  # it is a group


def test_links_of_the_readme_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if not t.startswith("https://") and not (ROOT / t).is_file()]
    assert not missing, f"README.md links to files that do not exist: {', '.join(missing)}"


def test_the_index_links_every_page_of_the_navigation():
    pages = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    missing = [page for page in pages if page != "index.md" and f"]({page})" not in index]
    assert len(pages) > 15
    assert not missing, f"docs/index.md has no link to {', '.join(missing)}"


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    public = {f"langchain_specdec.{name}" for name in langchain_specdec.__all__ if name != "__version__"}
    missing = {*public, "langchain_specdec.errors", "tgi_launcher"} - set(
        re.findall(r"^::: (\S+)$", reference, re.MULTILINE)
    )
    assert not missing, f"docs/reference/ has no page of {', '.join(sorted(missing))}"


def test_files_named_in_how_it_works_exist():
    table = HOW_IT_WORKS.read_text(encoding="utf-8").split("## From concept to file")[1]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    missing = [
        name for name in named if name != "langchain_specdec/" and not (ROOT / "langchain_specdec" / name).exists()
    ]
    assert len(named) > 15
    assert not missing, f"how-it-works.md names files that do not exist: {', '.join(missing)}"


def test_names_in_tables_exist():
    known = {*inspect.signature(LocalBackend).parameters, *SpeculativeLLM.model_fields, *ChatSpeculative.model_fields}
    info = Completion((), FinishEvent("length", 1, 0, 0, time_to_first_token=0.1)).info()
    known |= {*errors.__all__, *info, *(f"speculation.{name}" for name in info["speculation"]), "logprobs"}
    rows = re.findall(r"^\| (`[^|]*`) \|", QUICKSTART.read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-zA-Z_.]+)`", row)}
    assert len(named) > 15
    assert named <= known, f"quickstart.md names what does not exist: {', '.join(sorted(named - known))}"


def test_every_error_is_in_the_quickstart():
    table = QUICKSTART.read_text(encoding="utf-8").split("## Errors")[1]
    missing = [name for name in errors.__all__ if f"`{name}`" not in table]
    assert not missing, f"quickstart.md says nothing of {', '.join(missing)}"

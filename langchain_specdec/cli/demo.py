"""`specdec demo`: summarise a document with and without speculation, and compare."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_specdec.cli.loading import load_backend, spinner
from langchain_specdec.cli.options import FLAGS, OUTPUT, Given, takes_options
from langchain_specdec.cli.reporting import FAILED
from langchain_specdec.cli.standard_input import read_text
from langchain_specdec.cli.terminal_text import visible
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import Option
from langchain_specdec.pages.render import check_page, write_page
from langchain_specdec.sampling.params import SamplingParams

if TYPE_CHECKING:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.cli.demo_chain import Run
    from langchain_specdec.cli.demo_page import Record
    from langchain_specdec.cli.demo_view import View

_DOCUMENT = "demo_document.md"
# Long enough that the engine finds something to draft, and so measures what steps cost here.
_WARM_UP_TOKENS = 24


@takes_options(FLAGS.keys() - {"logprobs", "schema", "regex"}, max_new_tokens={"default": 200})
def demo(
    given: Given,
    *,
    document: Annotated[
        Path | None,
        typer.Option(help="Text file to summarise; '-' is standard input.", show_default="one that comes along"),
    ] = None,
    rounds: Annotated[
        int, Option(2, "Runs of each kind. Those after the first are not shown, only measured.", int, 1, 10)
    ],
    html: Annotated[
        Path | None,
        Option(None, "Write a page to look at into this file: the summary with its drafts marked, and bars.", Path),
        OUTPUT,
    ],
) -> None:
    """Summarise a document in a LangChain chain, with and without speculation, and compare."""
    if html is not None:
        check_page(html, document)
    text = _read(document)
    params = given.params
    if params.temperature and params.seed is None:
        params = replace(params, seed=secrets.randbelow(2**32))  # both runs need the same
    speculative = load_backend(given.model, debug=given.debug, **given.options)
    with closing(speculative):
        record = _record(speculative, text, params)
        with _written(record, html):
            _compare(speculative, _make_plain(speculative, given.options), record, params, rounds)


@contextmanager
def _written(record: Record, html: Path | None) -> Iterator[None]:
    """Write the page at the end, also of a demo that was interrupted, as far as it came."""
    from langchain_specdec.cli.demo_page import make_page

    try:
        yield
    finally:
        if html is not None and record.steps:
            write_page(make_page(record), html)
            print(visible(f"wrote {html}"), file=sys.stderr)
        elif html is not None and isinstance(sys.exc_info()[1], KeyboardInterrupt):
            print(visible(f"Nothing was written yet, so {html} is not written."), file=sys.stderr)


def _make_plain(speculative: LocalBackend, options: Mapping[str, Any]) -> LocalBackend:
    """A backend that does not speculate on the same weights, so that the model is in memory once."""
    from langchain_specdec.backends.local import LocalBackend

    alike: Any = {n: options[n] for n in ("num_slots", "max_length", "prefill_chunk", "attn_implementation")}
    # Layers of a model that is loaded already cannot be compiled, so "auto" is the most that can be asked for.
    alike["compile"] = "off" if options["compile"] == "off" else "auto"
    return LocalBackend(speculative.model, speculative.tokenizer, drafter="none", **alike)


def _read(path: Path | None) -> str:
    if path is None:
        text = resources.files(__package__ or "langchain_specdec.cli").joinpath(_DOCUMENT).read_text(encoding="utf-8")
    elif str(path) == "-":
        text = read_text()
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            msg = f"{path} is not UTF-8 text: {error}"
            raise InvalidParameterError(msg) from error
        except OSError as error:
            msg = f"--document {path} cannot be read: {error.strerror}"
            raise InvalidParameterError(msg) from error
    # Line breaks inside a paragraph are the file's, and a small model takes them for the author's.
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    joined = "\n\n".join(part for part in paragraphs if part)
    if not joined:
        msg = f"{'Standard input' if str(path) == '-' else path} is empty."
        raise InvalidParameterError(msg)
    return joined


def _compare(
    speculative: LocalBackend, plain: LocalBackend, record: Record, params: SamplingParams, rounds: int
) -> None:
    from langchain_specdec.cli.demo_chain import summarise
    from langchain_specdec.cli.demo_view import make_view

    view = make_view()
    for name, value in record.facts:
        view.say(f"{name:<10}{value}")
    document = record.document
    kinds = {True: (speculative, record.speculative), False: (plain, record.plain)}
    with closing(plain):
        warm_up = replace(params, max_new_tokens=min(params.max_new_tokens, _WARM_UP_TOKENS))
        with spinner("Reading the document, and measuring what decoding steps cost here"):
            for backend, _ in kinds.values():
                summarise(backend, document, _ignore, **vars(warm_up))
        for is_marked, (backend, runs) in kinds.items():
            view.begin("with speculation" if is_marked else "without speculation", is_marked=is_marked)
            steps = record.steps if is_marked else None
            try:
                runs.append(summarise(backend, document, view.add, steps, **vars(params)))
            finally:
                view.end()
        for number in range(2, rounds + 1):
            # The other way round each time, so that a machine that slows down or speeds up favours neither.
            order = list(kinds.values())[:: -1 if number % 2 == 0 else 1]
            with spinner(f"Once more in the other order: round {number} of {rounds}"):
                for backend, runs in order:
                    runs.append(summarise(backend, document, _ignore, **vars(params)))
    record.table = _comparison(record.speculative, record.plain)
    record.verdict, record.is_same = _verdict([run.text for run in (*record.speculative, *record.plain)])
    _conclude(view, record.speculative, record.plain)


def _ignore(tokens: object) -> None:
    del tokens


def _record(backend: LocalBackend, document: str, params: SamplingParams) -> Record:
    """What is known before anything is written."""
    import torch

    from langchain_specdec.cli.demo_page import Record

    device, dtype = backend.model.device, str(backend.model.dtype).removeprefix("torch.")
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    title = document.partition("\n")[0].lstrip("# ")
    words = sum(any(map(str.isalnum, word)) for word in document.split())
    facts = [
        ("chain", "PromptTemplate | SpeculativeLLM | StrOutputParser"),
        ("model", f"{backend.model_name} on {device} in {dtype}{threads}"),
        ("document", f"{title} ({words} words, {len(backend.token_ids(document))} tokens)"),
    ]
    if params.temperature:
        facts.append(("sampling", f"temperature {params.temperature}, seed {params.seed}"))
    return Record(title, document, facts, device)


def _comparison(
    speculative: Sequence[Run], plain: Sequence[Run]
) -> tuple[tuple[str, str, str], list[tuple[str, str, str]]]:
    """Head and rows of the table of figures."""
    ours, theirs = (sum((run.stats for run in runs), start=type(runs[0].stats)()) for runs in (speculative, plain))
    speed_up = ours.tokens_per_second / theirs.tokens_per_second
    return (
        ("", "without", "with speculation"),
        [
            ("decode tokens/s", f"{theirs.tokens_per_second:.1f}", f"{ours.tokens_per_second:.1f}"),
            ("tokens per step", f"{theirs.tokens_per_step:.2f}", f"{ours.tokens_per_step:.2f}"),
            ("acceptance rate", "", f"{ours.acceptance_rate:.0%}" if ours.drafted_tokens else "nothing drafted"),
            ("speed-up", "", f"{speed_up:.2f}x"),
        ],
    )


def _verdict(texts: Sequence[str]) -> tuple[list[str], bool]:
    """Whether all texts are the same, in lines, and as a truth value."""
    if len(set(texts)) == 1:
        return [f"identical: yes ({len(texts[0])} characters in each of {len(texts)} runs)"], True
    other = next(text for text in texts if text != texts[0])
    at = next(
        (i for i, (a, b) in enumerate(zip(texts[0], other, strict=False)) if a != b), min(len(texts[0]), len(other))
    )
    return [
        f"identical: no, the texts differ from character {at} on:",
        *(f"  … {text[max(at - 30, 0) : at + 30]!r}" for text in (texts[0], other)),
        "Speculation must never change the text. Please report this, with the output of `specdec doctor`.",
    ], False


def _conclude(view: View, speculative: Sequence[Run], plain: Sequence[Run]) -> None:
    view.table(*_comparison(speculative, plain))
    lines, is_same = _verdict([run.text for run in (*speculative, *plain)])
    for line in lines:
        view.say(line)
    if not is_same:
        raise typer.Exit(FAILED)

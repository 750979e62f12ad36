"""`specdec demo`: summarise a document with and without speculation, and compare."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_specdec.cli.demo_text import ends_sentence, is_looping, paragraphs_of, repeated_share, title_of
from langchain_specdec.cli.loading import load_backend, spinner
from langchain_specdec.cli.options import OUTPUT, SUMMARY_FLAGS, Given, takes_options
from langchain_specdec.cli.progress import Display, followed
from langchain_specdec.cli.reporting import FAILED
from langchain_specdec.cli.terminal_text import visible
from langchain_specdec.cli.text_files import read_file
from langchain_specdec.options import Option
from langchain_specdec.pages.render import check_page, write_page
from langchain_specdec.sampling.params import SamplingParams

if TYPE_CHECKING:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.cli.demo_chain import Run
    from langchain_specdec.cli.demo_page import Record
    from langchain_specdec.cli.demo_view import View
    from langchain_specdec.completions.events import Token
    from langchain_specdec.completions.stats import SpeculationStats

_DOCUMENT = "demo_document.md"
# Options that both kinds of run share.
_ALIKE = ("compile", "num_slots", "max_length", "prefill_chunk", "num_threads", "attn_implementation")
# Long enough that the engine finds something to draft, and so measures what steps cost here.
_WARM_UP_TOKENS = 24
_EXPLANATION = (
    "A drafter guesses the next tokens (words and parts of words), and the model checks all guesses in one step. "
    "It keeps those that it would have written itself, and adds a token of its own."
)


@takes_options(SUMMARY_FLAGS, max_new_tokens={"default": 200})
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
        record = _record(speculative, text, title_of(text, document), params)
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

    alike: Any = {n: options[n] for n in _ALIKE}
    return LocalBackend(speculative.model, speculative.private_tokenizer, drafter="none", **alike)


def _read(path: Path | None) -> str:
    if path is not None:
        return paragraphs_of(read_file(path, "specdec demo --document"))
    document = resources.files(__package__ or "langchain_specdec.cli").joinpath(_DOCUMENT)
    return paragraphs_of(document.read_text(encoding="utf-8"))


def _compare(
    speculative: LocalBackend, plain: LocalBackend, record: Record, params: SamplingParams, rounds: int
) -> None:
    from langchain_specdec.cli.demo_chain import beginning_of, summarise
    from langchain_specdec.cli.demo_view import make_view

    view = make_view()
    for name, value in record.facts:
        view.say(f"{name:<10}{value}")
    view.say()
    view.say(_EXPLANATION)
    document = record.document
    kinds = {True: (speculative, record.speculative), False: (plain, record.plain)}
    with closing(plain):
        warm_up = replace(params, max_new_tokens=min(params.max_new_tokens, _WARM_UP_TOKENS))
        beginning = beginning_of(document, speculative)
        with spinner("Reading the document, and measuring what steps cost here") as display:
            for backend, _ in kinds.values():
                with followed(display, _reading(backend, beginning)):
                    summarise(backend, beginning, _ignore, **vars(warm_up))
        for is_marked, (backend, runs) in kinds.items():
            view.begin("with speculation" if is_marked else "without speculation", is_marked=is_marked)
            steps = record.steps if is_marked else None
            backend.engine.drafter.forget()
            try:
                runs.append(summarise(backend, document, view.add, steps, view.tell, **vars(params)))
            finally:
                view.end()
        for number in range(2, rounds + 1):
            # The other way round each time, so that a machine that slows down or speeds up favours neither.
            order = list(kinds.values())[:: -1 if number % 2 == 0 else 1]
            with spinner(f"Once more in the other order: round {number} of {rounds}") as display:
                for backend, runs in order:
                    # What it wrote the round before would give all of it away.
                    backend.engine.drafter.forget()
                    runs.append(summarise(backend, document, _counting(display, params), **vars(params)))
    _conclude(view, record, params)


def _reading(backend: LocalBackend, text: str) -> Callable[[], tuple[str, int, int]]:
    """How many tokens of a text a backend has read since now, of how many."""
    total, before = len(backend.token_ids(text)), backend.num_prefill_tokens
    return lambda: ("Reading and measuring, tokens", min(backend.num_prefill_tokens - before, total), total)


def _counting(display: Display, params: SamplingParams) -> Callable[[Sequence[Token]], None]:
    """What shows how many tokens it was called with."""
    count = 0

    def show(tokens: Sequence[Token]) -> None:
        nonlocal count
        count += len(tokens)
        display.follow("Writing it once more, tokens", count, params.max_new_tokens)

    return show


def _ignore(tokens: object) -> None:
    del tokens


def _record(backend: LocalBackend, document: str, title: str, params: SamplingParams) -> Record:
    """What is known before anything is written."""
    import torch

    from langchain_specdec.cli.demo_page import Record

    device, dtype = backend.model.device, str(backend.model.dtype).removeprefix("torch.")
    count = getattr(backend.engine.runner, "num_threads", None) or torch.get_num_threads()
    threads = f", {count} threads" if device.type == "cpu" else ""
    words = sum(any(map(str.isalnum, word)) for word in document.split())
    facts = [
        ("chain", "DocumentSummarizer: PromptTemplate | SpeculativeLLM | StrOutputParser"),
        ("model", f"{backend.model_name} on {device} in {dtype}{threads}"),
        ("document", f"{title} ({words} words, {len(backend.token_ids(document))} tokens)"),
    ]
    if params.temperature:
        facts.append(("sampling", f"temperature {params.temperature}, seed {params.seed}"))
    return Record(title, document, facts, device)


def _comparison(
    speculative: Sequence[Run], plain: Sequence[Run], *, has_speed_up: bool
) -> tuple[tuple[str, str, str], list[tuple[str, str, str]]]:
    """Head and rows of the table of figures."""
    ours, theirs = _stats_of(speculative), _stats_of(plain)
    rows = [
        ("tokens per second", f"{theirs.tokens_per_second:.1f}", f"{ours.tokens_per_second:.1f}"),
        ("tokens per step", f"{theirs.tokens_per_step:.2f}", f"{ours.tokens_per_step:.2f}"),
        ("acceptance rate", "", f"{ours.acceptance_rate:.0%}" if ours.drafted_tokens else "nothing drafted"),
    ]
    for source, drafted, accepted in ours.by_source:
        rows.append((f"accepted of {source}", "", f"{accepted} of {drafted}"))
    if has_speed_up:
        rows.append(("speed-up", "", _speed_up(ours, theirs)))
    return ("", "without", "with"), rows


def _stats_of(runs: Sequence[Run]) -> SpeculationStats:
    return sum((run.stats for run in runs), start=type(runs[0].stats)())


def _speed_up(ours: SpeculationStats, theirs: SpeculationStats) -> str:
    return f"{ours.tokens_per_second / theirs.tokens_per_second:.2f}x" if theirs.tokens_per_second else "unknown"


def _notes(speculative: Sequence[Run], plain: Sequence[Run], params: SamplingParams, share: float) -> list[str]:
    """What else to know of the summary, of which such a share repeats itself; a sentence each."""
    run = speculative[0]
    notes = []
    if run.finish_reason == "length" and not ends_sentence(run.text):
        notes.append(f"The summary is cut off at --max-new-tokens {params.max_new_tokens}, in mid-sentence.")
    if is_looping(share):
        notes.append(
            f"The model repeats itself: {share:.0%} of what it wrote stands in it before. That is easy to guess, so "
            f"being {_speed_up(_stats_of(speculative), _stats_of(plain))} as fast says little about other texts."
        )
    return notes


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


def _conclude(view: View, record: Record, params: SamplingParams) -> None:
    kinds = record.speculative, record.plain
    share = repeated_share(kinds[0][0].answers)
    record.table = _comparison(*kinds, has_speed_up=not is_looping(share))
    record.table_title = "Figures of one run of each" if len(kinds[0]) == 1 else f"Figures of {len(kinds[0])} runs each"
    record.notes = _notes(*kinds, params, share)
    record.verdict, record.is_same = _verdict([run.text for runs in kinds for run in runs])
    view.table(record.table_title, *record.table)
    for line in (*record.notes, *record.verdict):
        view.say(line)
    if not record.is_same:
        raise typer.Exit(FAILED)

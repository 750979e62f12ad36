"""`specdec demo`: summarise a document with and without speculation, and compare."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_specdec.cli.loading import DrafterName, load_backend, spinner
from langchain_specdec.cli.reporting import FAILED, reported
from langchain_specdec.errors import InvalidParameterError

if TYPE_CHECKING:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.cli.demo_chain import Run
    from langchain_specdec.cli.demo_view import View

__all__ = ["demo"]

_DOCUMENT = "demo_document.md"
# Long enough that the engine finds something to draft, and so measures what steps cost here.
_WARM_UP_TOKENS = 24
_MAX_ROUNDS = 10


def demo(
    model: Annotated[str, typer.Option(help="Model id, folder, or 'embedded'.")] = "embedded",
    draft_model: Annotated[str | None, typer.Option(help="Smaller model with the same tokenizer.")] = None,
    drafter: Annotated[DrafterName, typer.Option(help="Where drafts come from.")] = DrafterName.AUTO,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of the summary.")] = 200,
    document: Annotated[
        Path | None,
        typer.Option(help="Text file to summarise.", exists=True, dir_okay=False, show_default="one that comes along"),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling noise.", show_default="drawn")] = None,
    rounds: Annotated[
        int, typer.Option(help="Runs of each kind. Those after the first are not shown, only measured.")
    ] = 2,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' messages.")] = False,
) -> None:
    """Summarise a document in a LangChain chain, with and without speculation, and compare."""
    with reported(debug=debug):
        if not 1 <= rounds <= _MAX_ROUNDS:
            msg = f"--rounds must be a whole number from 1 to {_MAX_ROUNDS}, got {rounds}."
            raise InvalidParameterError(msg)
        text = _read(document)
        with spinner("Starting PyTorch"):
            from langchain_specdec.sampling.params import SamplingParams
        if temperature and seed is None:
            seed = random.randrange(2**32)  # both runs need the same
        params = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        SamplingParams(**params)  # type: ignore[arg-type]  # checked before a model is loaded for nothing
        speculative = load_backend(model, draft_model=draft_model, drafter=drafter, num_slots=1, debug=debug)
        with closing(speculative):
            _compare(speculative, text, params, rounds)


def _read(path: Path | None) -> str:
    if path is None:
        text = resources.files(__package__ or "langchain_specdec.cli").joinpath(_DOCUMENT).read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            msg = f"{path} is not UTF-8 text: {error}"
            raise InvalidParameterError(msg) from error
    # Line breaks inside a paragraph are the file's, and a small model takes them for the author's.
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    joined = "\n\n".join(part for part in paragraphs if part)
    if not joined:
        msg = f"{path} is empty."
        raise InvalidParameterError(msg)
    return joined


def _compare(speculative: LocalBackend, document: str, params: dict[str, Any], rounds: int) -> None:
    from langchain_specdec.backends.local import LocalBackend
    from langchain_specdec.cli.demo_chain import summarise
    from langchain_specdec.cli.demo_view import make_view

    view = make_view()
    _introduce(view, speculative, document, params)
    # The same weights, so the model is in memory once.
    plain = LocalBackend(speculative.model, speculative.tokenizer, drafter="none", num_slots=1)
    with closing(plain):
        warm_up = {**params, "max_new_tokens": min(params["max_new_tokens"], _WARM_UP_TOKENS)}
        with spinner("Reading the document, and measuring what decoding steps cost here"):
            for backend in (speculative, plain):
                summarise(backend, document, _ignore, **warm_up)
        first = []
        for backend in (speculative, plain):
            is_marked = backend is speculative
            view.begin("with speculation" if is_marked else "without speculation", is_marked=is_marked)
            try:
                first.append(summarise(backend, document, view.add, **params))
            finally:
                view.end()
        ours, theirs = [first[0]], [first[1]]
        for number in range(2, rounds + 1):
            # The other way round each time, so that a machine that slows down or speeds up favours neither.
            order = [(plain, theirs), (speculative, ours)][:: 1 if number % 2 == 0 else -1]
            with spinner(f"Once more in the other order: round {number} of {rounds}"):
                for backend, runs in order:
                    runs.append(summarise(backend, document, _ignore, **params))
    _conclude(view, ours, theirs)


def _ignore(tokens: object) -> None:
    del tokens


def _introduce(view: View, backend: LocalBackend, document: str, params: dict[str, Any]) -> None:
    import torch

    device, dtype = backend.model.device, str(backend.model.dtype).removeprefix("torch.")
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    view.say("chain     PromptTemplate | SpeculativeLLM | StrOutputParser")
    view.say(f"model     {backend.model_name} on {device} in {dtype}{threads}")
    title = document.partition("\n")[0].lstrip("# ")
    words = sum(any(map(str.isalnum, word)) for word in document.split())
    view.say(f"document  {title} ({words} words, {len(backend.token_ids(document))} tokens)")
    if params["temperature"]:
        view.say(f"sampling  temperature {params['temperature']}, seed {params['seed']}")


def _conclude(view: View, speculative: Sequence[Run], plain: Sequence[Run]) -> None:
    ours, theirs = (sum((run.stats for run in runs), start=type(runs[0].stats)()) for runs in (speculative, plain))
    speed_up = ours.tokens_per_second / theirs.tokens_per_second
    view.table(
        ("", "without", "with speculation"),
        [
            ("decode tokens/s", f"{theirs.tokens_per_second:.1f}", f"{ours.tokens_per_second:.1f}"),
            ("tokens per step", f"{theirs.tokens_per_step:.2f}", f"{ours.tokens_per_step:.2f}"),
            ("acceptance rate", "", f"{ours.acceptance_rate:.0%}" if ours.drafted_tokens else "nothing drafted"),
            ("speed-up", "", f"{speed_up:.2f}x"),
        ],
    )
    texts = [run.text for run in (*speculative, *plain)]
    num_runs = len(texts)
    if len(set(texts)) == 1:
        view.say(f"identical: yes ({len(texts[0])} characters in each of {num_runs} runs)")
        return
    other = next(text for text in texts if text != texts[0])
    at = next(
        (i for i, (a, b) in enumerate(zip(texts[0], other, strict=False)) if a != b), min(len(texts[0]), len(other))
    )
    view.say(f"identical: no, the texts differ from character {at} on:")
    for text in (texts[0], other):
        view.say(f"  … {text[max(at - 30, 0) : at + 30]!r}")
    view.say("Speculation must never change the text. Please report this, with the output of `specdec doctor`.")
    raise typer.Exit(FAILED)

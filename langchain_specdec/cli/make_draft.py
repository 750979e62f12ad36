"""`specdec make-draft`: train a draft for a model from the model's own answers."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_specdec.backends.local_options import OPTIONS, DraftOptions
from langchain_specdec.cli.loading import load_backend, spinner
from langchain_specdec.cli.options import CHAT, FLAGS, OUTPUT, Given, takes_options
from langchain_specdec.cli.reporting import INTERRUPTED
from langchain_specdec.cli.signals import handled
from langchain_specdec.cli.terminal_text import json_line, visible
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import Option
from langchain_specdec.training.packages import check_packages
from langchain_specdec.training.prompt_files import PromptFiles
from langchain_specdec.training.settings import SETTINGS, DraftSettings
from langchain_specdec.training.work_folder import check_out

if TYPE_CHECKING:
    from langchain_specdec.training.verdict import Verdict

_PROMPTS, _TRAINING = "Prompts", "Training"
# A text costs the same tokens whatever drafts it, so there is nothing to choose.
_FLAGS = (FLAGS.keys() & OPTIONS.keys()) - DraftOptions.__annotations__.keys() - {
    "draft_model", "draft_revision", "draft_quantization", "adapter", "grammar_timeout",
}  # fmt: skip
_ENGINE = ("max_length", "num_threads", "prefill_chunk", "compile")


@takes_options(_FLAGS, num_slots={"default": OPTIONS["num_slots"].default})
def make_draft(
    given: Given,
    *,
    model: Annotated[str, typer.Argument(help=FLAGS["model"].help.replace("`", ""), show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the draft.", show_default=False, rich_help_panel=OUTPUT)],
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of prompts, JSON lines or one a line. May be repeated.",
            show_default="the model writes them",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    eval_prompts: Annotated[
        list[Path] | None,
        typer.Option(
            help="The same to measure the draft on.",
            show_default="a tenth of the prompts, at most 16, which are held out",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    chat: Annotated[bool | None, CHAT] = None,
    kind: Annotated[str, SETTINGS["kind"], _TRAINING],
    keep_layers: Annotated[int | None, SETTINGS["keep_layers"], _TRAINING],
    num_prompts: Annotated[int, SETTINGS["num_prompts"], _PROMPTS],
    own_prompts: Annotated[int | None, SETTINGS["own_prompts"], _PROMPTS],
    max_new_tokens: Annotated[int, SETTINGS["max_new_tokens"], _PROMPTS],
    temperature: Annotated[float | None, SETTINGS["temperature"], _PROMPTS],
    draft_vocab_size: Annotated[int | None, SETTINGS["draft_vocab_size"], _TRAINING],
    unroll: Annotated[int, SETTINGS["unroll"], _TRAINING],
    epochs: Annotated[int, SETTINGS["epochs"], _TRAINING],
    learning_rate: Annotated[float | None, SETTINGS["learning_rate"], _TRAINING],
    batch_tokens: Annotated[int, SETTINGS["batch_tokens"], _TRAINING],
    checkpoint_steps: Annotated[int, SETTINGS["checkpoint_steps"], _TRAINING],
    seed: Annotated[int, SETTINGS["seed"], _TRAINING],
    resume: Annotated[bool, Option(False, "Go on with a run in this folder that was ended.", bool), _TRAINING],
    as_json: Annotated[bool, Option(False, "Print the verdict as one JSON object.", bool), OUTPUT],
) -> None:
    """Train a draft for a model from the model's own answers, and measure what it brings."""
    settings = DraftSettings(
        kind=kind,
        keep_layers=keep_layers,
        num_prompts=num_prompts,
        own_prompts=own_prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        draft_vocab_size=draft_vocab_size,
        unroll=unroll,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_tokens=batch_tokens,
        checkpoint_steps=checkpoint_steps,
        seed=seed,
    )
    # Whatever is wrong with them is said before a model is loaded.
    files = PromptFiles.read(prompts or (), eval_prompts or ())
    if not files.prompts and own_prompts == 0:
        msg = "--own-prompts 0 and no --prompts leave nothing to train on. Give a file of prompts, or more of its own."
        raise InvalidParameterError(msg)
    check_out(out, goes_on=resume)
    check_packages()
    backend = load_backend(model, debug=given.debug, **given.options)
    stop = threading.Event()

    def press(*_: object) -> None:
        if stop.is_set() or not is_training[0]:
            raise KeyboardInterrupt
        stop.set()
        print("Ending after this step; Ctrl-C again ends it at once.", file=sys.stderr)

    is_training = [False]
    begun = f"specdec {' '.join(map(shlex.quote, sys.argv[1:]))}"
    command = visible(begun if resume else f"{begun} --resume")
    with handled(signal.SIGINT, press), spinner(f"Making a draft for {model}", has_time_left=True) as display:
        from langchain_specdec.training.draft_maker import DraftMaker
        from langchain_specdec.training.recipe import Hooks

        def tell(what: str, done: int, total: int) -> None:
            is_training[0] = what.startswith("Training")
            display.tell(what, done, total)

        # The others are those of loading, and the model is loaded.
        engine = {name: given.options[name] for name in _ENGINE}
        hooks = Hooks(tell, display.note, stop.is_set)
        maker = DraftMaker(backend, out, settings, files, is_chat=chat, options=engine, hooks=hooks, goes_on=resume)
        try:
            verdict = maker.run()
        except KeyboardInterrupt:
            verdict = None
    if verdict is None:
        print(f"Interrupted. What is done stays in {visible(str(out))}. Go on by: {command}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print(json_line({"draft": str(out), **verdict.as_dict()}))
        return
    for line in _lines(verdict, out, model):
        print(visible(line))


def _lines(verdict: Verdict, out: Path, model: str) -> list[str]:
    places = ", ".join(f"{rate:.0%}" for rate in verdict.acceptance)
    lines = [
        f"{out} is a draft for {model}. On prompts that it was not trained on:",
        f"  right at the first, second, … token of a draft, where those before it are: {places}",
        f"  {verdict.tokens_per_step:.2f} tokens a step with such drafts in every step, which takes as long as "
        f"{verdict.step_cost:.2f} plain ones",
        f"  tokens per second: {verdict.plain:.1f} plain, {verdict.without:.1f} without the draft, "
        f"{verdict.speed:.1f} with it ({verdict.observed_gain:.2f} times plain, {verdict.predicted_gain:.2f} foreseen)",
    ]
    if verdict.pays:
        how = f"--draft-model {shlex.quote(str(out))}"
        if verdict.draft_quantization is not None:
            how += f" --draft-quantization {verdict.draft_quantization}"
        return [*lines, f"It pays on this machine. Use it by: {how}"]
    return [
        *lines,
        "It does not pay on this machine. Given as --draft-model, it does no harm: the engine asks it only while that "
        "pays. More prompts of your own (--prompts) and more --epochs make a better one.",
    ]

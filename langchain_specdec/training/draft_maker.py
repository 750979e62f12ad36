"""Makes a draft for a model, stage by stage. What a run has done that was ended is not done again."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.training import fit, verdict
from langchain_specdec.training.answers import Text, write_answers
from langchain_specdec.training.conversations import Conversation, Conversations
from langchain_specdec.training.head_recipe import HeadRecipe
from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.packages import check_packages
from langchain_specdec.training.prompt_choice import ChosenPrompts, choose_prompts
from langchain_specdec.training.prompt_files import PromptFiles
from langchain_specdec.training.prompt_tokens import PromptFormat
from langchain_specdec.training.pruned_recipe import PrunedRecipe
from langchain_specdec.training.recipe import Hooks, Recipe
from langchain_specdec.training.settings import MOST_TEXT_TOKENS, DraftSettings
from langchain_specdec.training.states import RecordedStates, bytes_of, check_room, probe, record_states
from langchain_specdec.training.student import Student
from langchain_specdec.training.text_batches import TextBatches
from langchain_specdec.training.verdict import Verdict
from langchain_specdec.training.work_folder import WorkFolder

_WEIGHTS = "draft.safetensors"
_VERDICT = "verdict.json"


class DraftMaker:
    """One run that makes a draft, in a folder.

    Args:
        backend: The model with its engine. The run closes it.
        out: The draft's folder.
        settings: How the draft is made.
        files: Prompts of files.
        is_chat: Whether texts are a user's messages; None: where the model has a chat format.
        options: Options of `LocalBackend` by which it is measured: those of the engine that are given.
        hooks: What it tells and asks.
        goes_on: Whether to go on with a run that was ended.

    Raises:
        InvalidParameterError: See `WorkFolder`.
        UnsupportedModelError: There can be no draft for this model.
        MissingDependencyError: What training needs is not installed.
    """

    def __init__(
        self,
        backend: LocalBackend,
        out: Path,
        settings: DraftSettings,
        files: PromptFiles,
        *,
        is_chat: bool | None,
        options: dict[str, Any],
        hooks: Hooks,
        goes_on: bool,
    ) -> None:
        check_packages()
        self._backend, self._settings, self._files = backend, settings, files
        self._is_chat, self._options, self._hooks = is_chat, options, hooks
        self._config = backend.model.config.get_text_config()
        runner = backend.engine.runner
        if not runner.takes_trees and runner.cache.states is not None:
            msg = f"{backend.model_name} keeps recurrent states, which a draft of this kind cannot follow."
            raise UnsupportedModelError(msg)
        self._recipe: Recipe
        if settings.kind == "pruned":
            self._recipe = PrunedRecipe(backend.model, backend.model_name, settings, hooks)
        else:
            self._recipe = HeadRecipe(backend.model, settings, hooks)
        identity = json.dumps(dict(backend.identity), sort_keys=True, default=str)
        facts = {
            "model": backend.model_name,
            "weights (fingerprint)": hashlib.sha256(identity.encode()).hexdigest()[:16],
            "prompts (fingerprint of --prompts, --eval-prompts)": files.digest,
            "chat format (--chat, --raw)": is_chat,
            **settings.as_dict(),
        }
        self.folder = WorkFolder(out, facts, goes_on=goes_on)

    def run(self) -> Verdict | None:
        """Make the draft, or go on; None where it was stopped before the end.

        Raises:
            SpecDecError: A stage fails. What was done stays.
        """
        with closing(self._backend) as backend:
            settings, folder, hooks = self._settings, self.folder, self._hooks
            prompt_format = PromptFormat(backend, self._is_chat)
            chosen = choose_prompts(backend, self._files, settings, folder, prompt_format, hooks.tell)
            asked = Conversations(prompt_format, backend.max_length, settings.max_new_tokens)
            begun = [Conversation(chosen.tokens[number], chosen.turns[number]) for number in chosen.trained]
            self._describe(chosen, [length for each in begun for length in asked.most_lengths(each)])
            texts = write_answers(backend, begun, asked, settings, folder, hooks.tell)
            for reason, count in asked.left_out.items():
                hooks.note(f"Later turns that are left out: {count}. {reason}")
            # The backend lets go of them when it is closed.
            model, tokenizer, name = backend.model, backend.tokenizer, backend.model_name
        target = replace(load_model(model, tokenizer), name=name)
        texts = [Text(text.tokens[:MOST_TEXT_TOKENS], text.num_prompt_tokens) for text in texts]
        trained = [number for number, text in enumerate(texts) if _has_answer(text)]
        if not trained:
            msg = f"{name} answers none of the prompts within {MOST_TEXT_TOKENS} tokens. Give shorter ones."
            raise UnsupportedModelError(msg)
        threads = self._options.get("num_threads")
        output, ids = self._recipe.prepare(target, [texts[number] for number in trained], self.folder, threads)
        self._record(target, output, ids, texts)
        student = self._trained(TextBatches(texts, trained, RecordedStates(self.folder), self._settings.batch_tokens))
        return None if student is None else self._judge(target, student, chosen)

    def _describe(self, chosen: ChosenPrompts, lengths: list[int]) -> None:
        """Say what the run is made from, and the room that it takes.

        Args:
            chosen: All prompts.
            lengths: Most tokens of each text that is trained on.
        """
        num_later = len(lengths) - len(chosen.trained)
        later = f" Up to {num_later} later turns are answered, too." if num_later else ""
        most = sum(min(length, MOST_TEXT_TOKENS) for length in lengths)
        needed = bytes_of(most, len(self._recipe.points), self._config.hidden_size)
        for reason, count in chosen.left_out.items():
            self._hooks.note(f"Prompts that are left out: {count}. {reason}")
        self._hooks.note(
            f"{len(chosen.tokens)} prompts, {chosen.num_own} of the model's own, {len(chosen.held_out)} held out to "
            f"measure on.{later} The states to train on take up to {needed / 1e9:.2f} GB in {self.folder.path} until "
            "it is done."
        )
        check_room(self.folder, needed)

    def _record(self, target: LoadedModel, output: OutputHead, ids: Tensor | None, texts: list[Text]) -> None:
        longest = max(len(text.tokens) for text in texts)
        threads = self._options.get("num_threads")
        runner = make_runner(target, num_slots=1, max_length=longest, max_width=1, num_threads=threads)
        try:
            runner.tap(self._recipe.points)
            states, logits = probe(runner, texts[0].tokens)
            output.check(states, logits if ids is None else logits[ids], target.name)
            record_states(runner, self._recipe.points, self._config.hidden_size, texts, self.folder, self._hooks.tell)
        except ValueError as error:
            if isinstance(error, UnsupportedModelError):
                raise
            raise UnsupportedModelError(f"{target.name} shows no states of its layers: {error}.") from error
        finally:
            # The model is still of use.
            runner.release()

    def _trained(self, batches: TextBatches) -> Student | None:
        """The draft after training, or as it was saved; None where training was stopped."""
        settings, saved, hooks = self._settings, self.folder.path / _WEIGHTS, self._hooks
        student = self._recipe.student(batches)
        if saved.exists():
            student.draft.load_state_dict(load_file(saved))
            return student
        folder = self.folder.path / "checkpoints"
        rate = fit.learning_rate(settings, self._recipe.learning_rate, self._config.hidden_size)
        if not fit.fit(student, batches, settings, rate, folder, hooks.tell, hooks.is_stopped):
            return None
        self.folder.write(_WEIGHTS, save({name: value.cpu() for name, value in student.draft.state_dict().items()}))
        return student

    def _judge(self, target: LoadedModel, student: Student, chosen: ChosenPrompts) -> Verdict:
        """Save the draft, measure it, and take the work away."""
        out = self.folder.out
        draft = {"draft_model": str(out), **self._recipe.save(student.eval(), out)}
        params = SamplingParams(max_new_tokens=self._settings.max_new_tokens)
        prompts = [chosen.tokens[number] for number in chosen.held_out]
        found = verdict.measure(
            target.model, draft, self._settings.unroll, prompts, params, self._options, self._hooks.tell
        )
        (out / _VERDICT).write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
        self.folder.remove()
        return found


def _has_answer(text: Text) -> bool:
    """Whether a draft of it can be trained: its second token on is answered."""
    return len(text.tokens) > text.num_prompt_tokens + 1

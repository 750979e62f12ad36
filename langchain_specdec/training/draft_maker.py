"""Makes a draft for a model, stage by stage. What a run has done that was ended is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.errors import UnsupportedModelError
from langchain_specdec.models.heads.save_head import save_head
from langchain_specdec.models.heads.target_sizes import embedding_of
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.progress import Progress
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.training import fit, verdict
from langchain_specdec.training.answers import Text, write_answers
from langchain_specdec.training.draft_vocabulary import draft_token_ids, share_covered
from langchain_specdec.training.new_head import head_config, new_head, tap_points
from langchain_specdec.training.output_head import OutputHead
from langchain_specdec.training.packages import check_packages
from langchain_specdec.training.prompt_choice import ChosenPrompts, choose_prompts
from langchain_specdec.training.prompt_files import PromptFiles
from langchain_specdec.training.settings import MOST_TEXT_TOKENS, DraftSettings
from langchain_specdec.training.states import RecordedStates, bytes_of, check_room, probe, record_states
from langchain_specdec.training.text_batches import TextBatches
from langchain_specdec.training.unrolled_head import UnrolledHead
from langchain_specdec.training.verdict import Verdict
from langchain_specdec.training.work_folder import WorkFolder

_WEIGHTS = "head.safetensors"
_VERDICT = "verdict.json"
# Texts by whose states a new head's output is scaled.
_SCALED_BY = 32


@dataclass(frozen=True)
class Hooks:
    """What a run tells, and asks.

    Attributes:
        tell: Told how far a stage is.
        note: Told what is worth a line.
        is_stopped: Whether to end soon, so that the run can go on later.
    """

    tell: Progress
    note: Callable[[str], None]
    is_stopped: Callable[[], bool] = lambda: False


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
        self._points = *tap_points(self._config.num_hidden_layers), self._config.num_hidden_layers
        runner = backend.engine.runner
        if not runner.takes_trees and runner.cache.states is not None:
            msg = f"{backend.model_name} keeps recurrent states, which a draft of this kind cannot follow."
            raise UnsupportedModelError(msg)
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
            chosen = choose_prompts(backend, self._files, self._settings, self.folder, self._is_chat, self._hooks.tell)
            self._describe(chosen)
            texts = write_answers(backend, chosen.tokens, self._settings, self.folder, self._hooks.tell)
            # The backend lets go of them when it is closed.
            model, tokenizer, name = backend.model, backend.tokenizer, backend.model_name
        target = replace(load_model(model, tokenizer), name=name)
        texts = [Text(text.tokens[:MOST_TEXT_TOKENS], text.num_prompt_tokens) for text in texts]
        trained = [number for number in chosen.trained if _has_answer(texts[number])]
        if not trained:
            msg = f"{name} answers none of the prompts within {MOST_TEXT_TOKENS} tokens. Give shorter ones."
            raise UnsupportedModelError(msg)
        ids = self._draft_tokens(target, [texts[number] for number in trained])
        output = OutputHead.of(target, ids)
        self._record(target, output, ids, texts)
        recorded = RecordedStates(self.folder)
        held_out = [number for number in chosen.held_out if _has_answer(texts[number])]
        batches, unseen = (
            TextBatches(texts, numbers, recorded, self._settings.batch_tokens) for numbers in (trained, held_out)
        )
        unrolled = self._trained(target, output, ids, batches)
        return None if unrolled is None else self._judge(target, unrolled, chosen, unseen)

    def _describe(self, chosen: ChosenPrompts) -> None:
        """Say what the run is made from, and the room that it takes."""
        total, settings = len(chosen.tokens), self._settings
        most = sum(min(len(tokens) + settings.max_new_tokens, MOST_TEXT_TOKENS) for tokens in chosen.tokens)
        needed = bytes_of(most, len(self._points), self._config.hidden_size)
        for reason, count in chosen.left_out.items():
            self._hooks.note(f"Prompts that are left out: {count}. {reason}")
        self._hooks.note(
            f"{total} prompts, {chosen.num_own} of the model's own, {len(chosen.held_out)} held out to measure on."
            f" The states to train on take up to {needed / 1e9:.2f} GB in {self.folder.path} until it is done."
        )
        check_room(self.folder, needed)

    def _draft_tokens(self, target: LoadedModel, texts: list[Text]) -> Tensor:
        vocab_size = target.model.config.get_text_config().vocab_size
        ids = draft_token_ids(texts, vocab_size, self._settings.draft_vocab_size, target.eos_token_ids)
        share = share_covered(texts, ids)
        self._hooks.note(f"The draft proposes {len(ids)} of {vocab_size} tokens, {share:.1%} of what was answered.")
        return ids

    def _record(self, target: LoadedModel, output: OutputHead, ids: Tensor, texts: list[Text]) -> None:
        longest = max(len(text.tokens) for text in texts)
        threads = self._options.get("num_threads")
        runner = make_runner(target, num_slots=1, max_length=longest, max_width=1, num_threads=threads)
        try:
            runner.tap(self._points)
            states, logits = probe(runner, texts[0].tokens)
            output.check(states, logits[ids], target.name)
            record_states(runner, self._points, self._config.hidden_size, texts, self.folder, self._hooks.tell)
        except ValueError as error:
            if isinstance(error, UnsupportedModelError):
                raise
            raise UnsupportedModelError(f"{target.name} shows no states of its layers: {error}.") from error
        finally:
            # The model is still of use.
            runner.release()

    def _trained(
        self, target: LoadedModel, output: OutputHead, ids: Tensor, batches: TextBatches
    ) -> UnrolledHead | None:
        """The head after training, or as it was saved; None where training was stopped."""
        settings, saved = self._settings, self.folder.path / _WEIGHTS
        device = target.model.device
        scale = _typical_size(batches)
        head = new_head(head_config(target, ids), ids, embedding_of(target), output, scale, settings.seed)
        unrolled = UnrolledHead(head, output.to(device), settings.unroll).to(device)
        if saved.exists():
            head.load_state_dict(load_file(saved))
            return unrolled
        folder = self.folder.path / "checkpoints"
        if not fit.fit(unrolled, batches, settings, folder, self._hooks.tell, self._hooks.is_stopped):
            return None
        self.folder.write(_WEIGHTS, save({name: value.cpu() for name, value in head.state_dict().items()}))
        return unrolled

    def _judge(
        self, target: LoadedModel, unrolled: UnrolledHead, chosen: ChosenPrompts, unseen: TextBatches
    ) -> Verdict:
        """Save the draft, measure it, and take the work away."""
        out, head = self.folder.out, unrolled.head.eval()
        accepted = verdict.acceptance(unrolled, unseen)
        save_head(head, out, target.name, _architectures(target.model.config), self._settings.unroll + 1)
        params = SamplingParams(max_new_tokens=self._settings.max_new_tokens)
        prompts = [chosen.tokens[number] for number in chosen.held_out]
        found = verdict.measure(target.model, out, head, accepted, prompts, params, self._options, self._hooks.tell)
        (out / _VERDICT).write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
        self.folder.remove()
        return found


def _architectures(config: Any) -> list[str]:
    """The names of a model's class, as its config.json has them; a GGUF file names none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get_text_config().model_type)
    return list(getattr(config, "architectures", None) or ([known] if isinstance(known, str) else []))


def _has_answer(text: Text) -> bool:
    """Whether a draft of it can be trained: its second token on is answered."""
    return len(text.tokens) > text.num_prompt_tokens + 1


def _typical_size(batches: TextBatches) -> Tensor:
    """The root mean square of each number that the output head reads, `[hidden]`."""
    sums, count = torch.zeros(()), 0
    for index in range(min(len(batches), _SCALED_BY)):
        batch = batches[index]
        states = batch["states"][:, :, -1][batch["is_answered"]]
        sums, count = sums + states.double().pow(2).sum(0), count + len(states)
    return (sums / count).sqrt().float()

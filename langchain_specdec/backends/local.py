"""Completions by the engine of this package, on a Hugging Face model in this process."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from langchain_specdec.backends.base import Backend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.drafters.base import Drafter
from langchain_specdec.drafters.combined import CombinedDrafter
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.drafters.lookup_tree import LookupTreeDrafter
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.errors import EngineClosedError, InvalidParameterError
from langchain_specdec.models.loader import check_pair, load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.models.memory import give_back_freed
from langchain_specdec.progress import Progress
from langchain_specdec.runner.trials import CompileMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from langchain_specdec.completions.stream import CompletionStream
    from langchain_specdec.engine.step_cost import StepCost

__all__ = ["DRAFTERS", "LocalBackend"]

DRAFTERS = ("auto", "prompt_lookup", "draft_model", "none")
"""Names of the drafters that can be asked for."""


class LocalBackend(Backend):
    """A model, its drafter and the engine that runs them.

    Args:
        model: Model id, local folder, `"embedded"`, or a loaded Hugging Face model.
        tokenizer: A loaded tokenizer; None loads the model's own.
        draft_model: A smaller model with the same tokenizer, given as `model` is.
        draft_tokenizer: Its loaded tokenizer; None loads its own.
        drafter: `"auto"` (trees of all that may follow by the text, by earlier answers and by the target's recent
            candidates, or the draft model where there is one and it promises more), `"prompt_lookup"` (from the
            request's own text only), `"draft_model"` or `"none"`.
        max_draft_tokens: Most tokens to draft one after the other, 1 to 64.
        max_tree_nodes: Most tokens of a draft that branches, 1 to 64; 0: drafts never branch.
        shared_lookup: Whether requests draft from each other's answers. It never changes a text, but
            how fast it comes may tell that another request was answered alike. False keeps them apart.
        draft_length: `"auto"` drafts as many tokens as pay, by measurement, down to none; a number drafts chains of
            that many wherever there is something to propose.
        prompt_lookup_max_ngram: Longest n-gram to look up, 1 to 16.
        num_slots: Completions that run at a time; more wait for a slot.
        max_length: Positions of a slot, prompt and new tokens together. None: what the model was made for, up to
            8192 and to half of the free memory.
        prefill_chunk: Most prompt tokens of one forward. Running streams wait for no more than that.
        dtype: `"auto"` is the checkpoint's type on a GPU and float32 on CPU; else a torch dtype or its name.
        device: `"cuda"`, `"cuda:1"`, `"cpu"`, ...; None is the best there is.
        device_map: Passed to transformers, for models spread over devices.
        revision: Branch, tag or commit of the model id.
        draft_revision: The same for the draft model.
        attn_implementation: None is the engine's own; `"sdpa"` and `"eager"` are transformers'.
        compile: On CPU, whether decoder layers are compiled: `"auto"` once it has become worth what it costs,
            `"reduce-overhead"` and `"max-autotune"` from the first step on, in the background; `"off"` never. On CUDA,
            whether steps are captured as graphs, one at a time between steps: `"auto"` once a shape was seen a few
            times, `"reduce-overhead"` at once, `"max-autotune"` at once and without rounding shapes; `"off"` never.
        quantization_config: Passed to transformers, for the target.
        trust_remote_code: Whether code that comes with a model may run. Off unless asked for.
        token: Access token of the Hugging Face Hub.
        progress: Told `(description, done, total)` while the embedded model is prepared, and when graphs are captured,
            then from the engine's thread.
        step_cost: What steps cost, instead of measuring it; for tests and reproducible step counts.

    Raises:
        InvalidParameterError: A parameter is out of its range, or parameters contradict each other.
        UnsupportedModelError: The model, or the pair of models, cannot be run.
    """

    takes_token_ids = True

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        tokenizer: Any = None,
        *,
        draft_model: str | os.PathLike[str] | PreTrainedModel | None = None,
        draft_tokenizer: Any = None,
        drafter: str = "auto",
        max_draft_tokens: int = 10,
        max_tree_nodes: int = 32,
        shared_lookup: bool = True,
        draft_length: int | Literal["auto"] = "auto",
        prompt_lookup_max_ngram: int = 5,
        num_slots: int = 8,
        max_length: int | None = None,
        prefill_chunk: int = 512,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: Any = None,
        revision: str | None = None,
        draft_revision: str | None = None,
        attn_implementation: str | None = None,
        compile: CompileMode = "auto",  # noqa: A002 - what torch and transformers call it
        quantization_config: Any = None,
        trust_remote_code: bool = False,
        token: str | bool | None = None,
        progress: Progress | None = None,
        step_cost: StepCost | None = None,
    ) -> None:
        _check_drafter(drafter, has_draft_model=draft_model is not None)
        _check_range("max_draft_tokens", max_draft_tokens, 1, 64)
        _check_range("max_tree_nodes", max_tree_nodes, 0, 64)
        if not isinstance(shared_lookup, bool):
            msg = f"shared_lookup must be True or False, got {shared_lookup!r}."
            raise InvalidParameterError(msg)
        _check_range("prompt_lookup_max_ngram", prompt_lookup_max_ngram, 1, 16)
        _check_range("num_slots", num_slots, 1, 1024)
        _check_range("prefill_chunk", prefill_chunk, 1, 1 << 20)
        if compile not in get_args(CompileMode):
            msg = f"compile must be one of {', '.join(map(repr, get_args(CompileMode)))}, got {compile!r}."
            raise InvalidParameterError(msg)
        if max_length is not None:
            _check_range("max_length", max_length, 2, 1 << 24)
        if draft_length != "auto":
            _check_range("draft_length", draft_length, 0, max_draft_tokens, "'auto' or ")
        common: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "device_map": device_map,
            "attn_implementation": attn_implementation,
            "trust_remote_code": trust_remote_code,
            "token": token,
            "progress": progress,
        }
        self._target = load_model(
            model, tokenizer, revision=revision, quantization_config=quantization_config, **common
        )
        self._identity = self._target.identity(model, revision, is_own_tokenizer=tokenizer is None)
        self._tokenizer_lock = threading.Lock()
        # Only "auto" has several guesses for a place. A fixed length is a chain's.
        has_trees = drafter == "auto" and draft_length == "auto"
        max_width = 1 + max(max_draft_tokens, max_tree_nodes if has_trees else 0)
        runner = make_runner(
            self._target,
            num_slots=num_slots,
            max_length=max_length,
            max_width=max_width,
            compile=compile,
            progress=progress,
        )
        self._runners = [runner]

        def make_draft_drafter() -> Drafter:
            draft = load_model(draft_model, draft_tokenizer, revision=draft_revision, **common)  # type: ignore[arg-type]
            check_pair(self._target, draft)
            # One position more than the target: its first token in a step may be the one before the last.
            length = min(runner.max_length, draft.max_positions or runner.max_length)
            if length < runner.max_length:
                msg = (
                    f"{draft.name} was made for {length} positions, but a slot has {runner.max_length}. "
                    f"Set max_length={length} or take a draft model with a longer context."
                )
                raise InvalidParameterError(msg)
            # On CPU its layers, which are few, run as they are.
            mode: CompileMode = compile if draft.model.device.type == "cuda" else "off"
            draft_runner = make_runner(
                draft, num_slots=num_slots, max_length=length, max_width=1 + max_draft_tokens, compile=mode
            )
            self._runners.append(draft_runner)
            return DraftModelDrafter(draft_runner, runner.vocab_size, prefill_chunk)

        self.engine = Engine(
            runner,
            _make_drafter(
                drafter, prompt_lookup_max_ngram, shared_lookup, make_draft_drafter if draft_model is not None else None
            ),
            # The engine decodes in its own thread while callers encode in theirs; one tokenizer bears only one.
            copy.deepcopy(self._target.tokenizer),
            self._target.eos_token_ids,
            max_draft_tokens=max_draft_tokens,
            max_tree_nodes=max_tree_nodes if has_trees else 0,
            draft_length=draft_length,
            is_shared=shared_lookup,
            prefill_chunk=prefill_chunk,
            step_cost=step_cost,
        )

    @property
    def model_name(self) -> str:
        """Model id or folder; the class name of a loaded model without one."""
        return self._target.name

    @property
    def model(self) -> Any:
        """The target's loaded model; another `LocalBackend` may be built on it, to draft in another way.

        Raises:
            EngineClosedError: The backend was closed, and has let go of its model.
        """
        if self._target.model is None:
            msg = f"This backend was closed, and has let go of its model ({self.model_name}). Make a new one."
            raise EngineClosedError(msg)
        return self._target.model

    @property
    def tokenizer(self) -> Any:
        """The target's tokenizer."""
        return self._target.tokenizer

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self.engine.runner.max_length

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model and its numeric type. How it drafts is left out: the text does not depend on it."""
        return dict(self._identity)

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """Start completions, which run in one batch.

        Raises:
            PromptTooLongError: Prompt and new tokens do not fit into a slot.
            InvalidParameterError: The prompt is empty or `logit_bias` names an unknown token.
            EngineClosedError: The backend was closed.
        """
        return self.engine.submit_all([(self._encode(request.prompt), request.params) for request in requests])

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, special tokens at its beginning included."""
        return self._encode(text)

    def close(self) -> None:
        """End the engine's thread, and give back the memory; completions that still run end with an error.

        A model that somebody else holds, as `model` or because it was loaded elsewhere, stays for them.
        """
        if not self.engine.close():
            return  # it runs still, and its memory goes with the last reference to it
        for runner in self._runners:
            runner.release()
        self._runners = []
        self._target = replace(self._target, model=None)
        if self._target.is_owned:
            give_back_freed()

    def _encode(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, Sequence) and not isinstance(text, str) and all(type(token) is int for token in text):
            return list(text)
        if not isinstance(text, str):
            msg = f"A prompt must be a string or a sequence of token ids, got {type(text).__name__}."
            raise InvalidParameterError(msg)
        tokenizer = self._target.tokenizer
        try:
            with self._tokenizer_lock:
                ids: list[int] = tokenizer(text, verbose=False).input_ids
        except (TypeError, UnicodeError) as error:
            # Half of a surrogate pair, as from JSON or files read with errors="surrogateescape".
            msg = f"The prompt is not valid Unicode text, so it has no tokens: {error}"
            raise InvalidParameterError(msg) from error
        bos = tokenizer.bos_token_id
        if not ids and bos is not None:
            return [bos]
        # A chat template writes the token that begins a text, and the tokenizer would put it there once more.
        if ids[:2] == [bos, bos] and text.startswith(tokenizer.bos_token):
            return ids[1:]
        return ids


def _check_range(name: str, value: object, low: int, high: int, besides: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        msg = f"{name} must be {besides}a whole number from {low} to {high}, got {value!r}."
        raise InvalidParameterError(msg)


def _check_drafter(drafter: str, *, has_draft_model: bool) -> None:
    if drafter not in DRAFTERS:
        msg = f"drafter must be one of {', '.join(map(repr, DRAFTERS))}, got {drafter!r}."
        raise InvalidParameterError(msg)
    if drafter == "draft_model" and not has_draft_model:
        msg = "drafter='draft_model' needs a draft model: give draft_model (draft_model_id in SpeculativeLLM)."
        raise InvalidParameterError(msg)
    if drafter in ("prompt_lookup", "none") and has_draft_model:
        msg = f"drafter={drafter!r} would never use the draft model. Leave it out, or take 'auto' or 'draft_model'."
        raise InvalidParameterError(msg)


def _make_drafter(
    name: str, max_ngram: int, is_shared: bool, make_draft_drafter: Callable[[], Drafter] | None
) -> Drafter:
    if name == "none":
        return Drafter()
    if name == "prompt_lookup":
        return PromptLookupDrafter(max_ngram)
    if name == "draft_model" and make_draft_drafter is not None:
        return make_draft_drafter()
    tree = LookupTreeDrafter(max_ngram, is_shared=is_shared)
    return CombinedDrafter([tree, make_draft_drafter()]) if make_draft_drafter is not None else tree

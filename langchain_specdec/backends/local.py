"""Completions by the engine of this package, on a Hugging Face model in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from typing_extensions import Unpack

from langchain_specdec.backends.base import Backend
from langchain_specdec.backends.local_drafts import LoadedDrafts, find_draft_head, load_alike
from langchain_specdec.backends.local_options import LocalOptions, checked_options
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.room import larger_max_length
from langchain_specdec.engine.engine import Engine
from langchain_specdec.errors import EngineClosedError, InvalidParameterError
from langchain_specdec.models.generation_defaults import read_generation_defaults
from langchain_specdec.models.image_reader import ImageReader
from langchain_specdec.models.make_runner import make_runner, token_budget
from langchain_specdec.models.memory import give_back_freed
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.models.quantized_loading import check_quantizable
from langchain_specdec.options import spelled_out
from langchain_specdec.progress import telling
from langchain_specdec.runner.model_state import WeightsState, is_private, modules_of, share
from langchain_specdec.sampling.params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from langchain_specdec.completions.stream import CompletionStream

_NO_TREES = (
    "%s takes a token's place in memory for its position, so drafts for it do not branch (as with max_tree_nodes=0). "
    "Its text is right; drafts gain less."
)
_NO_TREES_OF_STATES = "%s keeps recurrent states, so drafts for it do not branch (as with max_tree_nodes=0)."
_logger = logging.getLogger(__name__)


class LocalBackend(Backend):
    """A model, its drafter and the engine that runs them.

    Args:
        model: Model id, local folder, GGUF file, `"embedded"`, or a loaded Hugging Face model.
        tokenizer: A loaded tokenizer; None loads the model's own. It is copied here: its truncation, its padding, and
            what is changed in it later have no effect.
        options: See `LocalOptions`.

    Raises:
        InvalidParameterError: An option is unknown or out of its range, or options contradict each other.
        UnsupportedModelError: The model, or the pair of models, cannot be run.
    """

    takes_token_ids = True
    takes_calls_or_object = True
    takes_logprob_token_ids = True
    takes_thoughts = True

    @spelled_out(LocalOptions)
    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        tokenizer: Any = None,
        **options: Unpack[LocalOptions],
    ) -> None:
        chosen = checked_options(options)
        source = chosen["draft_model"]
        check_quantizable(model, "quantization", chosen["quantization"])
        check_quantizable(source, "draft_quantization", chosen["draft_quantization"])
        # Before the target is read, which takes long.
        head = find_draft_head(model, chosen)
        self._target = load_alike(
            model,
            tokenizer,
            chosen,
            revision=chosen["revision"],
            quantization=chosen["quantization"] or chosen["quantization_config"],
            adapter=chosen["adapter"],
            adapters=chosen["adapters"],
        )
        self._tokenizer = self._target.private_tokenizer
        self._identity = self._target.identity(model, chosen["revision"], is_own_tokenizer=tokenizer is None)
        config = self._target.model.config.get_text_config()
        self._defaults = read_generation_defaults(
            getattr(self._target.model, "generation_config", None), config.vocab_size, self._target.name
        )
        # Under a name of their own: in a cache's key a request's parameters would take their place.
        self._identity["generation_defaults"] = self._defaults.identity
        # Only "auto" and heads have several guesses for a place. A fixed length is a chain's.
        has_guesses = chosen["drafter"] == "auto" or head is not None
        has_trees = has_guesses and chosen["draft_length"] == "auto"
        max_tree_nodes = chosen["max_tree_nodes"] if has_trees else 0
        drafts = LoadedDrafts.load(self._target, head, chosen)
        with telling(chosen["progress"]):
            runner = make_runner(
                self._target,
                num_slots=chosen["num_slots"],
                max_length=chosen["max_length"],
                max_width=1 + max(chosen["max_draft_tokens"], max_tree_nodes),
                most_positions=drafts.max_positions,
                compile=chosen["compile"],
                num_threads=chosen["num_threads"],
                progress=chosen["progress"],
            )
        if max_tree_nodes and not runner.takes_trees:
            if runner.cache.states is not None:
                _logger.info(_NO_TREES_OF_STATES, self.model_name)
            else:
                _logger.warning(_NO_TREES, self.model_name)
        self._weights = WeightsState.of(_modules_of(self._target.model))
        own = drafts.runners(self._target, runner, chosen)
        self._runners = [runner, *own]
        self.engine = Engine(
            runner,
            drafts.drafter(runner, own, chosen),
            self._tokenizer,
            self._target.eos_token_ids,
            max_draft_tokens=chosen["max_draft_tokens"],
            max_tree_nodes=max_tree_nodes,
            draft_length=chosen["draft_length"],
            is_shared=chosen["shared_lookup"],
            prefill_chunk=chosen["prefill_chunk"],
            token_budget=token_budget(runner, *own),
            step_cost=chosen["step_cost"],
            grammar_timeout=chosen["grammar_timeout"],
        )

    @property
    def model_name(self) -> str:
        """Model id or folder; the class name of a loaded model without one."""
        return self._target.name

    @property
    def model(self) -> Any:
        """The target's loaded model; another `LocalBackend` may be built on it, to draft in another way.

        That is a Hugging Face module, or the `GGUFModel` of a GGUF file (and of `"embedded"`, on a CPU).

        Raises:
            EngineClosedError: The backend was closed, and has let go of its model.
        """
        model = self._target.model
        if model is None:
            msg = f"This backend was closed, and has let go of its model ({self.model_name}). Make a new one."
            raise EngineClosedError(msg)
        if isinstance(model, torch.nn.Module):
            share(model)
        return model

    @property
    def tokenizer(self) -> Any:
        """The target's tokenizer, to be used and changed at will: the engine has its own.

        Where it was loaded here, the first look makes a copy of some tens of MB.
        """
        return self._target.tokenizer

    @property
    def private_tokenizer(self) -> PrivateTokenizer:
        """The tokenizer that everything here is encoded and decoded with."""
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self.engine.runner.max_length

    @property
    def num_slots(self) -> int:
        """Completions that run at a time."""
        return self.engine.runner.cache.num_slots

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens that were read so far, of all requests."""
        return self.engine.num_prefill_tokens

    @property
    def image_reader(self) -> ImageReader | None:
        """Reads images for the model; None where it takes text only, see `why_no_images`."""
        return self._target.image_reader

    @property
    def why_no_images(self) -> str:
        """Why there is no `image_reader`, as the end of a sentence."""
        return self._target.why_no_images

    @property
    def adapter_names(self) -> Sequence[str]:
        """The adapters that calls can choose among."""
        adapters = self.engine.runner.adapters
        return () if adapters is None else adapters.names

    def more_room(self, num_tokens: int) -> str | None:
        """How to load the model with room for so many tokens of a prompt and its completion; None where it has none."""
        return larger_max_length(num_tokens, self.engine.runner.max_positions)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model and its numeric type, and another one once its weights have changed in memory.

        How it drafts is left out: the text does not depend on it.
        """
        model = self._target.model  # another thread may close the backend meanwhile
        if isinstance(model, torch.nn.Module) and not is_private(model):
            weights = WeightsState.of(modules_of(model))
            if weights != self._weights:
                self._weights = weights
                self._identity["weights"] = uuid4().hex
        return dict(self._identity)

    def reset(self) -> None:
        """Forget all that was kept of earlier requests, and be another model to LangChain's caches.

        For weights that were written in place through `.data`; other changes are noticed by themselves. Call it while
        nothing runs.
        """
        self._identity["weights"] = uuid4().hex
        self.engine.reset()

    def start(self, requests: Sequence[CompletionRequest]) -> list[CompletionStream]:
        """Start completions, which run in one batch.

        Raises:
            PromptTooLongError: Prompt and new tokens do not fit into a slot.
            InvalidParameterError: The prompt is empty or `logit_bias` names an unknown token.
            EngineClosedError: The backend was closed.
        """
        return self.engine.submit_all(
            [replace(r, prompt=self.prompt_ids(r.prompt), params=self._params_of(r)) for r in requests]
        )

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, without those that a prompt gets in front."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def close(self) -> None:
        """End the engine's thread, and give back the memory; completions that still run end with an error.

        A model that somebody else holds, as `model` or because it was loaded elsewhere, stays for them.
        """
        engine = self.__dict__.get("engine")
        if engine is None:
            return  # it was not made, or a collector ended this object before the finalizer of its owner closes it
        if not engine.close():
            return  # it runs still, and its memory goes with the last reference to it
        engine.drafter.forget()
        for runner in self._runners:
            runner.release()
        self._runners = []
        self._target = replace(self._target, model=None)
        if self._target.is_owned:
            give_back_freed()

    # Its own name of the function: at the end of the interpreter the module may have none any more.
    def __del__(self, give_back_freed: Callable[[], None] = give_back_freed) -> None:
        target = self.__dict__.get("_target")
        has_model = target is not None and target.model is not None
        del target
        # What holds the model goes first, so that its memory is free by the time that it is given back.
        self.__dict__.clear()
        if has_model:
            give_back_freed()

    def _params_of(self, request: CompletionRequest) -> SamplingParams:
        # A tokenizer may have tokens that the model has not.
        banned = [token for token in request.banned if token < self.engine.runner.vocab_size]
        return self._defaults.applied(request.params, banned)

    def prompt_ids(self, text: str | Sequence[int]) -> list[int]:
        """The tokens of a prompt, with those that it gets in front; tokens are a prompt as they are.

        Raises:
            InvalidParameterError: It is neither text nor tokens.
            PromptTooLongError: It has far more tokens than a slot.
        """
        if isinstance(text, Sequence) and not isinstance(text, str) and all(type(token) is int for token in text):
            return list(text)
        if not isinstance(text, str):
            msg = f"A prompt must be a string or a sequence of token ids, got {type(text).__name__}."
            raise InvalidParameterError(msg)
        tokenizer = self._tokenizer
        ids = tokenizer.encode(text, what="prompt", limit=self.max_length)
        bos = tokenizer.bos_token_id
        if not ids and bos is not None:
            return [bos]
        # A chat template writes the token that begins a text, and the tokenizer would put it there once more.
        if ids[:2] == [bos, bos] and text.startswith(tokenizer.bos_token or ""):
            return ids[1:]
        return ids


def _modules_of(model: Any) -> list[torch.nn.Module]:
    """All modules of a model; a GGUF file's has none, and nobody changes it."""
    return modules_of(model) if isinstance(model, torch.nn.Module) else []

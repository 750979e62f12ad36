"""Tiny random models, a byte-level tokenizer, the plain reference, and a drafter whose agreement is set."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from langchain_specdec.completions.events import FinishEvent, Token
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.drafters.base import Draft, Drafter, DraftingRequest, DraftLimits, Proposal
from langchain_specdec.drafters.draft_model import DraftModelDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.models.loaded_model import LoadedModel
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.runner import attention
from langchain_specdec.runner.step_logits import StepLogits
from langchain_specdec.runner.verify import Verdict
from langchain_specdec.sampling.choice import SamplingTable, SparseBias, TokenHistory, pick_tokens
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.sampling.top_tokens import top_tokens

Model = TypeVar("Model", bound=PreTrainedModel)

EOS = 256
VOCAB = 258

attention.register()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; 256 ends a text, 257 begins one. Characters beyond ASCII span tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


def tiny_model(
    seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32, **overrides: Any
) -> LlamaForCausalLM:
    """A random Llama of two layers whose weights are large enough for its choices to depend on the context."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 257,
            "eos_token_id": EOS,
            **overrides,
        }
    )
    return as_loaded(LlamaForCausalLM(config), device, dtype)


def as_loaded(model: Model, device: str, dtype: torch.dtype = torch.float32) -> Model:
    """A random model with larger weights and the engine's attention, in eval mode."""
    nn.Module.eval(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    nn.Module.to(model, device, dtype)
    return model


def loaded(model: Any, eos_token_ids: Sequence[int] = (EOS,), tokenizer: Any = None) -> LoadedModel:
    """The model as the loader would hand it on."""
    return LoadedModel(model, PrivateTokenizer(tokenizer or byte_tokenizer()), "tiny", tuple(eos_token_ids))


def make_engine(
    model: Any,
    drafter: Drafter,
    *,
    num_slots: int = 4,
    max_length: int = 256,
    eos: Sequence[int] = (EOS,),
    tokenizer: Any = None,
    **kwargs: Any,
) -> Engine:
    """An engine on a tiny model. Flat step cost unless told otherwise, so that step counts repeat."""
    target = loaded(model, eos)
    widest = max(kwargs.setdefault("max_draft_tokens", 10), kwargs.get("max_tree_nodes", 0))
    kwargs.setdefault("step_cost", StepCost.flat())
    runner = make_runner(target, num_slots=num_slots, max_length=max_length, max_width=1 + widest)
    return Engine(runner, drafter, tokenizer or target.tokenizer, eos, **kwargs)


def plain_reference(
    model: Any, prompt: Sequence[int], params: SamplingParams, eos: Sequence[int] = (EOS,)
) -> list[int]:
    """What plain decoding writes: the model's own uncached forward over the whole text for every single token."""
    device = next(model.parameters()).device
    tokens = list(prompt)
    table = SamplingTable([params], [params.seed or 0], [0], model.config.vocab_size, device)
    history = TokenHistory(1, model.config.vocab_size, device)
    history.start(0, prompt)
    nothing = torch.zeros(1, 0, dtype=torch.int64, device=device)
    while len(tokens) - len(prompt) < params.max_new_tokens:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[:, -1:]
            position = torch.tensor([[len(tokens)]], device=device)
            no_ancestors = torch.zeros(1, 1, 0, dtype=torch.bool, device=device)
            token = int(pick_tokens(logits, table, position, history, nothing, no_ancestors))
        tokens.append(token)
        history.append(0, [token])
        if token in eos and not params.ignore_eos:
            break
    return tokens[len(prompt) :]


def read(stream: CompletionStream) -> tuple[list[Token], FinishEvent]:
    """All tokens of a stream and its end."""
    tokens: list[Token] = []
    for event in stream:
        if isinstance(event, FinishEvent):
            return tokens, event
        tokens.extend(event.tokens)
    raise AssertionError("the stream ended without a FinishEvent")


def random_prompt(rng: random.Random, longest: int = 40) -> list[int]:
    """Random bytes with some repetition, so that lookups find something."""
    words = [[rng.randrange(256) for _ in range(rng.randrange(1, 5))] for _ in range(4)]
    prompt = [t for _ in range(rng.randrange(1, 12)) for t in rng.choice(words)]
    return prompt[:longest]


@dataclass
class FakeRequest:
    """What a drafter may know of a request."""

    request_id: int
    token_ids: list[int]
    slot: int = 0
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    rates: AcceptanceRates = field(default_factory=AcceptanceRates)
    history: TokenHistory | None = None
    constraint: Any = None
    namespace: str = ""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.bias = SparseBias.of(self.params.logit_bias)


class OracleDrafter(Drafter):
    """Proposes each request's known continuation, with each token wrong by a set chance.

    Args:
        continuations: Prompt -> what the target will write.
        agreement: Chance that a proposed token is the right one.
        seed: Seed of the chances.
    """

    def __init__(self, continuations: Mapping[tuple[int, ...], Sequence[int]], agreement: float, seed: int = 0) -> None:
        self._continuations = continuations
        self._agreement = agreement
        self._rng = random.Random(seed)
        self.released: list[int] = []

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        text = tuple(request.token_ids)
        for prompt, continuation in self._continuations.items():
            whole = (*prompt, *continuation)
            if text[: len(prompt)] == prompt and whole[: len(text)] == text:
                right = whole[len(text) : len(text) + max(limits.max_depth, 0)]
                tokens = [t if self._rng.random() < self._agreement else (t + 1) % 256 for t in right]
                draft = Draft.chain(tokens, [("oracle", 0)] * len(tokens))
                return [Proposal(draft, request.rates.chain(draft.kinds))]
        return []

    def release(self, request: DraftingRequest) -> None:
        self.released.append(request.request_id)


class TreeOracleDrafter(OracleDrafter):
    """Proposes the known continuation with a wrong sibling before each right token, as a tree whose path has gaps."""

    def consider(self, request: DraftingRequest, limits: DraftLimits) -> Sequence[Proposal]:
        offer = super().consider(request, limits)
        tokens: list[int] = []
        parents: list[int] = []
        reaches: list[float] = []
        parent, reach, rate = -1, 1.0, request.rates.rate(("oracle", 0))
        for token in offer[0].draft.tokens if offer else ():
            tokens += [(token + 7) % 256, token]
            parents += [parent, parent]
            # The right one has what the wrong one before it left.
            reaches += [reach * rate, reach * (1 - rate) * rate]
            parent, reach = len(tokens) - 1, reaches[-1]
        size = max(limits.max_nodes or limits.max_depth, 0)
        draft = Draft(tuple(tokens), tuple(parents), (("oracle", 0),) * len(tokens)).cut(size)
        return [Proposal(draft, tuple(reaches[:size]))] if len(draft) else []


def make_draft_drafter(
    model: Any, *, num_slots: int = 4, max_length: int = 256, max_draft_tokens: int = 10, prefill_chunk: int = 512
) -> DraftModelDrafter:
    """A drafter on a tiny model, with slots of its own as large as those of `make_engine`."""
    runner = make_runner(loaded(model), num_slots=num_slots, max_length=max_length, max_width=1 + max_draft_tokens)
    return DraftModelDrafter(runner, model.config.vocab_size, prefill_chunk)


def perturbed(model: Any, amount: float, seed: int = 0) -> Any:
    """A copy of a model with noise on its weights: it agrees with the original often, and not always."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_(noise * parameter.std() * amount)
    return other


def scripted_model(script: Sequence[int], device: str = "cpu", vocab_size: int = VOCAB) -> GPT2LMHeadModel:
    """A model that writes `script` after a prompt of one token, whatever the tokens before it are.

    Its layers are switched off, so its choice depends on the position alone: what follows position p is `script[p]`.
    """
    size = len(script) + 12
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=size,
        n_embd=size,
        n_layer=1,
        n_head=1,
        n_inner=4,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config)
    model.eval()
    with torch.no_grad():
        for parameter in (*model.transformer.wte.parameters(), *model.transformer.h.parameters(), model.lm_head.weight):
            parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(size))
        for position, token in enumerate(script):
            model.lm_head.weight[token, position] = 1.0
    model.set_attn_implementation(attention.ATTENTION_NAME)
    nn.Module.to(model, device)
    return model


class References:
    """What plain decoding writes with one model, computed once for each prompt and parameters."""

    def __init__(self, model: Any, eos: Sequence[int] = (EOS,)) -> None:
        self._model = model
        self._eos = eos
        self._known: dict[str, list[int]] = {}

    def __call__(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        key = repr((tuple(prompt), params))
        if key not in self._known:
            self._known[key] = plain_reference(self._model, prompt, params, self._eos)
        return self._known[key]


def token_ids(tokens: Iterable[Token]) -> list[int]:
    """The ids of emitted tokens."""
    return [token.id for token in tokens]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait for something that another thread does; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def verdict(nodes: list[list[int]], paths: list[list[int]], logits: torch.Tensor) -> Verdict:
    """What the target says of drafts, with logits as of a runner's latest forward."""
    picks = logits.argmax(-1).tolist()
    ranked = top_tokens(logits, 8).permute(2, 0, 1).tolist()
    return Verdict(nodes, picks, paths, StepLogits(logits, SimpleNamespace(num_forwards=1)), None, ranked)

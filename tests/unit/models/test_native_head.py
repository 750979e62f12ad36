"""EAGLE-3 heads in the native decoder give what their module gives in float64, and read no more than they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langchain_specdec.errors import EngineClosedError
from langchain_specdec.models.heads.eagle3_config import Eagle3Config
from langchain_specdec.models.heads.eagle3_head import Eagle3Head
from langchain_specdec.models.heads.native_head import head_weights, native_head
from langchain_specdec.runner.cpu.decoder_trial import native_library
from langchain_specdec.runner.cpu.decoder_weights import Format
from langchain_specdec.runner.cpu.matrix_layers import MatrixEmbedding, MatrixLinear, narrowed
from langchain_specdec.runner.cpu.native_decoder import NativeDecoder
from langchain_specdec.runner.cpu.native_head_runner import NativeHeadRunner
from langchain_specdec.runner.head_runner import last_of_rows, likeliest_tokens
from langchain_specdec.runner.step_inputs import RowBatch
from tests.support.random_decoders import Row, Shape, random_decoder, run_rows

pytestmark = pytest.mark.skipif(native_library() is None, reason="there is no native decoder for this machine")

PLAIN = Eagle3Config(
    tap_points=(1, 2, 5), hidden_size=48, target_hidden_size=40, embedding_size=40, intermediate_size=72, num_heads=6,
    num_kv_heads=2, head_dim=16, vocab_size=90, draft_vocab_size=33,
)  # fmt: skip
VARIANTS = {
    "plain": PLAIN,
    "three layers": replace(PLAIN, num_layers=3, norm_before_residual=True),
    "normed output, Qwen3's norms": replace(PLAIN, norm_output=True, has_qk_norm=True, num_kv_heads=6),
    "one norm before fc, biases": replace(PLAIN, norm_before_fc=True, attention_bias=True, activation="gelu"),
    "norms before fc": replace(PLAIN, fc_norm=True, norm_before_residual=True, activation="gelu_pytorch_tanh"),
    "tables of its own, of another size": replace(
        PLAIN, has_embedding=True, embedding_size=23, hidden_size=57,
        rope={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "the target's output layer, no fc": replace(
        PLAIN, has_output=False, has_fc=False, tap_points=(5,), hidden_size=40, draft_vocab_size=90
    ),
}  # fmt: skip
# Twelve drafts after one token of one text, five after that of another, and a chain after the third.
TREE = [-1, 0, 0, 0, 1, 1, 2, 4, 4, 7, 8, 9, 9]


class Target(nn.Module):
    def __init__(self, hidden: int, vocab: int) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(vocab, hidden), nn.Linear(hidden, vocab)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.output


def target_of(config: Eagle3Config, model: Any = None) -> Any:
    return SimpleNamespace(model=model or Target(config.target_hidden_size, config.vocab_size))


def random_head(config: Eagle3Config, target: Any) -> Eagle3Head:
    """A head whose attention looks far, and whose norms and biases count."""
    torch.manual_seed(3)
    ids = torch.randperm(config.vocab_size)[: config.draft_vocab_size] if config.has_output else None
    model = target.model
    tables: dict[str, Any] = {}
    if isinstance(model, Target):
        embedding, output = model.embedding, model.output
        tables = {"embedding": embedding, "output": lambda states: output(states.float())}
    head = Eagle3Head(config, ids, **tables)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            scale = 3.0 if "q_proj" in name or "k_proj" in name or "embed" in name else 1.0
            numbers = torch.randn_like(weight)
            weight.copy_(numbers * scale / weight.shape[1] ** 0.5 if weight.ndim == 2 else 0.2 * numbers)
            if name.endswith("norm.weight") or "norm." in name:
                weight.add_(1.0)
    return head.requires_grad_(False)


@dataclass(frozen=True)
class Text:
    """Tokens, the states that they are read with, and how the last of them hang together, by their parents."""

    tokens: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    parents: Sequence[int] = ()

    def then(self, tokens: Sequence[int], hidden: Tensor, parents: Sequence[int] = ()) -> Text:
        return Text([*self.tokens, *tokens], [*self.hidden, *hidden], parents)


@dataclass(frozen=True)
class Draft:
    """Logits and next states after the last tokens of a text."""

    text: Text
    logits: Tensor
    states: Tensor


def expected(head: Eagle3Head, text: Text) -> Draft:
    """What a head of float64 drafts."""
    count, before = len(text.tokens), len(text.tokens) - len(text.parents)
    sees, positions = torch.ones(count, count).tril().bool(), torch.arange(count)
    for node, parent in enumerate(text.parents):
        if parent >= 0:
            sees[before + node] = sees[before + parent]
            sees[before + node, before + node] = True
            positions[before + node] = positions[before + parent] + 1

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=sees)

    hidden = torch.stack(text.hidden).double()
    outputs, states = head(head.embed(torch.tensor([text.tokens])), hidden[None], positions[None], attend)
    return Draft(text, head.logits(outputs)[0, before:], states[0, before:])


def random_rows(lengths: Sequence[int], config: Eagle3Config, seed: int) -> tuple[list[list[int]], list[Tensor]]:
    torch.manual_seed(seed)
    tokens = [torch.randint(config.vocab_size, (length,)).tolist() for length in lengths]
    return tokens, [torch.randn(length, config.hidden_size) for length in lengths]


@contextmanager
def runner_of(head: Eagle3Head, target: Any, threads: int, **options: Any) -> Iterator[NativeHeadRunner]:
    made = native_head(head, target, num_slots=3, max_length=200, max_width=20, num_threads=threads, **options)
    assert made is not None
    try:
        yield made
    finally:
        made.release()


def drafts(runner: NativeHeadRunner, config: Eagle3Config) -> list[Draft]:
    """What comes after texts that are read in several ways and branch, and after one of them in a chain."""
    texts = [Text(), Text(), Text()]

    def read(slots: list[int], *lengths: int) -> None:
        tokens, hidden = random_rows(lengths, config, lengths[0])
        runner.extend(RowBatch(slots, [len(texts[slot].tokens) for slot in slots], tokens), hidden)
        for slot, row, states in zip(slots, tokens, hidden, strict=True):
            texts[slot] = texts[slot].then(row, states)

    # Longer than what goes through the layers at a time, and ragged.
    read([0, 1, 2], 100, 17, 1)
    read([2, 0], 3, 1)
    slots, parents = [1, 0, 2], [TREE, TREE[:6], [-1, 0]]
    tokens, hidden = random_rows([len(row) for row in parents], config, 2)
    logits, states = runner.run(RowBatch(slots, [len(texts[i].tokens) for i in slots], tokens, parents), hidden)
    assert logits.shape == (3, len(TREE), config.draft_vocab_size)
    assert states.shape == (3, len(TREE), config.hidden_size)
    made = [
        Draft(texts[slot].then(tokens[i], hidden[i], parents[i]), logits[i, :count].clone(), states[i, :count].clone())
        for i, (slot, count) in enumerate(zip(slots, map(len, parents), strict=True))
    ]
    # The wrong branches are written over, and what is drafted is read with the states that were given for it.
    runner.cache.wipe(1, 17)
    text, state = texts[1], states[0, :1].clone()
    for token in (11, 7, 11):
        logits, states = runner.run(RowBatch([1], [len(text.tokens)], [[token]]), [state])
        text, state = text.then([token], state, [-1]), states[0].clone()
        made.append(Draft(text, logits[0].clone(), state))
    return made


def check_close(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found.double(), right.double(), rtol=0, atol=2e-5 * float(right.abs().max()))


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_drafted_is_what_the_module_drafts(name: str) -> None:
    config = VARIANTS[name]
    target = target_of(config)
    head = random_head(config, target)
    found = []
    for threads in (1, 2, 3):
        with runner_of(head, target, threads, rounds=False) as runner:
            found.append(drafts(runner, config))
            assert runner.num_forwards == 4
    head.double()
    for draft in found[0]:
        right = expected(head, draft.text)
        check_close(draft.logits, right.logits)
        check_close(draft.states, right.states)
    # The same bits however many threads there are.
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one.logits, other.logits)
            assert torch.equal(one.states, other.states)


@pytest.mark.parametrize("name", VARIANTS)
def test_states_are_condensed_as_by_the_module(name: str) -> None:
    config = VARIANTS[name]
    target = target_of(config)
    head = random_head(config, target)
    # More than go through the layers at a time, and such as a target hands out: good until its next forward.
    tapped = torch.randn(170, len(config.tap_points), config.target_hidden_size)
    with runner_of(head, target, 2, rounds=False) as runner:
        assert runner.tap_points == config.tap_points
        wanted, found = head.double().condense(tapped.double()), runner.condense(tapped)
        tapped.zero_()
        check_close(found, wanted)
        assert runner.condense(tapped[:0]).shape == (0, config.hidden_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_to_blocks_changes_little_and_halves_the_bytes(dtype: torch.dtype) -> None:
    config = replace(PLAIN, hidden_size=64, target_hidden_size=64, embedding_size=64, intermediate_size=160)
    target = target_of(config)
    head = random_head(config, target).to(dtype)
    results = []
    for rounds in (False, True):
        with runner_of(head, target, 1, rounds=rounds) as runner:
            results.append(drafts(runner, config))
    for right, found in zip(*results, strict=True):
        assert float((found.logits - right.logits).norm() / right.logits.norm()) < 0.05
    exact, rounded = (head_weights(head, target, rounds=rounds) for rounds in (False, True))
    assert exact is not None
    assert rounded is not None
    assert exact.decoder.head.format is {torch.bfloat16: Format.BF16, torch.float16: Format.F16}.get(dtype, Format.F32)
    assert rounded.decoder.head.format is Format.Q8_0
    table = exact.decoder.embedding.data.nbytes
    before, after = (weights.decoder.num_bytes - table for weights in (exact, rounded))
    assert after / before == 34 / 32 / dtype.itemsize


def test_tables_of_the_target_are_its_own_memory() -> None:
    config = VARIANTS["the target's output layer, no fc"]
    target = target_of(config)
    weights = head_weights(random_head(config, target), target)
    assert weights is not None
    decoder = weights.decoder
    assert decoder.embedding.data.ctypes.data == target.model.embedding.weight.data_ptr()
    assert decoder.head.data.ctypes.data == target.model.output.weight.data_ptr()
    # And so are those that a native target made of its own.
    tables = narrowed(target.model.embedding.weight.bfloat16().float()), narrowed(target.model.output.weight)
    target.model.output = MatrixLinear(tables[1], target.model.output.bias)
    target.model.embedding = MatrixEmbedding(target.model.embedding, tables[0])
    weights = head_weights(random_head(PLAIN, target), target)
    assert weights is not None
    assert weights.decoder.embedding.data.ctypes.data == target.model.embedding.rows.data_ptr()
    # A model out of a GGUF file is no module.
    read = random_decoder(Shape(hidden=40, vocab=90, embedding_scale=1.5))
    weights = head_weights(random_head(config, target), target_of(config, SimpleNamespace(weights=read)))
    assert weights is not None
    assert (weights.decoder.embedding, weights.decoder.head) == (read.embedding, read.head)
    assert weights.decoder.embedding_scale == 1.5


def test_what_it_does_not_run_is_left_to_the_module() -> None:
    biased = replace(PLAIN, mlp_bias=True)
    target = target_of(PLAIN)
    assert head_weights(random_head(biased, target), target) is None
    # Layers of a kind that keeps its weight to itself, as packed ones do.
    target.model.embedding = nn.Sequential(target.model.embedding)
    assert head_weights(random_head(PLAIN, target), target) is None


def test_logits_of_the_last_tokens_alone_are_the_same_and_no_others_are_computed() -> None:
    target = target_of(PLAIN)
    tokens, hidden = random_rows((100, 5, 3), PLAIN, 6)
    batch = RowBatch([0, 1, 2], [0, 0, 0], tokens)
    with runner_of(random_head(PLAIN, target), target, 2) as runner:
        right = [each.clone() for each in runner.run(batch, hidden)]
        logits, states = runner.run(batch, hidden)
        logits.fill_(torch.nan)
        runner.run(batch, hidden, [2, 1, 3])
        for row, (length, count) in enumerate(((100, 2), (5, 1), (3, 3))):
            assert torch.equal(logits[row, length - count : length], right[0][row, length - count : length])
            assert torch.equal(states[row, :length], right[1][row, :length])
            assert logits[row, : length - count].isnan().all()


def test_states_of_other_points_are_refused() -> None:
    target = target_of(PLAIN)
    with runner_of(random_head(PLAIN, target), target, 1) as runner:
        for points, size in (2, 40), (3, 41):
            with pytest.raises(ValueError, match="condenses 120 numbers at a time"):
                runner.condense(torch.zeros(5, points, size))
        runner.release()
        with pytest.raises(EngineClosedError):
            runner.condense(torch.zeros(5, 3, 40))


def test_tokens_of_the_target_are_read_and_no_others() -> None:
    target = target_of(PLAIN)
    states = [torch.zeros(1, PLAIN.hidden_size)]
    with runner_of(random_head(PLAIN, target), target, 1) as runner:
        runner.run(RowBatch([0], [0], [[PLAIN.vocab_size - 1]]), states)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            runner.run(RowBatch([0], [0], [[PLAIN.vocab_size]]), states)
        assert (runner.vocab_size, runner.num_layers) == (PLAIN.draft_vocab_size, 1)
        assert runner.target_ids is not None
        assert runner.bytes_per_token == 4 * 2 * PLAIN.num_kv_heads * PLAIN.head_dim
        assert runner.work_bytes > 0


def test_what_is_only_read_costs_keys_and_values_alone() -> None:
    target = target_of(PLAIN)
    head = random_head(PLAIN, target)
    tokens, hidden = random_rows((90,), PLAIN, 4)
    with runner_of(head, target, 2) as runner:
        runner.extend(RowBatch([0], [0], tokens), hidden)
        right = [each.clone() for each in runner.run(RowBatch([0], [90], [[5]]), [hidden[0][:1]])]
    # Whatever else is not a number is not read.
    head.layers[0].mlp.down_proj.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    head.layers[0].self_attn.q_proj.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    with runner_of(head, target, 2) as spoilt, runner_of(random_head(PLAIN, target), target, 2) as runner:
        spoilt.extend(RowBatch([0], [0], tokens), hidden)
        np.copyto(runner.cache.memory, spoilt.cache.memory)
        runner.cache.note(0, 90)
        found = runner.run(RowBatch([0], [90], [[5]]), [hidden[0][:1]])
        assert all(map(torch.equal, found, right))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_likeliest_tokens_are_those_of_the_logits(name: str) -> None:
    config = VARIANTS[name]
    target = target_of(config)
    tokens, hidden = random_rows((9, 4, 2), config, 8)
    parents = [[-1, *range(8)], [-1, 0, 0, 1], [-1, 0]]
    batch = RowBatch([0, 1, 2], [0, 0, 0], tokens, parents, num_candidates=8)
    wanted = [1, 3, 2]
    with runner_of(random_head(config, target), target, 2) as runner:
        logits, states = (each.clone() for each in runner.run(batch, hidden))
        right = likeliest_tokens(torch.cat(last_of_rows(logits, batch, wanted)), runner.target_ids, 8)
        found, following = runner.likeliest(batch, hidden, wanted)
        for each, others in zip(found, right, strict=True):
            assert each is not None
            assert others is not None
            assert [token for token, _ in each] == [token for token, _ in others]
            assert [chance for _, chance in each] == pytest.approx([chance for _, chance in others], rel=1e-5)
        assert torch.equal(following[0, :9], states[0, :9])
        # A state that is not a number leaves nothing sound after its row's tokens.
        hidden[1][0, 3] = torch.nan
        spoilt, _ = runner.likeliest(batch, hidden, wanted)
        assert spoilt == [found[0], None, None, None, *found[4:]]


def test_a_head_uses_the_threads_of_its_target() -> None:
    target, library = target_of(PLAIN), native_library()
    assert library is not None
    decoder = NativeDecoder(library, random_decoder(Shape()), 1, 64, 3)
    process = psutil.Process()
    before = process.num_threads()
    head = random_head(PLAIN, target)
    with runner_of(head, target, 7, beside=decoder) as runner, runner_of(head, target, 3) as alone:
        # The other has two of its own.
        assert (runner.num_threads, process.num_threads()) == (3, before + 2)
        for one, other in zip(drafts(runner, PLAIN), drafts(alone, PLAIN), strict=True):
            run_rows(decoder, [Row(0, 0, [1, 2, 3])], vocab=70)
            assert torch.equal(one.logits, other.logits)
        # Whoever ends first leaves the threads to the other.
        decoder.replace(random_decoder(Shape(), 2))
        decoder.close()
        assert torch.equal(drafts(runner, PLAIN)[-1].logits, other.logits)
    assert process.num_threads() == before - 2

"""Masks and attention in the form that a GPU takes compute what the others do; tried on a CPU."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from langchain_specdec.runner import attention
from langchain_specdec.runner.attention import additive_mask, slot_attention
from langchain_specdec.runner.cuda.attention_backend import chosen_backend, pinned_backends
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.noise import Noise
from tests.support.model_families import TEXT_CASES, WINDOW, load

BACKENDS = ("cudnn", "flash", "mem_efficient", "math")
GPU = torch.device("cuda")


def runner_of(name: str, implementation: str | None = None, *, is_for_gpu: bool = True) -> ModelRunner:
    runner = ModelRunner(load(name, "cpu", implementation).model, 4, 58, 6)
    runner._inputs.is_for_gpu = is_for_gpu
    return runner


def masks_of(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the model is called with as masks from now on."""
    seen: list[Any] = []
    make = runner._inputs._mask

    def spy(*args: Any, **kwargs: Any) -> Any:
        mask = make(*args, **kwargs)
        seen.extend(mask.values() if isinstance(mask, dict) else [mask])
        return mask

    monkeypatch.setattr(runner._inputs, "_mask", spy)
    return seen


@pytest.mark.transformers
@pytest.mark.parametrize(("name", "implementation"), TEXT_CASES)
def test_every_family_computes_the_same(name: str, implementation: str | None) -> None:
    runners = [runner_of(name, implementation, is_for_gpu=is_for_gpu) for is_for_gpu in (False, True)]
    noise = Noise([1, 2], [0.0, 0.0])
    # In two chunks, the second one longer than a window; then beside each other a tree and a chain with padding.
    text = [(7 * i) % 250 for i in range(3 * WINDOW)]
    found = []
    for runner in runners:
        runner.prefill(RowBatch([1], [0], [text[:4]]))
        runner.prefill(RowBatch([1], [4], [text[4:]]))
        runner.prefill(RowBatch([2, 3], [0, 0], [text[:3], text[5:10]]))
        trees = [[-1, 0, 0, 1], [-1, 0]]
        tree = RowBatch([1, 3], [len(text), 5], [[1, 2, 3, 4], [5, 6]], trees, noise)
        logits = runner.verify(tree).logits.tensor
        found.append([logits[0], logits[1, :2]])
        found[-1].append(runner.verify(RowBatch([2], [3], [[8]], None, Noise([1], [0.0]))).logits.tensor)
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "llama-multi-head", "mistral", "gemma3", "qwen2-some-sliding"])
def test_masks_are_numbers_that_no_backend_has_to_copy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(name)
    masks = masks_of(runner, monkeypatch)
    for rows, width in itertools.product((1, 3), (1, 2, 5)):
        tokens = [[3] * width] * rows
        parents = [[-1, *([0] * (width - 1))]] * rows
        for tree in (None, parents):
            runner.verify(RowBatch(range(rows), [13] * rows, tokens, tree, Noise([1] * rows, [0.0] * rows)))
    assert masks
    for mask in masks:
        assert mask.dtype == runner.model.dtype
        assert all(stride % 16 == 0 for stride in mask.stride()[:3])
        assert (mask == 0).any(-1).all(), "a query that sees nothing"
    groups = 1 if name == "llama-multi-head" else 2
    assert {mask.shape[2] for mask in masks} == {width * groups for width in (1, 2, 5)}


def test_prompts_need_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of("llama")
    masks = masks_of(runner, monkeypatch)
    runner.prefill(RowBatch([1], [0], [[1, 2, 3]]))
    runner.prefill(RowBatch([1], [3], [[4, 5, 6, 7]]))
    assert [tuple(mask.shape) for mask in masks] == [(1, 1, 1, 0)] * 2
    # Rows of several lengths, and layers that see a window only, once the text is longer, do.
    runner.prefill(RowBatch([1, 2], [0, 0], [[1, 2, 3], [4, 5]]))
    assert masks[-1].shape[3] == 3
    sliding = runner_of("mistral")
    masks = masks_of(sliding, monkeypatch)
    for start in (0, WINDOW - 3):
        sliding.prefill(RowBatch([1], [start], [[1, 2, 3]]))
    sliding.prefill(RowBatch([1], [WINDOW - 2], [[1, 2, 3]]))
    assert [mask.shape[3] for mask in masks] == [0, 0, WINDOW + 1]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_shared_keys_are_read_once_for_all_their_queries(groups: int, softcap: float | None) -> None:
    module: Any = nn.Module()
    rows, kv, width, length, dim = 2, 2, 4, 21, 8
    query = torch.randn(rows, width, kv * groups, dim).transpose(1, 2)
    key, value = torch.randn(2, rows, kv, length, dim)
    seen = torch.rand(rows, width, length) > 0.5
    seen[..., 0] = True
    plain = additive_mask(seen[:, None], torch.float32)
    expected, _ = slot_attention(module, query, key, value, plain, softcap=softcap)
    folded = plain.repeat(1, 1, groups, 1)
    found, _ = slot_attention(module, query, key, value, folded, softcap=softcap)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("has_flash", [False, True])
@pytest.mark.parametrize(("groups", "width", "softcap"), [(1, 5, None), (2, 5, None), (2, 21, None), (2, 5, 4.0)])
def test_a_piece_of_a_prompt_sees_all_before_it(
    groups: int, width: int, softcap: float | None, has_flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv, length, dim = 2, 21, 8
    query, (key, value) = torch.randn(1, kv * groups, width, dim), torch.randn(2, 1, kv, length, dim)
    seen = torch.ones(width, length, dtype=torch.bool).tril(length - width)[None, None]
    module: Any = nn.Module()
    expected, _ = slot_attention(module, query, key, value, seen, softcap=softcap)
    # Only PyTorch built for CUDA has flash; what says so decides whether keys are repeated.
    monkeypatch.setattr(attention, "can_use_flash_attention", lambda params: has_flash)
    found, _ = slot_attention(module, query, key, value, torch.empty(1, 1, 1, 0), softcap=softcap)
    torch.testing.assert_close(found, expected)


# --- The backends ----------------------------------------------------------------------------------------------------


def enabled() -> dict[str, bool]:
    return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in BACKENDS}


PINNED = {"cudnn": False, "flash": True, "mem_efficient": True, "math": True}


@pytest.fixture(autouse=True)
def _restored() -> Any:
    before = enabled()
    yield
    assert enabled() == before


def test_backends_are_pinned_and_restored_as_the_user_left_them() -> None:
    torch.backends.cuda.enable_flash_sdp(False)
    before = enabled()
    try:
        with pytest.raises(ValueError, match="no"), pinned_backends(GPU):
            assert enabled() == PINNED
            with pinned_backends(GPU):
                pass
            assert enabled() == PINNED, "somebody else's forward is under way"
            raise ValueError("no")
        assert enabled() == before
        with pinned_backends(torch.device("cpu")):
            assert enabled() == before
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_forwards_in_two_threads_restore_the_backends_once_both_are_over() -> None:
    before = enabled()
    first_in, second_in = threading.Event(), threading.Event()
    after_first: list[dict[str, bool]] = []

    def second() -> None:
        first_in.wait(10)
        with pinned_backends(GPU):
            second_in.set()
            left.wait(10)
            after_first.append(enabled())

    left = threading.Event()
    thread = threading.Thread(target=second)
    thread.start()
    with pinned_backends(GPU):
        first_in.set()
        second_in.wait(10)
    left.set()
    thread.join(10)
    assert after_first == [PINNED]
    assert enabled() == before


def test_every_forward_on_a_gpu_is_pinned(monkeypatch: pytest.MonkeyPatch, only_operators: None) -> None:
    runner = runner_of("llama")
    runner.prefill(RowBatch([1], [0], [[1, 2, 3]]))
    seen = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.scaled_dot_product_attention:
                seen.append(enabled())
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr("langchain_specdec.runner.model_runner.pinned_backends", lambda device: pinned_backends(GPU))
    noise = Noise([1], [0.0])
    actions = (
        lambda: runner.prefill(RowBatch([1], [3], [[4, 5]])),
        lambda: runner.verify(RowBatch([1], [5], [[6, 7]], None, noise)),
        lambda: runner.chain(RowBatch([1], [5], [[6]], None, noise), 2, 250),
        lambda: runner.last_logits(RowBatch([1], [5], [[6]])),
    )
    for action in actions:
        with Spy():
            action()
        assert len(seen) >= len(runner.cache)
        assert all(backends == PINNED for backends in seen)
        seen.clear()


def test_the_backend_of_a_machine_has_a_name() -> None:
    for is_prompt in (False, True):
        name = chosen_backend(torch.device("cpu"), torch.float32, is_prompt=is_prompt)
        assert name in {"FLASH_ATTENTION", "MATH"}

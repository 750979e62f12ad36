"""The same text by every way in float32; how often and how far it differs in bfloat16."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.models.loader import load_model
from langchain_specdec.models.make_runner import make_runner
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.cuda.graph_store import GraphStore
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.sampling.noise import Noise
from langchain_specdec.sampling.params import SamplingParams
from tools.gpu_check.check import Check
from tools.gpu_check.runners import backend_of, free, model_of, new_capture, plain

_MODEL = "qwen2.5-0.5b"
_WAYS: dict[str, dict[str, Any]] = {
    "plain": {"drafter": "none", "is_captured": False},
    "auto": {"is_captured": False},
    "draft model": {"drafter": "draft_model", "draft_length": 3, "is_captured": False},
    "plain, graphs": {"drafter": "none", "is_captured": True},
    "auto, graphs": {"is_captured": True},
    "draft model, graphs": {"drafter": "draft_model", "draft_length": 3, "is_captured": True},
}
# Those that are counted in bfloat16.
_COUNTED = ("plain", "auto", "auto, graphs")
# Prompts that transformers completes too, one after the other.
_GENERATED = 4
# Parents of the nodes that are verified.
_DRAFTS = {
    "one token": [-1],
    "chain of 8": list(range(-1, 7)),
    "tree of 8": [-1, 0, 0, 1, 1, 2, 3, 6],
}

Texts = list[list[int]]


def text(check: Check) -> None:
    """Texts in float32 have to be equal; in bfloat16, where ties are frequent, those that are not are counted."""
    prompts = _prompts(check)
    for dtype in check.pick(("float32", "bfloat16"), ("float32",)):
        model, tokenizer = model_of(check, _MODEL, dtype)
        expected: dict[float, Texts] = {}
        for way in _WAYS if dtype == "float32" else _COUNTED:
            written = _write(check, model, tokenizer, way, prompts)
            expected = expected or written
            for temperature, texts in written.items():
                what = {"text": way, "dtype": dtype, "temperature": temperature}
                _compare(check, what, texts, expected[temperature])
        few = prompts[:_GENERATED]
        what = {"text": "generate", "dtype": dtype, "temperature": 0.0}
        _compare(check, what, _generate(check, model, few), expected[0.0][:_GENERATED])
        del model
        free(check)
    _logits(check)


def _prompts(check: Check) -> Texts:
    rng = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 120, (check.pick(8, 2),), generator=rng).tolist()
    return [torch.randint(0, 200, (length,), generator=rng).tolist() for length in lengths]


def _num_tokens(check: Check) -> int:
    return int(check.pick(48, 10))


def _write(check: Check, model: Any, tokenizer: Any, way: str, prompts: Texts) -> dict[float, Texts]:
    """What the engine writes, by temperature; how it went is noted."""
    options = dict(_WAYS[way])
    if "draft" in way:
        options |= {"draft_model": model, "draft_tokenizer": tokenizer}
    texts = {}
    with contextlib.closing(
        backend_of(check, model, tokenizer, num_slots=len(prompts), max_length=256, **options)
    ) as backend:
        store = getattr(backend.engine.runner, "store", None)
        for temperature in (0.0, 0.8):
            params = SamplingParams(max_new_tokens=_num_tokens(check), temperature=temperature, seed=5, ignore_eos=True)
            requests = [CompletionRequest(prompt, params) for prompt in prompts]
            # Graphs are made in the first run and used in the second.
            for _ in range(1 if store is None else 2):
                done = backend.complete(requests)
            num_steps = sum(completion.finish.speculation.num_steps for completion in done)
            check.note(way=way, temperature=temperature, num_steps=num_steps, **_graphs(store))
            texts[temperature] = [[token.id for token in completion.tokens] for completion in done]
        check.expect(store is None or not store.failure, f"captures of {way} fail")
    return texts


def _graphs(store: GraphStore | None) -> dict[str, Any]:
    if store is None:
        return {}
    return {"graphs": len(store.graphs), "rejected": list(store.rejected.values()), "failure": store.failure}


def _generate(check: Check, model: Any, prompts: Texts) -> Texts:
    """What transformers writes, greedily."""
    count = _num_tokens(check)
    options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
    texts = []
    for prompt in prompts:
        tokens = torch.tensor([prompt], device=check.device)
        written = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        texts.append(written[0, len(prompt) :].tolist())
    return texts


def _compare(check: Check, what: dict[str, Any], written: Texts, expected: Texts) -> None:
    pairs = list(zip(written, expected, strict=True))
    first = [next((i for i, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), None) for pair in pairs]
    same = first.count(None)
    check.note(**what, same=same, of=len(pairs), first_difference=first)
    check.expect(same == len(pairs) or what["dtype"] != "float32", f"texts differ: {what}, first at {first}")


@torch.inference_mode()
def _logits(check: Check) -> None:
    """How far logits in bfloat16 are from those of the same weights in float32, without a cache."""
    model, tokenizer = model_of(check, _MODEL)
    reference = copy.deepcopy(model).float()
    made = make_runner(load_model(model, tokenizer), num_slots=2, max_length=256, max_width=9, compile="off")
    runner = CapturedRunner(plain(made), new_capture(check), "reduce-overhead")
    prompt = _prompts(check)[0]
    runner.prefill(RowBatch([0], [0], [prompt]))
    for name, parents in _DRAFTS.items():
        nodes = [7 + 3 * i for i in range(len(parents))]
        batch = RowBatch([0], [len(prompt)], [nodes], [parents], Noise([1], [0.0]))
        right = torch.stack([_uncached(reference, prompt, nodes, parents, node) for node in range(len(nodes))])
        errors = []
        # As it is, as the run that makes the graph leaves it, and replayed.
        for _ in range(3):
            runner.begin_turn()
            found = runner.verify(batch).logits.tensor[0].float()
            errors.append(float((found - right).abs().max() / right.abs().max()))
        check.note(logits=name, errors=errors, graphs=len(runner.store.graphs))
        check.expect(max(errors) < 0.05, f"logits of {name} are off by {max(errors):.3f}")
    free(check)


def _uncached(reference: Any, prompt: list[int], nodes: list[int], parents: list[int], node: int) -> torch.Tensor:
    """Logits after a node, by a forward over the prompt and what leads to the node."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, nodes[node])
        node = parents[node]
    device = next(reference.parameters()).device
    logits: torch.Tensor = reference(torch.tensor([prompt + path], device=device)).logits
    return logits[0, -1]

"""What a measurement was made with, as plain values for its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_specdec.bench.build import Setup
from langchain_specdec.bench.machine import describe_machine, versions
from langchain_specdec.bench.plan import Plan
from langchain_specdec.runner.cuda.graph_store import GraphStore


def make_header(plan: Plan, setup: Setup, command: str, workload: str, repeat: int) -> dict[str, Any]:
    """Command, machine, versions, models and settings, as plain values.

    Args:
        plan: What is measured.
        setup: What was loaded for it.
        command: What asked for it.
        workload: Name of the workload.
        repeat: How often each prompt is run.
    """
    target = setup.target
    return {
        "command": command,
        "machine": describe_machine(target.device),
        "versions": versions(),
        "model": {
            "name": target.name,
            "dtype": str(target.dtype).removeprefix("torch."),
            "step_bytes": target.num_bytes,
            "num_packed": target.num_packed,
            "formats": target.formats,
        },
        "draft_model": _describe_draft(setup),
        "left_out": dict(plan.left_out),
        "settings": {
            "workload": workload,
            "num_prompts": len(setup.prompts),
            "num_cut": sum(prompt.is_cut for prompt in setup.prompts),
            "is_chat": setup.is_chat,
            "batch": plan.batch,
            "repeat": repeat,
            "max_new_tokens": plan.params.max_new_tokens,
            "temperature": plan.params.temperature,
            "seed": plan.params.seed,
            "ignore_eos": plan.params.ignore_eos,
            "keep_prefixes": plan.keep_prefixes,
            "synthetic_agreement": plan.synthetic_agreement,
            "synthetic_cost": plan.synthetic_cost,
            "step_cost": plan.step_cost,
            "compile": plan.compile,
            "neighbours": plan.neighbours,
            "neighbour_engines": plan.neighbour_engines,
            **plan.engine,
            "num_threads": plan.num_threads,
        },
    }


def _describe_draft(setup: Setup) -> dict[str, Any] | None:
    if setup.head is not None:
        return {"name": setup.head.name, "form": "head"}
    draft = setup.draft
    return None if draft is None else {"name": draft.name, "form": "model", "step_bytes": draft.num_bytes}


def describe_graphs(stores: Sequence[GraphStore] | None, obstacle: str) -> dict[str, Any] | None:
    """How the engine's steps were captured, as plain values; None where nobody asked for it.

    Args:
        stores: The graphs of each runner; None where steps are not captured.
        obstacle: Why they are not, although that was asked for.
    """
    if stores is None:
        return {"is_captured": False, "obstacle": obstacle, "graphs": []} if obstacle else None
    graphs = [
        {
            "shape": f"{bucket.kind} {bucket.rows} x {bucket.width} tokens, {bucket.length} positions",
            "seconds": graph.seconds if graph else 0.0,
            "saving": graph.saving if graph else 0.0,
            "is_used": graph is not None,
        }
        for store in stores
        for bucket, graph in (store.graphs | dict.fromkeys(store.rejected)).items()
    ]
    is_captured = any(graph["is_used"] for graph in graphs)
    reasons = [store.failure for store in stores if store.failure]
    if not is_captured:
        reasons += [reason for store in stores for reason in store.rejected.values()]
    return {"is_captured": is_captured, "obstacle": (reasons or [""])[0], "graphs": graphs}

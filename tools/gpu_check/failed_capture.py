"""What a capture that fails leaves behind: random numbers, the allocator, and the next capture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tools.gpu_check.check import Check
from tools.gpu_check.runners import new_capture

_ROUNDS = 300


def failed_capture(check: Check) -> None:
    """Fail, then do what programs do."""
    capture, x = new_capture(check), torch.ones(3, device=check.device)

    def waits_in_the_recording() -> tuple[Tensor, ...]:
        # What waits in the runs before is found there.
        if check.is_rehearsal or torch.cuda.is_current_stream_capturing():
            x.sum().item()
        return (x + 1,)

    def works() -> tuple[Tensor, ...]:
        return (x + 1,)

    def allocate() -> None:
        for _ in range(check.pick(_ROUNDS, 3)):
            torch.zeros(2**20, device=check.device).cpu()

    def random() -> object:
        return torch.rand(1, device=check.device).shape

    before = check.memory()
    failed = _outcome(lambda: capture.record(lambda: None, waits_in_the_recording))
    check.note(after_a_failed_capture="capture", outcome=failed)
    check.expect(failed != "ok", "a capture that waits for the device does not fail")
    actions: list[tuple[str, Callable[[], object]]] = [
        ("random numbers", random),
        ("emptying the cache", lambda: None if check.is_rehearsal else torch.cuda.empty_cache()),
        ("the next capture", lambda: capture.record(lambda: None, works)),
        ("random numbers again", random),
        ("allocating", allocate),
    ]
    for name, action in actions:
        outcome = _outcome(action)
        check.note(after_a_failed_capture=name, outcome=outcome)
        check.expect(outcome == "ok", f"after a failed capture, {name} fails: {outcome}")
    check.note(after_a_failed_capture="memory", before=before, after=check.memory())


def _outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return "ok"

"""What runs the forwards of one model: a native decoder's runner, PyTorch's, or one whose steps are captured graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from langchain_specdec.runner.cpu.native_runner import NativeRunner
    from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
    from langchain_specdec.runner.model_runner import ModelRunner

# A name for the type checker alone: whoever runs one kind is not to import what the others need.
Runner: TypeAlias = "ModelRunner | CapturedRunner | NativeRunner"

"""What runs the forwards of one model: a runner, or one whose steps are captured graphs."""

from __future__ import annotations

from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.model_runner import ModelRunner

Runner = ModelRunner | CapturedRunner

"""`quantization=` on a GPU: transformers quantises, by whichever of the packages that it knows is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils.import_utils import is_accelerate_available, is_bitsandbytes_available, is_torchao_available

from langchain_specdec.errors import InvalidParameterError, MissingDependencyError

INSTALL_COMMAND = "pip install torchao accelerate"
# Numbers with a scale of their own: as on a CPU, and the fewest that torchao's kernel takes.
_GROUP = 32


@dataclass(frozen=True)
class _Package:
    """A package that quantises.

    Attributes:
        name: Its name to pip.
        is_available: Whether transformers can use it.
        make: Makes its configuration for a word, and the type to compute in.
        results: What each word becomes.
    """

    name: str
    is_available: Callable[[], bool]
    make: Callable[[str, torch.dtype], Any]
    results: dict[str, str]


def _torchao(quantization: str, _: torch.dtype) -> Any:
    torchao = import_module("torchao.quantization")
    # Else it sets PyTorch's compiler up for the whole process.
    options: dict[str, Any] = {"set_inductor_config": False}
    if quantization == "int8":
        return TorchAoConfig(torchao.Int8WeightOnlyConfig(**options))
    if "int4_packing_format" in {field.name for field in fields(torchao.Int4WeightOnlyConfig)}:
        # The one whose kernel is PyTorch's own. Versions before there was a choice have no other.
        options["int4_packing_format"] = "tile_packed_to_4d"
    return TorchAoConfig(torchao.Int4WeightOnlyConfig(group_size=_GROUP, **options))


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> Any:
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


# The first that is installed is taken. For its 8 bits, bitsandbytes looks at inputs on the host: no CUDA graph can.
# optimum-quanto is none of them: its weights cannot be read in PyTorch's inference mode, which the engine runs in.
_PACKAGES = (
    _Package("torchao", is_torchao_available, _torchao, {"int8": "int8 by rows", "int4": f"int4 by {_GROUP} numbers"}),
    _Package("bitsandbytes", is_bitsandbytes_available, _bitsandbytes, {"int8": "LLM.int8()", "int4": "NF4"}),
)


def description(quantization: str) -> str:
    """What a word becomes on a GPU, with this machine's packages; "" where it has none."""
    found = (f"{package.results[quantization]} ({package.name})" for package in _PACKAGES if package.is_available())
    return next(found, "") if is_accelerate_available() else ""


def gpu_quantization_config(quantization: str, dtype: torch.dtype) -> Any:
    """The configuration of transformers for `"int8"` or `"int4"`.

    Args:
        quantization: The word.
        dtype: Type of what is not quantised, and of what is computed.

    Raises:
        MissingDependencyError: No package for it is installed.
        InvalidParameterError: The one that is installed does not compute in this type.
    """
    found = [package for package in _PACKAGES if package.is_available()]
    if not found or not is_accelerate_available():
        msg = f"To quantise to {quantization} on a GPU takes accelerate, and torchao or bitsandbytes: {INSTALL_COMMAND}"
        raise MissingDependencyError(msg)
    if quantization == "int4" and dtype != torch.bfloat16 and found[0].name == "torchao":
        del found[0]
        if not found:
            msg = (
                f"torchao's int4 computes in bfloat16 only, got dtype={str(dtype).removeprefix('torch.')!r}. Leave "
                "dtype out, quantise to int8, or install another package for it: pip install bitsandbytes"
            )
            raise InvalidParameterError(msg)
    return found[0].make(quantization, dtype)

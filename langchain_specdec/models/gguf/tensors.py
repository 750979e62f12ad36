"""Tensors of GGUF files, read into memory: a file that changes while it is mapped would end the process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from langchain_specdec.errors import MissingDependencyError, ModelLoadError, UnsupportedModelError
from langchain_specdec.models.gguf.file import Tensor
from langchain_specdec.runner.cpu.decoder_weights import BLOCKS, PLAIN, Floats, Format, Matrix, plain_numbers
from tgi_launcher.extras import install_command

_logger = logging.getLogger(__name__)
# Where each matrix begins in memory, as in the file.
_ALIGNMENT = 64


def read_matrices(tensors: Sequence[Tensor], name: str, tell: Callable[[int, int], None]) -> dict[str, Matrix]:
    """Read matrices, each row as it is; those of types that no kernel knows are dequantised to float32.

    Args:
        tensors: The matrices.
        name: What the user calls the model.
        tell: Told how many bytes are read, and of how many.

    Returns:
        The matrices, by name.

    Raises:
        ModelLoadError: A file cannot be read, or ends too soon.
        MissingDependencyError: One is of a type that takes the package gguf to read, which is not installed.
        UnsupportedModelError: One is of a type that nothing here reads.
    """
    ordered = sorted(tensors, key=lambda tensor: (tensor.path, tensor.offset))
    strange = [tensor for tensor in ordered if not is_known(tensor)]
    for tensor in strange:
        _check_dequantised(tensor)
    if strange:
        kinds = ", ".join(sorted({_type_name(tensor) for tensor in strange}))
        gigabytes = sum(4 * tensor.shape[0] * tensor.shape[1] for tensor in strange) / 1e9
        _logger.warning(
            "%s holds weights of type %s, which are not run as they are: they are spread to float32, in %.1f GB. Files "
            "of types such as Q4_K_M or Q8_0 take less memory and run faster.",
            name, kinds, gigabytes,
        )  # fmt: skip
    places, end = [], 0
    for tensor in ordered:
        places.append(end)
        end += 0 if tensor in strange else -(-tensor.num_bytes // _ALIGNMENT) * _ALIGNMENT
    memory = _aligned(end)
    matrices: dict[str, Matrix] = {}
    done, total = 0, sum(tensor.num_bytes for tensor in ordered)
    for tensor, place in zip(ordered, places, strict=True):
        tell(done, total)
        if tensor in strange:
            data = np.empty(tensor.num_bytes, np.uint8)
            _read(tensor, data)
            matrices[tensor.name] = _dequantised(tensor, data)
        else:
            data = memory[place : place + tensor.num_bytes]
            _read(tensor, data)
            rows = data.reshape(tensor.shape[0], tensor.row_bytes)
            matrices[tensor.name] = Matrix(rows, Format(tensor.type), tensor.shape[1])
        done += tensor.num_bytes
    tell(total, total)
    return matrices


def read_vector(tensor: Tensor) -> Floats:
    """Read a tensor of one dimension as float32.

    Raises:
        ModelLoadError: As `read_matrices`; so are the others.
    """
    data = np.empty(tensor.num_bytes, np.uint8)
    _read(tensor, data)
    if tensor.type in PLAIN:
        return plain_numbers(data, Format(tensor.type))
    raise UnsupportedModelError(
        f"The engine cannot run {str(tensor.path)!r}: {tensor.name} is of type {_type_name(tensor)}, where one of "
        "float32, float16 or bfloat16 is due. Give another file of the model."
    )


def is_known(tensor: Tensor) -> bool:
    """Whether kernels run a tensor's type as it is."""
    return tensor.type in BLOCKS


def _aligned(size: int) -> NDArray[np.uint8]:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]


def _read(tensor: Tensor, data: NDArray[np.uint8]) -> None:
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            view, done = data.data, 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise ModelLoadError(f"{str(tensor.path)!r} is cut short: it ends within {tensor.name}.")
                done += count
    except ModelLoadError:
        raise
    except OSError as error:
        raise ModelLoadError(f"Cannot read {str(tensor.path)!r}: {error.strerror or error}.") from error


def _check_dequantised(tensor: Tensor) -> None:
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(
            f"{str(tensor.path)!r} holds weights of type {_type_name(tensor)}, which the package gguf reads, and it is "
            f"not installed: {install_command('embedded')}"
        ) from error
    try:
        kind = gguf.GGMLQuantizationType(tensor.type)
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"The engine cannot run {str(tensor.path)!r}: {tensor.name} is of type {_type_name(tensor)}, which is not "
            "read. Give a file of another type, such as Q4_K_M or Q8_0."
        ) from error


def _dequantised(tensor: Tensor, data: NDArray[np.uint8]) -> Matrix:
    import gguf

    rows = data.reshape(tensor.shape[0], tensor.row_bytes)
    numbers = gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.type)).astype(np.float32, copy=False)
    return Matrix(np.ascontiguousarray(numbers).view(np.uint8), Format.F32, tensor.shape[1])


def _type_name(tensor: Tensor) -> str:
    try:
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(tensor.type).name
    except (ImportError, ValueError):
        return f"number {tensor.type}"

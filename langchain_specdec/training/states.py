"""States of the target's layers at every token of the texts, in files, so that training needs no target.

They come from the engine's own forwards, whatever runs them: what is trained on is what will be drafted from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from langchain_specdec.errors import GenerationError, InvalidParameterError
from langchain_specdec.progress import Progress
from langchain_specdec.runner.runner import Runner
from langchain_specdec.runner.step_inputs import RowBatch
from langchain_specdec.training.answers import Text
from langchain_specdec.training.work_folder import WorkFolder

# Bytes of a file, all of which are in memory while it is written.
_FILE_BYTES = 1 << 26
_CHUNK = 512
_BYTES = 2


def bytes_of(num_tokens: int, num_points: int, hidden_size: int) -> int:
    """What the states of so many tokens take on the disk."""
    return num_tokens * num_points * hidden_size * _BYTES


def check_room(folder: WorkFolder, needed: int) -> None:
    """Raise unless the disk has room for states.

    Args:
        folder: Where they are to be.
        needed: Bytes of all of them; those that are there count as free.

    Raises:
        InvalidParameterError: It has not.
    """
    free = folder.free_bytes() + sum(path.stat().st_size for path in folder.files("states-*.safetensors"))
    if needed > free:
        msg = (
            f"The states to train on take up to {needed / 1e9:.1f} GB in {folder.path}, and the disk has "
            f"{free / 1e9:.1f} GB free. Give a folder on another disk, or fewer --num-prompts or --max-new-tokens."
        )
        raise InvalidParameterError(msg)


def probe(runner: Runner, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What is tapped last at the end of a text, `[hidden]`, and the model's own logits there, `[vocab]`."""
    states = states_of(runner, tokens)[-1, -1]
    last = runner.verify(RowBatch([0], [len(tokens) - 1], [tokens[-1:]], keeps_logits=True))
    return states, last.logits[0, 0].cpu()


def record_states(
    runner: Runner, points: Sequence[int], hidden_size: int, texts: Sequence[Text], folder: WorkFolder, tell: Progress
) -> None:
    """Write the states of all texts, but for those that are there.

    Args:
        runner: The target, tapped at these points; nothing else runs on it.
        points: Where it is tapped.
        hidden_size: Width of its states.
        texts: The texts.
        folder: Where to.
        tell: Told how many tokens are done.

    Raises:
        GenerationError: A state is not finite.
    """
    total, done = sum(len(text.tokens) for text in texts), 0
    for numbers in _files(texts, len(points), hidden_size):
        name = f"states-{numbers[0]:07d}.safetensors"
        states = {}
        is_there = (folder.path / name).exists()
        for number in numbers:
            tokens = texts[number].tokens
            if not is_there:
                states[str(number)] = states_of(runner, tokens)
            done += len(tokens)
            tell("Reading the states of layers, tokens", done, total)
        if not is_there:
            folder.write(name, save(states))


def _files(texts: Sequence[Text], num_points: int, hidden_size: int) -> Iterator[list[int]]:
    """The numbers of the texts of each file."""
    numbers: list[int] = []
    size = 0
    for number, text in enumerate(texts):
        numbers.append(number)
        size += bytes_of(len(text.tokens), num_points, hidden_size)
        if size >= _FILE_BYTES:
            yield numbers
            numbers, size = [], 0
    if numbers:
        yield numbers


def states_of(runner: Runner, tokens: Sequence[int]) -> Tensor:
    """What is tapped at each token of a text, `[tokens, points, hidden]`, in float16 where that holds it."""
    runner.cache.wipe(0)
    parts = []
    for start in range(0, len(tokens), _CHUNK):
        part = tokens[start : start + _CHUNK]
        runner.prefill(RowBatch([0], [start], [part]))
        parts.append(runner.tapped()[0, : len(part)].cpu())
    states = torch.cat(parts)
    narrow = states.to(torch.float16)
    if not narrow.isfinite().all():
        narrow = states.to(torch.bfloat16)
        if not narrow.isfinite().all():
            msg = "The model computed states that are NaN or infinite. Check its weights, or try --dtype float32."
            raise GenerationError(msg).for_good()
    return narrow


class RecordedStates:
    """Reads states back, text by text, from the files in which they are.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: WorkFolder) -> None:
        self._files: dict[str, Path] = {}
        self._open: dict[Path, safe_open] = {}
        for path in folder.files("states-*.safetensors"):
            with safe_open(path, "pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, number: int) -> Tensor:
        """The states of a text, `[tokens, points, hidden]`."""
        path = self._files[str(number)]
        if path not in self._open:
            self._open[path] = safe_open(path, "pt")
        states: Tensor = self._open[path].get_tensor(str(number))  # type: ignore[no-untyped-call]
        return states

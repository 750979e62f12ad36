"""One set of weights for everybody: loaded once, and arranged so that each contestant runs in its own best form.

transformers' `generate` and what builds on it get the model as transformers makes it. The engine gets a second module
over the very same weights, with its own attention. On CPU the engine keeps its linear layers packed, so there these
weights are in memory twice. llama.cpp maps the GGUF file itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from langchain_specdec.bench.random_weights import is_random, random_model
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.models import embedded
from langchain_specdec.models.gguf.config import read_config
from langchain_specdec.models.gguf.file import open_gguf
from langchain_specdec.models.gguf.source import local_gguf
from langchain_specdec.models.gguf.tokenizer import ending_tokens, read_tokenizer
from langchain_specdec.models.loaded_model import format_names
from langchain_specdec.models.model_source import check_source, means_gguf
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.progress import Progress
from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights, Matrix
from langchain_specdec.runner.trials import CompileMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from langchain_specdec.models.loaded_model import LoadedModel
    from langchain_specdec.runner.cuda.graph_store import GraphStore


@dataclass(frozen=True)
class Weights:
    """A model in the forms that contestants run it in.

    Attributes:
        ours: For the engine; None where only peers take part.
        peer: As transformers runs it; None where nobody runs it so.
        tokenizer: Its tokenizer.
        name: Model id or folder.
        eos_token_ids: Tokens that end a text.
        num_bytes: Bytes of weights that a decoding step of the engine reads, or of a peer where it takes no part.
        dtype: Their type.
        device: Where they are.
        num_packed: Linear layers that the engine holds packed.
        obstacle: Why the engine's steps are not captured, although that was asked for; empty where they are.
        captured: The graphs of the engine's contestants, which have their own, on CUDA; filled as these are made. None
            where steps are not captured.
        gguf_path: The GGUF file that it comes in; "" where nobody reads one.
        max_positions: Positions that it was made for; None where it does not say.
        formats: How the matrices are held that the engine's native decoder runs, as "Q4_1, Q8_0"; "" where it runs the
            module.
    """

    ours: LoadedModel | None
    peer: Any
    tokenizer: PrivateTokenizer
    name: str
    eos_token_ids: tuple[int, ...]
    num_bytes: int
    dtype: torch.dtype
    device: torch.device
    num_packed: int
    obstacle: str
    captured: list[GraphStore] | None = None
    gguf_path: str = ""
    max_positions: int | None = None
    formats: str = ""


def load_weights(
    model: str | PreTrainedModel,
    tokenizer: Any = None,
    *,
    for_ours: bool,
    for_peers: bool,
    for_gguf: bool = False,
    dtype: str,
    device: str | None,
    compile: CompileMode = "off",  # noqa: A002 - the name that users give
    progress: Progress | None = None,
) -> Weights:
    """Load a model once, for the engine, for peers, or for both.

    Args:
        model: Model id, folder, `"embedded"`, `"random:SHAPE"`, or a loaded model, which is given up to the bench.
        tokenizer: A loaded model's tokenizer.
        for_ours: Whether the engine takes part.
        for_peers: Whether peers on transformers' model do.
        for_gguf: Whether peers that read its GGUF file do.
        dtype: As in `LocalBackend`.
        device: As in `LocalBackend`.
        compile: As in `LocalBackend`, but that graphs are made when a contestant warms up.
        progress: Told while the embedded model is prepared.

    Raises:
        InvalidParameterError: Steps have to be captured, and cannot be. A GGUF file is wanted, and the model comes in
            none.
        SpecDecError: As `load_model` does.
    """
    gguf_path = gguf_file(model) if for_gguf else ""
    if not for_ours and not for_peers:
        return _without_weights(str(model), gguf_path)
    # What is imported here is not to count for a contestant that can do without.
    from langchain_specdec.models.loader import load_model

    source: Any = model
    if isinstance(model, str) and is_random(model):
        source, tokenizer = random_model(model, dtype, device)
        dtype = "auto"
    elif model == embedded.EMBEDDED_MODEL_ID and not for_ours:
        source = str(embedded.model_path(progress=progress))
    loaded = load_model(source, tokenizer, dtype=dtype, device=device, progress=progress)
    name = model if isinstance(model, str) else loaded.name
    peer: Any = None
    decoder: DecoderWeights | None = None
    num_bytes = num_packed = 0
    if isinstance(loaded.model, torch.nn.Module):
        from langchain_specdec.bench.module_weights import arrange, as_peer, narrowed_bytes, step_bytes

        peer = as_peer(loaded.model) if for_peers else None
        num_bytes = step_bytes(loaded.model)
        if for_ours:
            loaded = replace(loaded, is_owned=True)
            if loaded.model.device.type == "cpu":
                decoder, num_packed = arrange(loaded)
                num_bytes -= narrowed_bytes(loaded.model)
    else:
        decoder = loaded.model.weights
        if for_peers:
            from langchain_specdec.bench.module_weights import as_peer
            from langchain_specdec.models.gguf.to_transformers import to_transformers

            peer = as_peer(to_transformers(loaded.model))
    if decoder is not None:
        num_bytes = sum(matrix.data.nbytes for matrix in _matrices(decoder))
    is_captured = for_ours and compile != "off"
    obstacle = (_why_uncaptured(loaded, compile) if is_captured else None) or ""
    return Weights(
        loaded if for_ours else None,
        peer,
        loaded.private_tokenizer,
        name,
        loaded.eos_token_ids,
        num_bytes,
        loaded.model.dtype,
        loaded.model.device,
        num_packed,
        obstacle,
        [] if is_captured and not obstacle else None,
        gguf_path,
        loaded.max_positions,
        ", ".join(sorted(format_names(decoder))) if decoder is not None else "",
    )


def _why_uncaptured(loaded: LoadedModel, mode: CompileMode) -> str | None:
    from langchain_specdec.models.make_runner import why_uncaptured

    obstacle = why_uncaptured(loaded)
    if obstacle is not None and mode != "auto":
        msg = f"{loaded.name} cannot be captured: {obstacle}. Leave out --compile, or set it to auto or off."
        raise InvalidParameterError(msg)
    return obstacle


def _without_weights(name: str, gguf_path: str) -> Weights:
    """What is asked of a model whose file others read by themselves."""
    file = open_gguf(Path(gguf_path))
    config = read_config(file)
    tokenizer = PrivateTokenizer(read_tokenizer(file, config.max_position_embeddings), is_ours=True)
    eos = tuple(ending_tokens(file))
    cpu = torch.device("cpu")
    return Weights(
        None, None, tokenizer, name, eos, 0, torch.float32, cpu, 0, "",
        gguf_path=gguf_path, max_positions=config.max_position_embeddings,
    )  # fmt: skip


def gguf_file(model: object) -> str:
    """The GGUF file that a model comes in, downloaded where it is on the Hub.

    Raises:
        InvalidParameterError: It comes in none.
        ModelLoadError: It cannot be found or downloaded.
    """
    path = None
    if model == embedded.EMBEDDED_MODEL_ID:
        path = embedded.gguf_file()
    elif isinstance(model, str) and not is_random(model):
        source, revision = check_source(model)
        path = local_gguf(source, revision) if means_gguf(model) else None
    if path is None:
        msg = f"llama-cpp reads a GGUF file, and {model} is none. Leave it out, or measure embedded or a file.gguf."
        raise InvalidParameterError(msg)
    return str(path)


def _matrices(weights: DecoderWeights) -> list[Matrix]:
    """What a decoding step reads: all matrices but an embedding that is not the head too."""
    layers = ((m.query, m.key, m.value, m.output, m.gate, m.up, m.down) for m in weights.layers)
    return [weights.head, *(matrix for layer in layers for matrix in layer)]

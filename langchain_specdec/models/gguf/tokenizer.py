"""The tokenizer of a GGUF file, built from its metadata."""

from __future__ import annotations

from typing import Any, NoReturn

from tokenizers import AddedToken, Tokenizer, processors

from langchain_specdec.errors import ModelLoadError, SpecDecError, UnsupportedModelError
from langchain_specdec.models.gguf.byte_level import PRE_TOKENIZERS, byte_level
from langchain_specdec.models.gguf.file import GGUFFile
from langchain_specdec.models.gguf.sentence_piece import SPACE, sentence_piece

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
# What ends a message, where a file names the end of texts only.
_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
_GIVE = "Load the model's own tokenizer by AutoTokenizer.from_pretrained, and give it as tokenizer=."


def read_tokenizer(file: GGUFFile, max_length: int) -> Any:
    """Build a file's tokenizer, with its chat template.

    Args:
        file: The file.
        max_length: Positions of the model.

    Returns:
        A `PreTrainedTokenizerFast`.

    Raises:
        UnsupportedModelError: It is of a kind that is not known here.
        ModelLoadError: The file carries none, or a damaged one.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = _Tokens(file)
    special = {
        f"{ours}_token": text
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (text := tokens.text(theirs)) is not None
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_Built(build_backend(file)),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],  # else the class adds token_type_ids
        clean_up_tokenization_spaces=False,
        **special,
    )
    tokenizer.chat_template = _chat_template(file)
    return tokenizer


def build_backend(file: GGUFFile) -> Tokenizer:
    """Build what encodes and decodes in a file's tokenizer. Raises what `read_tokenizer` raises."""
    tokens = _Tokens(file)
    try:
        backend, adds_bos = _backend(file, tokens)
        _add_special(backend, tokens, file)
        _add_ends(backend, tokens, file, adds_bos=adds_bos)
    except SpecDecError:
        raise
    except Exception as error:  # as tokenizers raises
        _damaged(file, f"its tokenizer cannot be built ({' '.join(str(error).split())})", error)
    return backend


def ending_tokens(file: GGUFFile) -> list[int]:
    """All tokens that end a text, or a message of a chat."""
    tokens = _Tokens(file)
    ids = [tokens.id(name) for name in ("eos", "eot", "eom")]
    known = [*_TURN_ENDS]
    if file.fields.get("general.architecture") in ("qwen2", "qwen3"):
        known.append("<|endoftext|>")  # its generation_config.json has it too
    ids += [
        index
        for text in known
        if (index := tokens.vocab.get(text)) is not None and tokens.kinds[index] in (_CONTROL, _USER_DEFINED)
    ]
    return sorted({index for index in ids if index is not None})


class _Tokens:
    """The vocabulary of a file."""

    def __init__(self, file: GGUFFile) -> None:
        self._fields = file.fields
        texts = file.fields.get("tokenizer.ggml.tokens")
        if not isinstance(texts, list) or not texts or not isinstance(texts[0], str):
            _damaged(file, "it has no tokenizer.ggml.tokens")
        self.texts: list[str] = texts
        self.kinds: list[int] = file.fields.get("tokenizer.ggml.token_type") or [_NORMAL] * len(texts)
        if not isinstance(self.kinds, list) or len(self.kinds) < len(texts):
            _damaged(file, "tokenizer.ggml.token_type has too few entries")
        self.vocab = {text: index for index, text in enumerate(texts)}

    def id(self, name: str) -> int | None:
        """The id of the token for a purpose; None where the file has none."""
        index = self._fields.get(f"tokenizer.ggml.{name}_token_id")
        return index if isinstance(index, int) and 0 <= index < len(self.texts) else None

    def text(self, name: str) -> str | None:
        """The text of the token for a purpose."""
        index = self.id(name)
        return None if index is None else self.texts[index]


class _Built:
    """A tokenizer that transformers takes as it is: it would copy what nobody else has, in a tenth of a second."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __deepcopy__(self, memo: object) -> Tokenizer:
        return self._tokenizer


def _backend(file: GGUFFile, tokens: _Tokens) -> tuple[Tokenizer, bool]:
    """A tokenizer without special tokens, and whether it begins texts with one where the file does not say."""
    # Converters fill tables up to the size of the embeddings.
    fillers = {f"[PAD{index}]": index for index, kind in enumerate(tokens.kinds) if kind == _UNUSED}
    vocab = {text: index for text, index in tokens.vocab.items() if fillers.get(text) != index}
    kind = file.fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        pre = file.fields.get("tokenizer.ggml.pre", "default")
        if pre not in PRE_TOKENIZERS:
            _refuse(file, f"cuts texts in the way {pre!r}, which is not known here")
        merges = file.fields.get("tokenizer.ggml.merges")
        if not isinstance(merges, list):
            _damaged(file, "it has no tokenizer.ggml.merges")
        return byte_level(vocab, merges, PRE_TOKENIZERS[pre]), PRE_TOKENIZERS[pre].adds_bos
    if kind != "llama":
        _refuse(file, f"is of kind {kind!r}; 'gpt2' (byte-level BPE) and 'llama' (SentencePiece's BPE) are read")
    return _pieces(file, tokens, vocab), True


def _pieces(file: GGUFFile, tokens: _Tokens, vocab: dict[str, int]) -> Tokenizer:
    scores = file.fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens.texts):
        _damaged(file, "tokenizer.ggml.scores has too few entries")
    # Converters write the spaces of added tokens as such, and give these a score of no use; SentencePiece takes them
    # before all others.
    is_added = {index for index, kind in enumerate(tokens.kinds) if kind == _USER_DEFINED}
    pieces = {text.replace(" ", SPACE) if index in is_added else text: index for text, index in vocab.items()}
    mergeable = {
        text: 0.0 if index in is_added else scores[index]
        for text, index in pieces.items()
        if tokens.kinds[index] in (_NORMAL, _USER_DEFINED)
    }
    unknown = tokens.text("unknown") or tokens.texts[0]
    has_prefix = bool(file.fields.get("tokenizer.ggml.add_space_prefix", True))
    return sentence_piece(pieces, mergeable, unknown, has_prefix=has_prefix)


def _add_special(backend: Tokenizer, tokens: _Tokens, file: GGUFFile) -> None:
    is_piece = file.fields["tokenizer.ggml.model"] == "llama"
    # Phi-3's take the space after them, but for those of the vocabulary that it began with.
    takes_space = is_piece and file.fields["general.architecture"] == "phi3"
    added = []
    for text, kind in zip(tokens.texts, tokens.kinds, strict=False):
        if kind in (_CONTROL, _UNKNOWN):
            is_old = text in ("<unk>", "<s>", "<|endoftext|>")
            added.append(AddedToken(text, normalized=False, special=True, rstrip=takes_space and not is_old))
        elif kind == _USER_DEFINED:
            content = text.replace(" ", SPACE) if is_piece else text
            added.append(AddedToken(content, normalized=False, special=False))
    backend.add_tokens(added)


def _add_ends(backend: Tokenizer, tokens: _Tokens, file: GGUFFile, *, adds_bos: bool) -> None:
    """Have texts begin and end with the tokens that the model was trained on."""
    begin, end = tokens.text("bos"), tokens.text("eos")
    begin = begin if file.fields.get("tokenizer.ggml.add_bos_token", adds_bos) else None
    end = end if file.fields.get("tokenizer.ggml.add_eos_token", False) else None
    if begin is None and end is None:
        return
    special = [(text, tokens.vocab[text]) for text in dict.fromkeys((begin, end)) if text is not None]
    first, second = ([part for part in (begin, "$A", end) if part], [part for part in (begin, "$B", end) if part])
    backend.post_processor = processors.TemplateProcessing(
        single=first, pair=[*first, *(f"{part}:1" for part in second)], special_tokens=special
    )


def _chat_template(file: GGUFFile) -> Any:
    """A file's template; all of them by name where it has several."""
    prefix = "tokenizer.chat_template"
    default = file.fields.get(prefix)
    named = {
        name.removeprefix(f"{prefix}."): text for name, text in file.fields.items() if name.startswith(f"{prefix}.")
    }
    if named and default is not None:
        return {"default": default, **named}
    return named or default


def _refuse(file: GGUFFile, what: str) -> NoReturn:
    raise UnsupportedModelError(f"The tokenizer of {str(file.path)!r} {what}. {_GIVE}")


def _damaged(file: GGUFFile, what: str, cause: Exception | None = None) -> NoReturn:
    raise ModelLoadError(f"{str(file.path)!r} is damaged: {what}. Download it anew, or give tokenizer=.") from cause

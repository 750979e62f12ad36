"""Byte-level BPE tokenizers of GGUF files, by the pre-tokenizer that a file names.

Files name pre-tokenizers and do not carry them. Those here are the ones that stand in the tokenizer.json of the models
that a name belongs to, so that a text becomes the tokens that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_REST_WITH_SLASH}"
_GPT4O = rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", _DIGIT)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is cut before it is encoded.

    Attributes:
        patterns: Each cuts the pieces of the one before it.
        takes_whole: Whether a piece that is a token becomes it, whatever merges say.
        adds_bos: Whether a text begins with a token of its own, where the file does not say.
        is_composed: Whether characters are composed first (Unicode's NFC).
    """

    patterns: Sequence[str]
    takes_whole: bool = False
    adds_bos: bool = False
    is_composed: bool = False


_LLAMA_BPE = PreTokenizer((_LLAMA3,), takes_whole=True, adds_bos=True)
_OF_DIGITS = PreTokenizer((_DIGIT, _GPT2))
_OF_QWEN2 = PreTokenizer((_QWEN2,), is_composed=True)
PRE_TOKENIZERS = {
    "default": PreTokenizer(_DEFAULT),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": _OF_DIGITS,
    "starcoder": _OF_DIGITS,
    "refact": _OF_DIGITS,
    "command-r": _OF_DIGITS,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "falcon3": _LLAMA_BPE,
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "qwen2": _OF_QWEN2,
    "deepseek-r1-qwen": _OF_QWEN2,
    "megrez": _OF_QWEN2,
    "tekken": PreTokenizer((_TEKKEN,), takes_whole=True, adds_bos=True),
    "gpt-4o": PreTokenizer((_GPT4O,)),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
}


def byte_level(vocab: dict[str, int], merges: Sequence[str], kind: PreTokenizer) -> Tokenizer:
    """Build a tokenizer, without its special tokens.

    Args:
        vocab: Tokens and their ids.
        merges: Pairs of tokens, the first to be merged first.
        kind: How texts are cut.

    Raises:
        ValueError: A merge is no pair of tokens.
    """
    pairs = []
    for merge in merges:
        at = merge.find(" ", 1)
        if at < 0:
            msg = f"the merge {merge!r} is no pair"
            raise ValueError(msg)
        pairs.append((merge[:at], merge[at + 1 :]))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=kind.takes_whole))
    if kind.is_composed:
        tokenizer.normalizer = normalizers.NFC()
    patterns = list(kind.patterns)
    # ByteLevel's own pattern is GPT-2's, and faster; so is Digits.
    is_gpt2 = patterns[-1] == _GPT2
    splits = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == _DIGIT
        else pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in patterns[: len(patterns) - is_gpt2]
    ]
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=is_gpt2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

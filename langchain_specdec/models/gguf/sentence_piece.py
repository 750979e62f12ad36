"""SentencePiece's BPE tokenizers of GGUF files (Llama 2, Mistral 7B, Phi-3, Gemma), by their scores."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer, decoders, models, normalizers

SPACE = "▁"


def sentence_piece(vocab: dict[str, int], scores: Mapping[str, float], unknown: str, *, has_prefix: bool) -> Tokenizer:
    """Build a tokenizer, without its special tokens.

    Args:
        vocab: Tokens and their ids.
        scores: Those that texts are made of, each with its score: the highest is merged first.
        unknown: The token of what has none.
        has_prefix: Whether a text begins with a space of its own.
    """
    has_bytes = "<0x00>" in vocab
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(vocab, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if has_prefix else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs that make a token, in the order in which SentencePiece takes them, as transformers' converters do."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in scores.items():
        pairs = [
            (vocab[token[:at]], vocab[token[at:]], at)
            for at in range(1, len(token))
            if token[:at] in scores and token[at:] in scores
        ]
        found += [(score, at, len(token) - at, token[:at], token[at:]) for _, _, at in sorted(pairs)]
    found.sort(key=lambda pair: pair[:3], reverse=True)
    return [(left, right) for *_, left, right in found]

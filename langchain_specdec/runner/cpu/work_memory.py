"""What a native decoder's threads work in, by the sizes that `memory.h` and `walk.h` have."""

from __future__ import annotations

from langchain_specdec.runner.cpu.decoder_weights import DecoderWeights

# Of the same names in C++.
_MAX_TOKENS, _RING, _CHUNK = 80, 8, 32


def work_bytes(weights: DecoderWeights, num_threads: int) -> int:
    """Most bytes that all threads of a decoder work in, beside its weights and its slots.

    Memory is taken as it is written: most of it with the first long prompt, and that of logits with wide drafts.

    Args:
        weights: The decoder's.
        num_threads: Its threads.
    """
    queries, keys = weights.heads * weights.head_dim, weights.kv_heads * weights.head_dim
    mlp, layers = weights.layers[0].gate.outputs, len(weights.layers)
    most = max(queries + 2 * keys, mlp, weights.hidden)
    hidden, attended, active = (_padded(size) for size in (weights.hidden, queries, mlp))
    # Inputs of four layers and one that is normed; outputs of a ring of stages and those of all threads together.
    numbers = 5 * hidden + attended + active + (_RING + 1) * most + 2 * layers * keys + weights.vocab
    given = 0
    if (state := weights.state) is not None:
        numbers += _padded(weights.embedding.inputs + weights.hidden)
        given = max(weights.hidden, _padded(state.fc.inputs if state.fc is not None else 0))
    return 4 * _MAX_TOKENS * (num_threads * numbers + given)


def _padded(size: int) -> int:
    return -(-size // _CHUNK) * _CHUNK

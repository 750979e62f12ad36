"""`SamplingParams` in TGI's terms; what TGI cannot honour is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_specdec.backends.remote.backend import check_text
from langchain_specdec.backends.remote.prompt_tokenizer import VocabularySize
from langchain_specdec.backends.tgi.grammars import served
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.sampling.params import SamplingParams

LEAST_TEMPERATURE = 0.01
"""Below it, scores may exceed the numbers that a server computes in, and its answer is noise."""
LEAST_PENALTY = 0.01
"""Least `repetition_penalty`, for the same reason."""
SAFE_TOP_K = 256
"""Most `top_k` where the vocabulary is not known: no tokenizer of text has fewer tokens."""
_LEAST_TOP_P = 1e-9


@dataclass(frozen=True, kw_only=True)
class GenerateParameters:
    """Parameters of TGI's `/generate_stream`. None leaves a parameter out.

    TGI samples as soon as `temperature`, `top_k` or `top_p` is given and differs from its neutral value, whatever
    `do_sample` says. So greedy requests give none of them.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    top_n_tokens: int | None = None
    grammar: dict[str, Any] | None = None

    @classmethod
    def from_params(
        cls, params: SamplingParams, seed: int, max_stop_sequences: int | None, vocabulary: VocabularySize | None = None
    ) -> GenerateParameters:
        """What to send.

        Args:
            params: Parameters that TGI can honour, see `check_honoured`.
            seed: The seed in force.
            max_stop_sequences: Stop strings that the server takes. The first so many are sent, to end the text there;
                all of them are looked for here as well.
            vocabulary: Of the model that the server has now, where it is known.

        Raises:
            InvalidParameterError: `top_k` may be more than that model takes.
        """
        _check_top_k(params, vocabulary)
        sampled: dict[str, Any] = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_k": None if vocabulary and (params.top_k or 0) >= vocabulary.most else params.top_k or None,
            "top_p": _top_p(params.top_p),
            "seed": seed,
        }
        return cls(
            max_new_tokens=params.max_new_tokens,
            stop=tuple(params.stop)[:max_stop_sequences],
            repetition_penalty=None if params.repetition_penalty == 1.0 else params.repetition_penalty,
            top_n_tokens=params.logprobs or None,
            grammar=None if params.grammar is None else served(params.grammar),
            **(sampled if params.temperature > 0.0 else {}),
        )


def _top_p(top_p: float | None) -> float | None:
    """What keeps the same tokens in TGI's 32 bits, where neither 0 nor 1 is allowed."""
    # So close to 1 it keeps every token, and below one over any vocabulary the best one only.
    return None if top_p is None or top_p > 1.0 - 2.0**-25 else max(top_p, _LEAST_TOP_P)


def _changes_logprobs(params: SamplingParams) -> bool:
    is_cut = bool(params.top_k) or params.top_p not in (None, 1.0)
    is_scaled = params.temperature not in (0.0, 1.0)
    return params.repetition_penalty not in (None, 1.0) or (params.temperature > 0 and (is_scaled or is_cut))


_REFUSALS: tuple[tuple[str, Callable[[SamplingParams], bool], str], ...] = (
    ("min_p", lambda p: bool(p.min_p), "TGI has no such parameter"),
    ("presence_penalty", lambda p: p.presence_penalty != 0.0, "TGI has no such parameter for completions"),
    (
        "frequency_penalty",
        lambda p: p.frequency_penalty != 0.0,
        "TGI means another thing by it: it counts the prompt too and divides by the length",
    ),
    ("logit_bias", lambda p: bool(p.logit_bias), "TGI has no such parameter for completions"),
    (
        "temperature",
        lambda p: 0.0 < p.temperature < LEAST_TEMPERATURE,
        f"below {LEAST_TEMPERATURE:g} a server may run out of numbers and answer noise; 0 is greedy",
    ),
    (
        "repetition_penalty",
        lambda p: p.repetition_penalty is not None and p.repetition_penalty < LEAST_PENALTY,
        f"below {LEAST_PENALTY:g} a server may run out of numbers and answer noise",
    ),
    ("ignore_eos", lambda p: p.ignore_eos, "TGI has no such parameter"),
    ("adapter", lambda p: p.adapter is not None, "adapters of a server are not chosen from here"),
    (
        "logprobs",
        lambda p: p.logprobs is not None and _changes_logprobs(p),
        "TGI reports them after temperature, penalties and truncation, not the model's own: ask for them in greedy "
        "decoding, or at temperature 1 without top_k, top_p and repetition_penalty",
    ),
)


def check_honoured(params: SamplingParams, vocabulary: VocabularySize | None = None) -> None:
    """Refuse what TGI would ignore or do otherwise, and what would end the server or hold it up.

    Args:
        params: What is asked for.
        vocabulary: Of the model, where it is known.

    Raises:
        InvalidParameterError: A parameter asks for what TGI cannot do.
    """
    for name, is_asked, reason in _REFUSALS:
        if is_asked(params):
            msg = f"{name} cannot be honoured by a TGI server ({reason}). Leave it out, or use a LocalBackend."
            raise InvalidParameterError(msg)
    _check_top_k(params, vocabulary)
    for stop in params.stop:
        check_text(stop, "A stop string")
    if params.grammar is not None:
        served(params.grammar)


def _check_top_k(params: SamplingParams, vocabulary: VocabularySize | None) -> None:
    """Refuse a `top_k` that may be more than the vocabulary: one such request ends the whole server."""
    top_k = params.top_k if params.temperature > 0.0 else None
    if not top_k or (vocabulary and (top_k <= vocabulary.least or top_k >= vocabulary.most)):
        return
    if vocabulary:
        msg = (
            f"top_k={top_k} may be more than the vocabulary of the TGI server's model, which would end the server: it "
            f"has {vocabulary.least} tokens, and some of those added to its tokenizer. Give at most "
            f"{vocabulary.least}, or leave top_k out for all tokens."
        )
        raise InvalidParameterError(msg)
    if top_k > SAFE_TOP_K:
        msg = (
            f"top_k={top_k} may be more than the vocabulary of the TGI server's model, which would end the server, and "
            f"the vocabulary is not known here. Give at most {SAFE_TOP_K}, leave top_k out for all tokens, or give the "
            f"model's tokenizer: tokenizer=."
        )
        raise InvalidParameterError(msg)

"""`SamplingParams` in TGI's terms; what TGI cannot honour is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.formats import PATTERNS
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.json_schema import FORMATS, map_schemas
from langchain_specdec.options import check_unicode
from langchain_specdec.sampling.params import SamplingParams

# What may follow in a string of JSON that has no escapes.
_REST = r'[^"\\\x00-\x1f]*'


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
    def from_params(cls, params: SamplingParams, seed: int, max_stop_sequences: int | None) -> GenerateParameters:
        """What to send.

        Args:
            params: Parameters that TGI can honour, see `check_honoured`.
            seed: The seed in force.
            max_stop_sequences: Stop strings that the server takes. The first so many are sent, to end the text there;
                all of them are looked for here as well.
        """
        sampled: dict[str, Any] = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_k": params.top_k or None,
            # 1 keeps every token, and TGI refuses it.
            "top_p": None if params.top_p == 1.0 else params.top_p,
            "seed": seed,
        }
        return cls(
            max_new_tokens=params.max_new_tokens,
            stop=tuple(params.stop)[:max_stop_sequences],
            repetition_penalty=None if params.repetition_penalty == 1.0 else params.repetition_penalty,
            top_n_tokens=params.logprobs or None,
            grammar=None if params.grammar is None else _grammar(params.grammar),
            **(sampled if params.temperature > 0.0 else {}),
        )


def _grammar(grammar: Grammar) -> dict[str, Any]:
    if grammar.regex is not None:
        return {"type": "regex", "value": grammar.regex}
    return {"type": "json", "value": map_schemas(grammar.schema, _as_served)}


def _as_served(inner: dict[str, Any]) -> dict[str, Any]:
    """A schema in words that the server's grammars (outlines-core) know; it ignores other keywords, but no formats."""
    for keyword in ("formatMinimum", "formatMaximum", "propertyNames"):
        inner.pop(keyword, None)
    pattern, members = inner.get("pattern"), inner.get("allOf", ())
    if isinstance(pattern, str) and all(isinstance(part, dict) and part.keys() == {"pattern"} for part in members):
        # Patterns are not intersected there, but put one after the other.
        inner.pop("allOf", None)
    name = inner.get("format")
    if name not in FORMATS or name in PATTERNS or isinstance(pattern, str):
        inner.pop("format", None)
    if isinstance(pattern, str):
        if pattern.startswith("^") and not pattern.endswith("$"):
            # A pattern is taken for the whole string there, without its anchors where it has both.
            inner["pattern"] = rf"^(?:{pattern[1:]}){_REST}$"
    elif name in PATTERNS:
        # Digits of other scripts are digits to that library.
        inner["pattern"] = f"^(?:{PATTERNS[name]})$".replace(r"\d", "[0-9]")
    return inner


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
        "grammar",
        lambda p: p.grammar is not None and p.grammar.regex is None and "properties" not in (p.grammar.schema or {}),
        "TGI takes a schema only of an object, with 'properties'",
    ),
    ("ignore_eos", lambda p: p.ignore_eos, "TGI has no such parameter"),
    (
        "logprobs",
        lambda p: p.logprobs is not None and _changes_logprobs(p),
        "TGI reports them after temperature, penalties and truncation, not the model's own: ask for them in greedy "
        "decoding, or at temperature 1 without top_k, top_p and repetition_penalty",
    ),
)


def check_honoured(params: SamplingParams) -> None:
    """Refuse what TGI would ignore or do otherwise.

    Raises:
        InvalidParameterError: A parameter asks for what TGI cannot do.
    """
    for name, is_asked, reason in _REFUSALS:
        if is_asked(params):
            msg = f"{name} cannot be honoured by a TGI server ({reason}). Leave it out, or use a LocalBackend."
            raise InvalidParameterError(msg)
    for stop in params.stop:
        check_text(stop, "A stop string")


def check_text(text: object, what: str = "A prompt") -> None:
    """Refuse what is no text that can be sent.

    Raises:
        InvalidParameterError: It is not a string, or not valid Unicode.
    """
    if not isinstance(text, str):
        msg = f"{what} must be a string, got {type(text).__name__}."
        raise InvalidParameterError(msg)
    check_unicode(what, text)

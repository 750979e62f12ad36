"""One completion: all of its state. Derived values are properties."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from langchain_specdec.completions.prompt_images import PromptImage, image_around, keyed
from langchain_specdec.completions.room import larger_max_length, prompt_too_long
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.engine.detokenizer import Detokenizer
from langchain_specdec.engine.stopping import StopChecker
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.grammar.constraint import Constraint
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.sampling.choice import SparseBias, TokenHistory
from langchain_specdec.sampling.params import SamplingParams


@dataclass(eq=False)
class Request:
    """State of one completion, owned by the engine's thread once it is submitted.

    Attributes:
        request_id: Unique within the engine.
        prompt_ids: Prompt tokens, at least one.
        params: Sampling parameters.
        seed: Seed in force.
        stopper: Decides where the text ends.
        stream: Where the reader takes the events from.
        rates: Acceptance by kind of draft.
        constraint: The grammar that the text follows, perhaps after a thought; None: it is free.
        logprob_token_ids: Tokens whose log probabilities it is told.
        images: Images that stand in its prompt, in order.
        namespace: Whose it is; it learns from others of the same alone.
        prompt_keys: What its prompt is compared with others by: its tokens, and what its images hold.
        history: The counts of tokens that its penalties need; None where it has no penalty.
        token_ids: Prompt and output; the last one's keys and values are not in the cache yet.
        bias: Its `logit_bias`, ready for sampling.
        slot: Cache slot, -1 while waiting.
        num_cached: Tokens whose keys and values are in the slot.
        num_reused: How many of them a resting slot already held at the start.
        stats: Counts of speculation.
        decode_started: Clock at the first decoding step.
        plain_token_seconds: What a token costs without drafts, beside as many rows; 0 where that was not measured.
    """

    request_id: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    seed: int
    stopper: StopChecker
    stream: CompletionStream
    rates: AcceptanceRates
    constraint: Constraint | None = None
    logprob_token_ids: Sequence[int] = ()
    images: Sequence[PromptImage] = ()
    namespace: str = ""
    prompt_keys: Sequence[int] = field(init=False)
    history: TokenHistory | None = None
    token_ids: list[int] = field(default_factory=list)
    bias: SparseBias | None = field(init=False, default=None)
    slot: int = -1
    num_cached: int = 0
    num_reused: int = 0
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    decode_started: float | None = None
    plain_token_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_ids)
        self.prompt_keys = keyed(self.prompt_ids, self.images) if self.images else self.prompt_ids
        self.bias = SparseBias.of(self.params.logit_bias)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.prompt_ids)

    @property
    def num_remaining(self) -> int:
        """Tokens that may still be generated."""
        return self.params.max_new_tokens - self.num_output_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether it is told log probabilities, so that the logits have to be kept."""
        return self.params.logprobs is not None or bool(self.logprob_token_ids)

    @property
    def max_tokens(self) -> int:
        """Most tokens that its slot may come to hold."""
        return len(self.prompt_ids) + self.params.max_new_tokens

    @property
    def prefill_stop(self) -> int:
        """Where prefill ends: the last prompt token is left to the first decoding step, which needs its logits."""
        return len(self.prompt_ids) - 1

    @property
    def cache_namespace(self) -> tuple[str, str | None]:
        """Whose keys and values it can go on from: those of its namespace, computed by the same adapter."""
        return self.namespace, self.params.adapter

    @property
    def cached_keys(self) -> list[int]:
        """What the tokens in its slot are compared with prompts by."""
        return [*self.prompt_keys, *self.token_ids[len(self.prompt_ids) :]][: self.num_cached]

    def whole_images(self, length: int) -> int:
        """The most tokens of the prompt, up to so many, that cut no image."""
        cut = image_around(self.images, length)
        return length if cut is None else cut.start

    def prefill_end(self, size: int) -> int:
        """Where the next piece of the prompt ends that has about so many tokens: it cuts no image."""
        stop = self.num_cached + size
        cut = image_around(self.images, stop)
        if cut is None:
            return stop
        return cut.start if cut.start > self.num_cached else cut.stop

    @property
    def is_prefilled(self) -> bool:
        """Whether decoding can go on."""
        return self.num_cached >= self.prefill_stop

    @property
    def is_finished(self) -> bool:
        """Whether the text has ended."""
        return self.stopper.finish_reason is not None


def make_stopper(
    tokenizer: PrivateTokenizer,
    eos_token_ids: Collection[int],
    params: SamplingParams,
    context: Sequence[int],
    shown_specials: Mapping[int, str],
    make_end_check: Callable[[], Callable[[str], bool]] | None = None,
    thoughts: Thoughts | None = None,
) -> StopChecker:
    """What decides where a text ends, and what of it may be released.

    Args:
        tokenizer: The target's.
        eos_token_ids: Tokens that end a text.
        params: The limits.
        context: Tokens that the text goes on from.
        shown_specials: Special tokens that are part of the text, by id, with what they are in it.
        make_end_check: Makes what may end the text, too.
        thoughts: How thoughts stand in the text.
    """
    eos = () if params.ignore_eos else eos_token_ids
    detokenizer = Detokenizer(tokenizer, context)
    is_at_end = make_end_check() if make_end_check is not None else None
    limits = params.max_new_tokens, params.stop, eos
    return StopChecker(detokenizer, *limits, tokenizer.special_texts, shown_specials, is_at_end, thoughts)


def check_prompt(
    prompt_ids: Sequence[int],
    params: SamplingParams,
    vocab_size: int,
    max_length: int,
    max_positions: int | None = None,
    logprob_token_ids: Sequence[int] = (),
) -> None:
    """Refuse a prompt that cannot be run.

    Args:
        prompt_ids: Its tokens.
        params: How it is to go on.
        vocab_size: Number of the model's tokens.
        max_length: Positions of a slot.
        max_positions: Most positions that a slot of this model can have; None where that is not known.
        logprob_token_ids: Tokens whose log probabilities it is to be told.

    Raises:
        InvalidParameterError: It is empty, or a token of it, of `logit_bias` or of `logprob_token_ids` is unknown.
        PromptTooLongError: It does not fit into a slot with its new tokens.
    """
    if not prompt_ids:
        msg = "The prompt is empty: it has no tokens. Give at least one character of text."
        raise InvalidParameterError(msg)
    named = *prompt_ids, *(params.logit_bias or ()), *logprob_token_ids
    unknown = next((token for token in named if not 0 <= token < vocab_size), None)
    if unknown is not None:
        msg = f"Token id {unknown} is not in the model's vocabulary (0 to {vocab_size - 1})."
        raise InvalidParameterError(msg)
    if len(prompt_ids) + params.max_new_tokens > max_length:
        more_room = larger_max_length(len(prompt_ids) + params.max_new_tokens, max_positions)
        raise prompt_too_long(len(prompt_ids), params.max_new_tokens, max_length, "max_length", more_room)

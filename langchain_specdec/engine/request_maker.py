"""What is submitted becomes a request, or an error before anything has run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.drafters.acceptance import AcceptanceRates
from langchain_specdec.engine.request import Request, check_prompt, make_stopper
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.grammar.constraint import Constraint, GrammarCompiler
from langchain_specdec.grammar.thought_first import ThoughtPhase, thought_first
from langchain_specdec.models.private_tokenizer import PrivateTokenizer
from langchain_specdec.runner.runner import Runner
from langchain_specdec.sampling.params import SamplingParams, check_adapter


class RequestMaker:
    """Makes the requests of one engine, in any thread.

    Args:
        runner: The target model.
        tokenizer: The target's.
        eos_token_ids: Tokens that end a text.
        cancel: Has a request dropped, whose reader has gone.
        grammars: Makes constraints from grammars.
        is_shared: Whether requests start from the acceptance that others of their namespace saw.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: PrivateTokenizer,
        eos_token_ids: Collection[int],
        cancel: Callable[[Request], None],
        grammars: GrammarCompiler,
        *,
        is_shared: bool,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._cancel = cancel
        self._grammars = grammars
        self._shared_rates: dict[str, AcceptanceRates] | None = {} if is_shared else None
        self._ids = itertools.count()

    def make(self, asked: CompletionRequest) -> Request:
        """A request that can be run.

        Args:
            asked: The completion; its prompt is tokens, at least one.

        Raises:
            SpecDecError: As `Engine.submit` does.
        """
        prompt_ids, params = asked.prompt, asked.params
        assert not isinstance(prompt_ids, str), "a backend has encoded it"  # noqa: S101
        self._check(prompt_ids, params, asked.logprob_token_ids)
        if asked.images and self._runner.images is None:
            msg = "The prompt has images, and this model is given text only. Leave them out."
            raise InvalidParameterError(msg)
        if asked.images and asked.images[-1].stop >= len(prompt_ids):
            msg = "The prompt ends in an image, and the text goes on after a token of text. Put some after the image."
            raise InvalidParameterError(msg)
        constraint = self._constraint(params, asked.thoughts)
        seed = params.seed_or_drawn()
        context = prompt_ids if asked.continues_prompt else ()
        how = params, context, asked.shown_specials, asked.make_end_check, asked.thoughts
        stopper = make_stopper(self._tokenizer, self._eos_token_ids, *how)
        cancel, holder = self._cancel, []  # type: ignore[var-annotated]
        # The stream must not hold the engine: a forgotten stream would keep it and its model alive.
        stream = CompletionStream(on_close=lambda: cancel(holder[0]))
        rates = AcceptanceRates(self._rates_of(asked.namespace))
        own = tuple(prompt_ids), params, seed, stopper, stream, rates, constraint
        told = tuple(asked.logprob_token_ids)
        images, whose = tuple(asked.images), asked.namespace
        request = Request(next(self._ids), *own, logprob_token_ids=told, images=images, namespace=whose)
        holder.append(request)
        return request

    def _rates_of(self, namespace: str) -> AcceptanceRates:
        """What the requests of a namespace saw so far; nothing where they share nothing."""
        if self._shared_rates is None:
            return AcceptanceRates()
        return self._shared_rates.setdefault(namespace, AcceptanceRates())

    def _check(self, prompt_ids: Sequence[int], params: SamplingParams, logprob_token_ids: Sequence[int]) -> None:
        """Raise what is wrong with a request."""
        runner = self._runner
        if (reason := runner.why_unfit) is not None:
            msg = f"The model cannot run here any more: {reason}. Make a new backend of it, or move it back."
            raise UnsupportedModelError(msg)
        check_adapter(params.adapter, () if runner.adapters is None else runner.adapters.names)
        room = runner.vocab_size, runner.max_length, runner.max_positions
        check_prompt(prompt_ids, params, *room, logprob_token_ids)

    def _constraint(self, params: SamplingParams, thoughts: Thoughts | None) -> Constraint | None:
        """What constrains a text: a thought that has to end, and a grammar; None where it is free."""
        if thoughts is not None and thoughts.max_tokens is not None:
            phase = ThoughtPhase(
                thoughts.end,
                thoughts.closing,
                thoughts.following,
                thoughts.max_tokens,
                thoughts.begins,
                thoughts.implied_ends,
                thoughts.is_open,
            )
            return thought_first(phase, params.grammar, params.max_new_tokens, self._grammars)
        if params.grammar is None:
            return None
        return self._grammars.compile(params.grammar, params.max_new_tokens)

"""A completion: what is asked for, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_specdec.completions.events import Event, FinishEvent, Token
from langchain_specdec.completions.prompt_images import PromptImage
from langchain_specdec.completions.server_chat import ServerChat
from langchain_specdec.completions.thoughts import Thoughts
from langchain_specdec.sampling.params import SamplingParams


@dataclass(frozen=True)
class CompletionRequest:
    """A prompt and what to generate from it.

    Attributes:
        prompt: Text, or tokens where the backend has `takes_token_ids`.
        params: What to generate.
        continues_prompt: Whether the text goes on where the prompt ends, with the space between both, as a completion
            does; or is a text of its own, as a chat's answer is, without the space that some tokenizers begin it with.
        shown_specials: Special tokens that are part of the text, by id, with what they are in it, such as those that
            mark a tool call. All others are left out.
        banned: Tokens that are not to be chosen, as far as the backend knows them.
        template_of: The tokenizer whose chat template the prompt was written by, where a server may have another model
            by the time it is sent.
        logprob_token_ids: Tokens whose log probabilities are reported at every position, beside those of the most
            probable ones, as far as the backend has `takes_logprob_token_ids`.
        make_end_check: Makes what is told the text as it is released, and says whether the completion is to end there,
            as with a stop string; it may be called in any thread. None where nothing but `params` and the model ends
            it.
        thoughts: How thoughts stand in the text; None where there are none. A grammar is that of what comes after the
            first one, where the prompt has begun it.
        images: Images that stand in the prompt, in order, where the backend has an `image_reader`.
        chat: A chat in place of the prompt, which is empty then, where the backend has `takes_messages`.
        namespace: Whose it is: an engine in this process reuses prompts, and drafts from answers, of the same namespace
            alone. It changes no text, only what cached tokens and counts of drafts may tell of others' requests.
    """

    prompt: str | Sequence[int]
    params: SamplingParams
    continues_prompt: bool = True
    shown_specials: Mapping[int, str] = field(default_factory=dict)
    template_of: Any = None
    banned: Collection[int] = ()
    logprob_token_ids: Sequence[int] = ()
    make_end_check: Callable[[], Callable[[str], bool]] | None = None
    thoughts: Thoughts | None = None
    images: Sequence[PromptImage] = ()
    chat: ServerChat | None = None
    namespace: str = ""


@dataclass(frozen=True)
class Completion:
    """A finished completion.

    Attributes:
        tokens: The generated tokens.
        finish: How it ended.
    """

    tokens: tuple[Token, ...]
    finish: FinishEvent

    @property
    def text(self) -> str:
        """The generated text, without the stop string."""
        return "".join(token.text for token in self.tokens)

    def info(self) -> dict[str, Any]:
        """How it ended, counts and, where asked for, log probabilities, as plain values that JSON keeps."""
        info: dict[str, Any] = {
            "finish_reason": self.finish.finish_reason,
            "prompt_tokens": self.finish.prompt_tokens,
            "completion_tokens": self.finish.completion_tokens,
            "cached_tokens": self.finish.cached_tokens,
            "seed": self.finish.seed,
            "speculation": self.finish.speculation.as_dict(),
        }
        if self.finish.time_to_first_token is not None:
            info["time_to_first_token"] = round(self.finish.time_to_first_token, 6)
        if any(token.logprob is not None for token in self.tokens):
            info["logprobs"] = [
                {
                    "token_id": token.id,
                    "text": token.text,
                    "logprob": token.logprob,
                    # No keys of numbers: JSON, and with it a cache in a database, would make them texts.
                    "top_logprobs": [
                        {"token_id": other, "logprob": logprob} for other, logprob in (token.top_logprobs or {}).items()
                    ],
                }
                for token in self.tokens
            ]
        return info


def collect(events: Iterable[Event]) -> Completion:
    """The completion that these events make; the last is a `FinishEvent`."""
    tokens: list[Token] = []
    for event in events:
        if isinstance(event, FinishEvent):
            return Completion(tuple(tokens), event)
        tokens.extend(event.tokens)
    msg = "the stream ended without a FinishEvent"
    raise RuntimeError(msg)

"""What LangChain's agents may know of a chat model before they use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.reasoning import ReasoningControl

if TYPE_CHECKING:
    from langchain_core.language_models.model_profile import ModelProfile


def profile_of(backend: Backend, max_new_tokens: int, reasoning: ReasoningControl | None) -> ModelProfile:
    """The profile of a chat model. A server's has no name: it is not asked for it before the first call.

    `max_input_tokens` are those of a prompt, tools included, that leaves room for an answer of `max_new_tokens`, since
    a longer one is refused. The limit of a server is left out where it has not told it before.

    Args:
        backend: Where the model runs.
        max_new_tokens: Most tokens of an answer, as the chat model is set.
        reasoning: What the model's template knows of thinking; None where it is not known yet.
    """
    profile: ModelProfile = {
        "text_inputs": True,
        "text_outputs": True,
        "image_inputs": False,
        "audio_inputs": False,
        "video_inputs": False,
        "tool_calling": True,
        "tool_choice": True,
        # Agents take it for a response format beside tools; without it they make a tool of the format.
        "structured_output": backend.takes_calls_or_object,
        "temperature": True,
        "open_weights": True,
    }
    if reasoning is not None:
        profile["reasoning_output"] = reasoning.can_think
        if reasoning.levels:
            profile["reasoning_effort_levels"] = list(reasoning.levels)
        if reasoning.default_level:
            profile["reasoning_effort_default"] = reasoning.default_level
    if not backend.is_remote:
        profile["name"] = backend.model_name
    if (limit := backend.max_length) is not None:
        # An agent may divide by it.
        room = limit - max_new_tokens
        profile["max_input_tokens"] = max(1, min(room, backend.max_prompt_length or room))
        profile["max_output_tokens"] = max(1, min(max_new_tokens, limit - 1))
    return profile

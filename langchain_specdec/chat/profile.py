"""What LangChain's agents may know of a chat model before they use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_specdec.backends.base import Backend

if TYPE_CHECKING:
    from langchain_core.language_models.model_profile import ModelProfile


def profile_of(backend: Backend) -> ModelProfile:
    """The profile of a backend's model. A server's has no name: it is not asked for it before the first call."""
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
    if not backend.is_remote:
        profile["name"] = backend.model_name
    if (limit := backend.max_length) is not None:
        profile["max_input_tokens"] = limit
        profile["max_output_tokens"] = limit
    return profile

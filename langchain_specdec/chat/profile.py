"""What LangChain's agents may know of a chat model before they use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.image_prompts import images_for
from langchain_specdec.chat.images import Images
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.errors import InvalidParameterError

if TYPE_CHECKING:
    from langchain_core.language_models.model_profile import ModelProfile


_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": "x"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "probe1234", "function": {"name": "look", "arguments": {"x": "x"}}}],
    },
]
_TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}


def profile_of(backend: Backend, max_new_tokens: int, template: ChatTemplate | None) -> ModelProfile:
    """The profile of a chat model. A server's has no name: it is not asked for it before the first call.

    `max_input_tokens` are those of a prompt, tools included, that leaves room for an answer of `max_new_tokens`, since
    a longer one is refused. The limit of a server is left out where it has not told it before.

    Args:
        backend: Where the model runs.
        max_new_tokens: Most tokens of an answer, as the chat model is set.
        template: The model's; None where it is not known yet.
    """
    images = images_for(backend)
    profile: ModelProfile = {
        "text_inputs": True,
        "text_outputs": True,
        # Nothing is fetched.
        "image_url_inputs": False,
        "image_tool_message": template is not None and not images.why_none and _shows_found(template, images),
        "audio_inputs": False,
        "video_inputs": False,
        "tool_calling": True,
        "tool_choice": True,
        # Agents take it for a response format beside tools; without it they make a tool of the format.
        "structured_output": bool(backend.takes_calls_or_object),
        "temperature": True,
        "open_weights": True,
    }
    if template is not None:
        reasoning = template.reasoning
        profile["reasoning_output"] = reasoning.can_think
        if reasoning.levels:
            profile["reasoning_effort_levels"] = list(reasoning.levels)
        if reasoning.default_level:
            profile["reasoning_effort_default"] = reasoning.default_level
    if not backend.takes_messages:
        # Else a server's model may take some, and does not tell.
        profile["image_inputs"] = not images.why_none
    if not backend.is_remote:
        profile["name"] = backend.model_name
    if (limit := backend.max_length) is not None:
        # An agent may divide by it.
        room = limit - max_new_tokens
        profile["max_input_tokens"] = max(1, min(room, backend.max_prompt_length or room))
        profile["max_output_tokens"] = max(1, min(max_new_tokens, limit - 1))
    return profile


def _shows_found(template: ChatTemplate, images: Images) -> bool:
    """Whether the model is shown an image that a tool found. By trying."""
    result = {
        "role": "tool",
        "name": "look",
        "content": images.add(b"x", "", is_found=True),
        "tool_call_id": "probe1234",
    }
    try:
        return bool(template.prompt([*_CALL, result], [_TOOL], images=images).image_numbers)
    except InvalidParameterError:
        return False

"""`/chat_tokenize`: the tokens of messages, and what the chat template makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from langchain_specdec.server.exchange import Compact
from langchain_specdec.server.held import Held
from langchain_specdec.server.openai.bodies import ChatBody, parsed
from langchain_specdec.server.openai.chat import ready_call
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.tgi.errors import Refusal
from langchain_specdec.server.tgi.tokens import placed


async def chat_tokenize(served: ServedModel, body: Any, _: Held) -> Response:
    """The tokens that messages become, and the text that the chat template makes of them.

    Raises:
        Refusal: The model has no chat template.
        SpecDecError: The messages cannot be rendered.
    """
    if served.chat is None:
        raise Refusal(422, "template_error", "Template error: template not found")
    call = await ready_call(served, parsed(ChatBody, body))
    tokens = await asyncio.to_thread(placed, served.tokenizer, _ids(call.request.prompt))
    return Compact({"tokenize_response": tokens, "templated_text": "".join(token["text"] for token in tokens)})


def _ids(prompt: str | Sequence[int]) -> list[int]:
    assert not isinstance(prompt, str), "a model in this process takes tokens"  # noqa: S101
    return list(prompt)

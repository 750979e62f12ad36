"""`/tokenize` as vLLM has it: the tokens of a text, with or without those that a prompt gets in front."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from langchain_specdec.options import check_unicode
from langchain_specdec.server.exchange import Compact
from langchain_specdec.server.openai.bodies import TokenizeBody, parsed
from langchain_specdec.server.served_model import ServedModel


async def openai_tokenize(served: ServedModel, body: Any) -> Response:
    """The tokens of a text.

    Raises:
        SpecDecError: The body is not one, or names another model.
    """
    asked: TokenizeBody = parsed(TokenizeBody, body)
    served.adapter_of(asked.model)
    check_unicode("prompt", asked.prompt)
    tokens_of = served.backend.prompt_ids if asked.add_special_tokens else served.backend.token_ids
    tokens = await asyncio.to_thread(tokens_of, asked.prompt)
    return Compact({"count": len(tokens), "max_model_len": served.max_length, "tokens": tokens, "token_strs": None})

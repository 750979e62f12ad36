"""`/tokenize`: the tokens of a prompt, with where each stands in the text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from langchain_specdec.engine.detokenizer import Detokenizer
from langchain_specdec.server.exchange import Compact
from langchain_specdec.server.held import Held
from langchain_specdec.server.served_model import ServedModel
from langchain_specdec.server.tgi.errors import Refusal
from langchain_specdec.server.tgi.parameters import deserialize

if TYPE_CHECKING:
    from langchain_specdec.models.private_tokenizer import PrivateTokenizer


async def tokenize(served: ServedModel, body: Any, _: Held) -> Response:
    """The tokens that a prompt becomes.

    Raises:
        Refusal: The prompt is empty.
        BodyError: The body has fields of wrong types.
    """
    inputs = deserialize(body)[0]
    if not inputs:
        raise Refusal(422, "validation", "Input validation error: `inputs` cannot be empty")
    return Compact(await asyncio.to_thread(_tokens_of_text, served, inputs))


def _tokens_of_text(served: ServedModel, text: str) -> list[dict[str, Any]]:
    ids = served.backend.prompt_ids(text)
    fast = served.tokenizer.backend
    if fast is not None:
        encoding = fast.encode(text)
        # A token that begins a prompt may be left out where the text has it already.
        if len(encoding.ids) >= len(ids) and encoding.ids[len(encoding.ids) - len(ids) :] == ids:
            offsets = encoding.offsets[len(encoding.ids) - len(ids) :]
            return [_token(i, text[start:stop], start, stop) for i, (start, stop) in zip(ids, offsets, strict=True)]
    return placed(served.tokenizer, ids)


def placed(tokenizer: PrivateTokenizer, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens whose texts, one after the other, are the whole."""
    texts, place, tokens = Detokenizer(tokenizer), 0, []
    for token in ids:
        name = tokenizer.special_texts.get(token)
        text = texts.add(token) if name is None else texts.flush() + name
        tokens.append(_token(token, text, place, place + len(text)))
        place += len(text)
    return tokens


def _token(token: int, text: str, start: int, stop: int) -> dict[str, Any]:
    return {"id": token, "text": text, "start": start, "stop": stop}

"""Facts from a text as objects of a class. Needs a backend that constrains what it generates.

python docs/examples/extract.py [model id]
"""

# ruff: noqa: T201

from __future__ import annotations

import sys

from pydantic import BaseModel, Field

from langchain_specdec import ChatSpeculative

TEXT = "John Smeaton finished a tower of granite on the Eddystone Rocks in 1759. It burned twenty-four candles."


class Lighthouse(BaseModel):
    """A lighthouse that a text tells about."""

    builder: str = Field(description="Who built it", max_length=40)
    place: str = Field(description="Where it stands", max_length=40)
    year: int = Field(description="When it was finished", ge=1, le=2100)


def main(model: ChatSpeculative) -> Lighthouse:
    """Extract the facts, print and return them."""
    extractor = model.with_structured_output(Lighthouse)
    found: Lighthouse = extractor.invoke(f"Extract the facts from this text:\n\n{TEXT}")
    print(found.model_dump_json(indent=2))
    return found


if __name__ == "__main__":
    model_id = sys.argv[1] if len(sys.argv) > 1 else "embedded"
    with ChatSpeculative.from_model_id(model_id, max_tokens=120, num_slots=1, max_length=1024) as chat:
        main(chat)

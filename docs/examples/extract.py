"""Facts from a text as objects of a class. A TGI server has to be one that does not speculate.

python docs/examples/extract.py [--model-id ID] [--server URL | --tgi URL]
"""

# ruff: noqa: T201

from __future__ import annotations

from example_options import make_parser, open_model
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
    engine = {"num_slots": 1, "max_length": 1024}
    with open_model(ChatSpeculative, make_parser().parse_args(), engine, max_tokens=120) as chat:
        main(chat)

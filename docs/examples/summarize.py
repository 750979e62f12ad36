"""A summary by prompt lookup: the whole document in one prompt, or its parts first and then their summaries.

python docs/examples/summarize.py [stuff | map-reduce] [--document FILE] [--max-new-tokens N]
    [--model-id ID] [--tgi URL]

A summary repeats words of its document, and those are what prompt lookup drafts.
"""

# ruff: noqa: T201

from __future__ import annotations

from pathlib import Path

from example_options import make_parser, open_model
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate

from langchain_specdec import ChatSpeculative

DOCUMENT = """\
The first lighthouse in the open sea stood on the Eddystone Rocks, off the south coast of England. Henry Winstanley lit
it in 1698. A storm swept it away five years later, and Winstanley with it.

John Smeaton finished a tower of granite on the same rocks in 1759. He had shaped it like the trunk of an oak, and
locked its stones into one another. It burned twenty-four candles and stood for more than a hundred years.

Augustin Fresnel put a new kind of lens into the lighthouse of Cordouan in 1823. It gathered the light of a single lamp
into a beam that was seen for twenty miles. Within fifty years most lighthouses had one."""

# As a chat, because the model then ends its answer itself. Many begin a completion with an empty line, of which a stop
# string such as "\n" would leave nothing.
SUMMARY = ChatPromptTemplate.from_messages(
    [("system", "Provide a concise, objective summary of the input text in one sentence."), ("human", "{text}")]
)


class Counts(BaseCallbackHandler):
    """Adds up what speculation was worth in all calls."""

    def __init__(self) -> None:
        self.tokens = self.steps = 0
        self.knows_steps = True

    def on_llm_end(self, response: LLMResult, **kwargs: object) -> None:
        """Called by LangChain at the end of a call."""
        for (generation,) in response.generations:
            message = generation.message
            self.tokens += message.usage_metadata["output_tokens"]
            steps = message.response_metadata["speculation"]["num_steps"]
            # A server does not tell it for each request.
            self.knows_steps &= steps is not None
            self.steps += steps or 0

    def __str__(self) -> str:
        if not self.knows_steps:
            return f"{self.tokens} tokens"
        return f"{self.tokens} tokens in {self.steps} steps: {self.tokens / self.steps:.2f} tokens per step"


def stuff(model: ChatSpeculative, document: str, counts: Counts) -> str:
    """The whole document in one prompt."""
    return (SUMMARY | model | StrOutputParser()).invoke({"text": document}, {"callbacks": [counts]})


def map_reduce(model: ChatSpeculative, document: str, counts: Counts) -> str:
    """A summary of each part, all at once, and then one of the summaries."""
    chain = SUMMARY | model | StrOutputParser()
    parts = chain.batch([{"text": part} for part in document.split("\n\n")], {"callbacks": [counts]})
    for number, part in enumerate(parts, 1):
        print(f"part {number}: {part}")
    return chain.invoke({"text": "\n\n".join(parts)}, {"callbacks": [counts]})


def main() -> None:
    """Summarise, print, and tell what speculation was worth."""
    parser = make_parser()
    parser.add_argument("way", nargs="?", choices=("stuff", "map-reduce"), default="stuff")
    parser.add_argument("--document", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    options = parser.parse_args()
    document = options.document.read_text(encoding="utf-8") if options.document else DOCUMENT
    summarize = stuff if options.way == "stuff" else map_reduce
    counts = Counts()
    engine = {"drafter": "prompt_lookup"}
    with open_model(ChatSpeculative, options, engine, max_new_tokens=options.max_new_tokens) as model:
        print(f"summary: {summarize(model, document, counts)}")
    print(counts)


if __name__ == "__main__":
    main()

"""A summary by prompt lookup: the whole document in one prompt, or its pieces first and then their summaries.

python docs/examples/summarize.py [auto | stuff | map_reduce | refine] [--document FILE] [--max-new-tokens N]
    [--max-input-tokens N] [--model-id ID] [--server URL | --tgi URL]

A summary repeats words of its document, and those are what prompt lookup drafts.
"""

# ruff: noqa: T201

from __future__ import annotations

from pathlib import Path

from example_options import make_parser, open_model
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from langchain_specdec import ChatSpeculative, DocumentSummarizer
from langchain_specdec.documents.summarizer import SummaryProgress

DOCUMENT = """\
The first lighthouse in the open sea stood on the Eddystone Rocks, off the south coast of England. Henry Winstanley lit
it in 1698. A storm swept it away five years later, and Winstanley with it.

John Smeaton finished a tower of granite on the same rocks in 1759. He had shaped it like the trunk of an oak, and
locked its stones into one another. It burned twenty-four candles and stood for more than a hundred years.

Augustin Fresnel put a new kind of lens into the lighthouse of Cordouan in 1823. It gathered the light of a single lamp
into a beam that was seen for twenty miles. Within fifty years most lighthouses had one."""


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


def tell(progress: SummaryProgress) -> None:
    """A line for each piece that is done."""
    if progress.total > 1 and progress.done:
        print(f"{progress.stage} {progress.done} of {progress.total}")


def main() -> None:
    """Summarise, print, and tell what speculation was worth."""
    parser = make_parser()
    parser.add_argument("method", nargs="?", choices=("auto", "stuff", "map_reduce", "refine"), default="auto")
    parser.add_argument("--document", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--max-input-tokens", type=int, help="tokens of a prompt, where the model has room for more")
    options = parser.parse_args()
    document = options.document.read_text(encoding="utf-8") if options.document else DOCUMENT
    counts = Counts()
    engine = {"drafter": "prompt_lookup"}
    with open_model(ChatSpeculative, options, engine, max_new_tokens=options.max_new_tokens) as model:
        summarizer = DocumentSummarizer(
            model, method=options.method, max_input_tokens=options.max_input_tokens, on_progress=tell
        )
        print(f"summary: {summarizer.invoke(document, {'callbacks': [counts]})}")
    print(counts)


if __name__ == "__main__":
    main()

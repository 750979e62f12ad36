"""Questions about a document: the passages that share most words with a question go into the prompt.

python docs/examples/rag.py [--model-id ID] [--server URL | --tgi URL]

Answers repeat words of the passages, which prompt lookup drafts. A real store of embeddings takes the place of
`passages_for` without any other change.
"""

# ruff: noqa: T201

from __future__ import annotations

import re

from example_options import make_parser, open_model
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from langchain_specdec import ChatSpeculative

DOCUMENT = """\
The first lighthouse in the open sea stood on the Eddystone Rocks. Henry Winstanley lit it in 1698.

John Smeaton finished a tower of granite on the same rocks in 1759. It burned twenty-four candles.

Augustin Fresnel put a new kind of lens into the lighthouse of Cordouan in 1823. Its beam was seen for twenty miles.

Grace Darling, the daughter of a keeper, rowed out with her father in 1838 and saved nine people from a wreck."""
QUESTIONS = ("Who built the tower of granite?", "In which year did the new lens come to Cordouan?")

PROMPT = ChatPromptTemplate.from_messages(
    [
        # Passages before the question: the same passages need not be read twice.
        ("system", "Answer from this text, in one short sentence:\n\n{passages}"),
        ("human", "{question}"),
    ]
)


def words(text: str) -> set[str]:
    """The words that tell a text from others."""
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def passages_for(question: str, count: int = 2) -> str:
    """The passages of the document that share most words with the question."""
    passages = DOCUMENT.split("\n\n")
    ranked = sorted(passages, key=lambda passage: -len(words(passage) & words(question)))
    return "\n\n".join(ranked[:count])


def main(model: ChatSpeculative) -> list[str]:
    """Ask all questions at once; print and return the answers."""
    retrieval = {"passages": RunnableLambda(passages_for), "question": RunnablePassthrough()}
    answers = (retrieval | PROMPT | model | StrOutputParser()).batch(list(QUESTIONS))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer}")
    return answers


if __name__ == "__main__":
    engine = {"num_slots": 2, "max_length": 1024}
    with open_model(ChatSpeculative, make_parser().parse_args(), engine, max_tokens=40) as chat:
        main(chat)

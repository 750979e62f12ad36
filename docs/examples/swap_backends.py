"""One chain on a model in this process, on a TGI server, and on whichever of the two is there.

python docs/examples/swap_backends.py [--model-id ID] [--tgi URL]
"""

# ruff: noqa: T201

from __future__ import annotations

from example_options import make_parser
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField

from langchain_specdec import SpeculativeLLM
from langchain_specdec.errors import SpecDecError

PROMPT = PromptTemplate.from_template("Three things to pack for {place}:")


def main(base_url: str, model_id: str) -> None:
    """Ask all three and print what they say."""
    local = SpeculativeLLM(model=model_id, max_new_tokens=32)
    # Nothing is sent to the server before it is used.
    remote = SpeculativeLLM.from_tgi(base_url, max_retries=0, max_new_tokens=32)

    either = local.configurable_alternatives(ConfigurableField(id="backend"), default_key="local", tgi=remote)
    chain = PROMPT | either | StrOutputParser()
    for name in ("local", "tgi"):
        try:
            answer = chain.with_config(configurable={"backend": name}).invoke({"place": "the sea"})
        except SpecDecError as error:
            answer = str(error)
        print(f"{name}: {' '.join(answer.split())}")

    safe = PROMPT | remote.with_fallbacks([local]) | StrOutputParser()
    print(f"tgi, or else local: {' '.join(safe.invoke({'place': 'the sea'}).split())}")
    remote.close()
    local.close()


if __name__ == "__main__":
    options = make_parser().parse_args()
    main(options.tgi or "http://127.0.0.1:8080", options.model_id or options.default_model_id)

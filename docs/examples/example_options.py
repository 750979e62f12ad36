"""The options that all examples share, and the model that they choose: in this process, or on a server.

--model-id ID  the model; with a server only where its own word for it leads to no tokenizer
--server URL   use the vLLM, SGLang, llama.cpp, specdec or other server at this address, such as http://127.0.0.1:8000
--tgi URL      use the TGI server at this address, such as http://127.0.0.1:8080
"""

from __future__ import annotations

import argparse
from typing import Any, TypeVar

from langchain_specdec import ChatSpeculative, SpeculativeLLM

Model = TypeVar("Model", ChatSpeculative, SpeculativeLLM)


def make_parser(model_id: str | None = "embedded") -> argparse.ArgumentParser:
    """A parser with these options; `model_id` is the model that runs where none is named."""
    parser = argparse.ArgumentParser()
    default = f", {model_id} where none is named" if model_id else ""
    parser.add_argument("--model-id", help=f"id or folder of the model{default}")
    servers = parser.add_mutually_exclusive_group()
    servers.add_argument("--server", metavar="URL", help="address of a server to use that speaks OpenAI's protocol")
    servers.add_argument("--tgi", metavar="URL", help="address of a TGI server to use")
    parser.set_defaults(default_model_id=model_id)
    return parser


def open_model(
    kind: type[Model], options: argparse.Namespace, local: dict[str, Any] | None = None, **fields: Any
) -> Model:
    """The model that was chosen; `local` are options of an engine in this process, which a server has its own for."""
    if options.tgi:
        return kind.from_tgi(options.tgi, tokenizer=options.model_id, **fields)
    if options.server:
        return kind.from_server(options.server, tokenizer=options.model_id, **fields)
    return kind(model=options.model_id or options.default_model_id, **(local or {}), **fields)

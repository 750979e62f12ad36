"""Starts a TGI server with speculative decoding and talks to it; the server ends with the program.

python docs/examples/launch_tgi.py --model-id ID [--speculate N], or --tgi URL to talk to a server that runs

Needs `text-generation-launcher` or Docker, see docs/tgi-launcher.md. An empty line ends the talk.
"""

# ruff: noqa: T201

from __future__ import annotations

from typing import Any

from example_options import make_parser, open_model

from langchain_specdec import SpeculativeLLM


def main() -> None:
    """Start, talk, end."""
    parser = make_parser(None)
    parser.add_argument("--speculate", type=int, default=4)
    options = parser.parse_args()
    fields: dict[str, Any] = {"max_new_tokens": 200, "stop": ["\nUser:"]}
    if options.tgi:
        llm = open_model(SpeculativeLLM, options, **fields)
    elif options.model_id:
        print(f"Starting {options.model_id} …")
        llm = SpeculativeLLM.launch_tgi(
            options.model_id,
            speculate=options.speculate,
            on_progress=lambda progress: print(f"{progress.seconds:4.0f} s  {progress.stage.value}"),
            **fields,
        )
    else:
        parser.error("give the model to start a server with as --model-id, or the address of a server as --tgi")
    with llm:
        talk = "A talk between a user and a helpful assistant.\n"
        while question := input("User: ").strip():
            talk += f"\nUser: {question}\nAssistant:"
            answer = ""
            for piece in llm.stream(talk):
                print(piece, end="", flush=True)
                answer += piece
            print()
            talk += answer


if __name__ == "__main__":
    main()

"""Starts a server with speculative decoding and talks to it; the server ends with the program.

python docs/examples/launch_server.py [--engine ENGINE] [--model-id ID] [--speculate N]

ENGINE is specdec, which comes along, vllm, sglang, llama-cpp or tgi: see docs/engines.md. An empty line ends the talk.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse

from langchain_specdec import SpeculativeLLM


def main() -> None:
    """Start, talk, end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="specdec")
    parser.add_argument("--model-id", default="embedded", help="id or folder; a GGUF file for llama-cpp")
    parser.add_argument("--speculate", type=int, default=4)
    options = parser.parse_args()
    print(f"Starting {options.model_id} …")
    with SpeculativeLLM.launch_server(
        options.model_id,
        engine=options.engine,
        speculate=options.speculate,
        on_progress=lambda progress: print(f"{progress.seconds:4.0f} s  {progress.stage.value}"),
        max_new_tokens=200,
        stop=["\nUser:"],
    ) as llm:
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

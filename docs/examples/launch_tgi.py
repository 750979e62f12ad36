"""Starts a TGI server with speculative decoding and talks to it; the server ends with the program.

python docs/examples/launch_tgi.py MODEL_ID [--speculate N]

Needs `text-generation-launcher` or Docker, see docs/tgi-launcher.md. An empty line ends the talk.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse

from langchain_specdec import SpeculativeLLM


def main() -> None:
    """Start, talk, end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model_id")
    parser.add_argument("--speculate", type=int, default=4)
    options = parser.parse_args()
    print(f"Starting {options.model_id} …")
    with SpeculativeLLM.launch_tgi(
        options.model_id,
        speculate=options.speculate,
        max_new_tokens=200,
        stop=["\nUser:"],
        on_progress=lambda progress: print(f"{progress.seconds:4.0f} s  {progress.stage.value}"),
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

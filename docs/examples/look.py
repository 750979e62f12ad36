"""A question about a picture, such as a photo or a scanned page. The model has to be one that reads images.

python docs/examples/look.py PICTURE [--question QUESTION] [--model-id ID] [--server URL]
"""

# ruff: noqa: T201

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path

from example_options import make_parser, open_model
from langchain_core.messages import HumanMessage

from langchain_specdec import ChatSpeculative


def main(model: ChatSpeculative, picture: Path, question: str) -> str:
    """Ask about a picture; print and return the answer."""
    data = base64.b64encode(picture.read_bytes()).decode()
    block = {"type": "image", "base64": data, "mime_type": mimetypes.guess_type(picture)[0] or "image/png"}
    answer: str = model.invoke([HumanMessage([block, {"type": "text", "text": question}])]).text
    print(answer)
    return answer


if __name__ == "__main__":
    parser = make_parser("Qwen/Qwen2.5-VL-3B-Instruct")
    parser.add_argument("picture", type=Path, help="a file: PNG, JPEG, WebP, ...")
    parser.add_argument("--question", default="What is in this picture?")
    options = parser.parse_args()
    if not options.picture.is_file():
        parser.error(f"there is no file {str(options.picture)!r}")
    with open_model(ChatSpeculative, options, {"num_slots": 1, "max_length": 4096}, max_tokens=200) as chat:
        main(chat, options.picture, options.question)

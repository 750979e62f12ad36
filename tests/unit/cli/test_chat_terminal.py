"""`specdec chat` in a real terminal, with a real engine: paste, Ctrl-C, another width, commands, and how it leaves."""

from __future__ import annotations

import re
import sys
import termios
from pathlib import Path

import pytest
import torch

from tests.support.chat_templates import CHATML, chat_tokenizer
from tests.support.terminal import Program
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.process

START = (sys.executable, "-c", "from langchain_specdec.cli import main; main()", "chat")
# Long enough to be stopped, and the same text each time: one that begins with a letter.
OPTIONS = ("--max-new-tokens", "30000", "--ignore-eos", "--temperature", "1", "--seed", "1")


@pytest.fixture
def chat_folder(tmp_path: Path) -> str:
    path = tmp_path / "chat"
    tokenizer = chat_tokenizer(CHATML)
    model = tiny_model(2, dtype=torch.float32, vocab_size=len(tokenizer), max_position_embeddings=32768)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_a_talk_in_a_terminal(chat_folder: str, tmp_path: Path) -> None:
    program = Program(*START, "-m", chat_folder, *OPTIONS, HF_HUB_OFFLINE="1")
    modes = program.modes()
    try:
        program.wait_for(r"ends\s+the\s+talk\.\n>$")
        # Pasted lines are one message, which waits for Enter.
        program.type("\x1b[200~one line\nanother line\x1b[201~")
        program.wait_for(r"> one line\n  another line$")
        program.type("\r")
        # Ctrl-C stops an answer, and another one is to be had.
        for begin in ("another line", "> /retry"):
            program.wait_for(rf"{begin}\n(?:.*\n)*.*\w")
            # What is typed meanwhile does not get into the answer.
            assert not program.modes()[3] & termios.ECHO
            program.type("stray words")
            program.type("\x03")
            program.wait_for(rf"{begin}(.|\n)*\nstopped\n\n>$")
            program.type("/retry\r" if begin == "another line" else "")
        # Ctrl-C clears a line, and says how to leave an empty one.
        program.type("half")
        program.wait_for("> half$")
        program.type("\x03")
        program.wait_for(r"\n>$")
        program.type("\x03")
        program.wait_for(r"Ctrl-D or /exit ends the talk\.\n>$")
        # Tab completes, a wrong command is told, and lines have the width that the window got meanwhile.
        program.resize(40, 20)
        program.type("/rest\r")
        text = program.wait_for(r"Did\s+you\s+mean\s+/reset\?[^>]*\n>$")
        told = text[text.rindex("error:") :].splitlines()
        assert len(told) > 2
        assert max(map(len, told)) < 40
        saved = tmp_path / "talk.md"
        program.type("/sa\t")
        program.wait_for("> /save$")
        program.type(f" {saved}\r")
        program.wait_for(r"Saved in[^>]*\n>$")
        assert "## You\n\none line\nanother line\n\n## " in saved.read_text("utf-8")
        program.type("\x04")
        assert program.wait() == 0
        assert program.modes() == modes, "echo and the like are as before"
    finally:
        program.close()
    assert "Traceback" not in program.screen.text
    assert "stray" not in program.screen.text
    own = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", program.screen.raw)
    assert "\x1b" not in own, "what a random model writes is no command to the terminal"

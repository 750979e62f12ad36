"""Prompts that are too long: the error has the numbers, and names what the user set and options that exist there."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from typer.testing import CliRunner

import langchain_specdec
from langchain_specdec import ChatSpeculative, LocalBackend, SamplingParams, SpeculativeLLM, TGIBackend
from langchain_specdec.backends.local_options import OPTIONS
from langchain_specdec.cli.app import app
from langchain_specdec.cli.options import FLAGS
from langchain_specdec.cli.reporting import flag_of
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.errors import PromptTooLongError
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tests.support.backends import make_backend, make_chat_backend
from tests.support.chat_templates import chat_tokenizer
from tests.support.langchain_versions import needs_profiles
from tests.support.tiny_models import byte_tokenizer, tiny_model
from tgi_launcher import TGIConfig

pytestmark = pytest.mark.transformers


def error_of(backend, prompt: str, max_new_tokens: int) -> str:
    with pytest.raises(PromptTooLongError) as caught:
        backend.complete([CompletionRequest(prompt, SamplingParams(max_new_tokens=max_new_tokens))])
    return str(caught.value)


def test_the_advice_of_a_model_in_this_process_works():
    backend = make_backend(max_length=64)
    message = error_of(backend, "x" * 60, 5)
    backend.close()
    assert message == (
        "The prompt has 60 tokens and max_new_tokens is 5, together 65, but max_length is 64. Lower max_new_tokens to "
        "4 or less, or load the model with max_length=65 or more (up to 512), or shorten the prompt. "
        "DocumentSummarizer summarises a long text in pieces."
    )
    assert set(re.findall(r"max_\w+", message)) == {"max_new_tokens", "max_length"}
    assert "max_length" in OPTIONS
    assert "max_new_tokens" in {field.name for field in fields(SamplingParams)}
    assert "DocumentSummarizer" in langchain_specdec.__all__
    for options, limit in (({"max_length": 64}, 4), ({"max_length": 65}, 5)):
        backend = make_backend(**options)
        (done,) = backend.complete([CompletionRequest("x" * 60, SamplingParams(max_new_tokens=limit, ignore_eos=True))])
        assert done.finish.completion_tokens == limit
        backend.close()


def test_what_does_not_help_is_not_advised():
    backend = LocalBackend(tiny_model(max_position_embeddings=64), byte_tokenizer())
    assert "load the model" not in error_of(backend, "x" * 60, 5)
    message = error_of(backend, "x" * 80, 5)
    assert ". Shorten the prompt. " in message
    huge = error_of(backend, "x" * 10_000, 5)
    assert re.search(r"10000 characters, and its first \d+ alone have more tokens than max_length, which is 64", huge)
    assert "DocumentSummarizer" in huge
    backend.close()


def test_chats_and_completions_say_the_same():
    backend = make_chat_backend(max_length=64)
    for model in (ChatSpeculative(backend=backend), SpeculativeLLM(backend=backend)):
        with pytest.raises(
            PromptTooLongError, match=r"max_new_tokens is 256, .* max_length is 64\. Load the model with"
        ):
            model.invoke("Some text that goes on for more than the sixty-four tokens of a byte that there are.")
        with pytest.raises(PromptTooLongError, match="max_new_tokens is 9, "):
            model.invoke("Some text that goes on for more than the sixty-four tokens of a byte.", max_tokens=9)
    backend.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    tiny_model().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def test_the_command_line_names_its_flags(small):
    result = CliRunner().invoke(app, ["generate", "x" * 300, "--model", small, "--max-length", "320"])
    assert result.exit_code == 2
    assert result.stderr == (
        "error: The prompt has 300 tokens and --max-new-tokens is 256, together 556, but --max-length is 320. Lower "
        "--max-new-tokens to 20 or less, or shorten the prompt. specdec summarize summarises a long text in pieces.\n"
    )
    flags = {flag_of(name) for name in FLAGS}
    assert set(re.findall(r"--[\w-]+", result.stderr)) <= flags
    result = CliRunner().invoke(
        app, ["generate", "x" * 300, "--model", small, "--max-length", "320", "--max-new-tokens", "30"]
    )
    assert "load the model with --max-length 330 or more (up to 512), or" in result.stderr


@pytest.mark.server
def test_a_server_has_other_options():
    with ServerThread(FakeModel(), Limits(max_input_tokens=1500, max_total_tokens=2048)) as server:
        backend = TGIBackend(server.url)
        messages = [
            error_of(backend, "x" * 1200, 1500),
            error_of(backend, "x" * 1200, 1000),
            error_of(backend, "x" * 1600, 9),
        ]
        backend.close()
    assert messages[0] == (
        "The prompt has 1200 tokens and max_new_tokens is 1500, together 2700, but max_total_tokens of the TGI server "
        "is 2048. Lower max_new_tokens to 848 or less, or start the server with --max-total-tokens 2700 or more "
        "(launch_tgi: max_total_tokens=2700), or shorten the prompt. DocumentSummarizer summarises a long text in "
        "pieces."
    )
    assert "2048. Given: 1200" in messages[1]
    assert "1500 tokens. Given: 1600" in messages[2]
    for message in messages:
        assert "--max-total-tokens" in message
        assert "max_length" not in message
        assert "DocumentSummarizer" in message
    assert "max_total_tokens" in TGIConfig.model_fields


@needs_profiles
@pytest.mark.server
def test_the_limit_of_prompts_alone_is_known_too():
    """Agents and summaries keep to it: the server would refuse a longer prompt, however short the answer."""
    with ServerThread(FakeModel(), Limits(max_input_tokens=1500, max_total_tokens=2048)) as server:
        backend = TGIBackend(server.url)
        limits = [(backend.max_prompt_length, backend.max_length)]
        backend.name_within(30.0)
        limits.append((backend.max_prompt_length, backend.max_length))
        assert limits == [(None, None), (1500, 2048)]
        model = ChatSpeculative(backend=backend, tokenizer=chat_tokenizer(), max_new_tokens=100)
        assert model.profile is not None
        assert model.profile["max_input_tokens"] == 1500
        backend.close()

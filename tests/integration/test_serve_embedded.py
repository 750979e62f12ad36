"""`specdec serve` with the embedded model: the local text over both interfaces, to clients that know nothing of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from typing import Any

import httpx
import pytest

from langchain_specdec import ChatSpeculative, LocalBackend, SpeculativeLLM
from langchain_specdec.errors import SpeculatingServerWarning
from langchain_specdec.models.embedded import is_available
from langchain_specdec.server.run import Server
from langchain_specdec.server.settings import ServerSettings
from tests.support.backends import lasting
from tests.support.source_code import ROOT

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.server,
    pytest.mark.skipif(not is_available(), reason="needs the embedded model"),
]

KEY = "sk-test"
HEADERS = {"authorization": f"Bearer {KEY}"}
NUM_TOKENS = 24
PROMPTS = [
    *("The capital of France is", "1, 2, 3, 4, 5,", "def add(a, b):", "Once upon a time", "Roses are red,"),
    *("To be or not to be", "abc abc abc abc", "The lamp was lit in 1698.", "Dear Sir or Madam,", "Q: 2+2?\nA:"),
    *("Grüße aus dem", "import os\nimport", "The quick brown fox", "A list of fruits:\n-", "x = [1, 2, 3]\nfor"),
    *("He said: \"", "Water boils at", "SELECT * FROM", "In 1969, the first", "<html>\n<head>"),
]  # fmt: skip
STOPS = [None, ["\n"], ["the", "The"], [". "]]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def backend():
    with lasting(LocalBackend("embedded", num_slots=4, max_length=1024)) as backend:
        yield backend


@pytest.fixture(scope="module")
def url(backend):
    with Server(ServerSettings(port=0, api_key=KEY)).start(backend) as server:
        yield server.url


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, headers=HEADERS, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def local(backend):
    """What the model writes here: text, reason and number of tokens, by prompt and stop strings."""
    found = {}
    for index, prompt in enumerate(PROMPTS):
        stop = STOPS[index % len(STOPS)]
        llm = SpeculativeLLM(backend=backend, max_new_tokens=NUM_TOKENS, stop=stop)
        generation = llm.generate([prompt]).generations[0][0]
        info = generation.generation_info or {}
        found[prompt] = stop, generation.text, info["finish_reason"], info["completion_tokens"], info["prompt_tokens"]
    assert len(found) == 20
    assert {"stop_sequence", "length"} <= {reason for _, _, reason, *_ in found.values()}
    return found


def test_completions_have_the_local_text(http, local):
    for prompt, (stop, text, reason, count, num_prompt) in local.items():
        body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "stop": stop}
        answer = http.post("/v1/completions", json=body).json()
        (choice,) = answer["choices"]
        assert choice["text"] == text, prompt
        assert (answer["specdec"]["finish_reason"], answer["usage"]["completion_tokens"]) == (reason, count), prompt
        assert answer["usage"]["prompt_tokens"] == num_prompt
        streamed = http.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")[:-2]
        events = [json.loads(event.removeprefix("data: ")) for event in streamed]
        assert "".join(event["choices"][0]["text"] for event in events) == text


def test_tgis_interface_has_the_local_text(http, local):
    for prompt, (stop, text, reason, count, num_prompt) in local.items():
        parameters = {"max_new_tokens": NUM_TOKENS, "stop": stop, "details": True}
        answer = http.post("/generate", json={"inputs": prompt, "parameters": parameters}).json()
        # A stop string stays in TGI's text.
        ends = [f"{text}{end}" for end in stop or ()] if reason == "stop_sequence" else [text]
        assert answer["generated_text"] in ends, prompt
        assert (answer["details"]["finish_reason"], answer["details"]["generated_tokens"]) == (reason, count), prompt
        stream = http.post("/generate_stream", json={"inputs": prompt, "parameters": parameters}).text
        events = [json.loads(frame.removeprefix("data:")) for frame in stream.split("\n\n")[:-1]]
        tokens = [event["token"] for event in events]
        # The last digits of log probabilities depend on how many tokens a step had.
        for told in (tokens, answer["details"]["tokens"]):
            assert all(token.pop("logprob") <= 0 for token in told)
        assert tokens == answer["details"]["tokens"]
        assert "".join(token["text"] for token in tokens if not token["special"]) == answer["generated_text"]
        assert events[-1]["generated_text"] == answer["generated_text"]
        assert events[-1]["details"]["input_length"] == num_prompt


def test_chats_have_the_local_text(http, backend):
    model = ChatSpeculative(backend=backend, max_new_tokens=NUM_TOKENS)
    for prompt in PROMPTS[:5]:
        messages = [{"role": "user", "content": prompt}]
        here: Any = model.invoke(messages)
        body = {"messages": messages, "max_tokens": NUM_TOKENS, "temperature": 0}
        answer = http.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == here.content
        assert answer["usage"]["prompt_tokens"] == here.usage_metadata["input_tokens"]
        assert answer["usage"]["completion_tokens"] == here.usage_metadata["output_tokens"]
        assert answer["specdec"]["finish_reason"] == here.response_metadata["finish_reason"]


def test_a_seed_gives_the_local_sample(http, backend):
    llm = SpeculativeLLM(backend=backend, max_new_tokens=NUM_TOKENS, temperature=0.8, seed=11)
    here = llm.invoke("Once upon a time")
    body = {"prompt": "Once upon a time", "max_tokens": NUM_TOKENS, "temperature": 0.8, "seed": 11}
    assert http.post("/v1/completions", json=body).json()["choices"][0]["text"] == here
    parameters = {"max_new_tokens": NUM_TOKENS, "temperature": 0.8, "seed": 11}
    body = {"inputs": "Once upon a time", "parameters": parameters}
    assert http.post("/generate", json=body).json()["generated_text"] == here


# OpenAI's client asks the system for its name.
@pytest.mark.process
class TestOpenAIClient:
    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, url):
        openai = pytest.importorskip("openai")
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            yield client

    def test_chats(self, client):
        how = {"model": "embedded", "messages": QUESTION, "temperature": 0, "max_tokens": 20}
        whole = client.chat.completions.create(**how)
        assert "Paris" in whole.choices[0].message.content
        assert whole.model_extra["specdec"]["speculation"]["num_steps"] > 0
        chunks = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def test_tools(self, client):
        how = {"model": "embedded", "messages": QUESTION, "temperature": 0, "max_tokens": 60, "tools": [TOOL]}
        forced = client.chat.completions.create(**how, tool_choice="required", parallel_tool_calls=False)
        (call,) = forced.choices[0].message.tool_calls
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments).keys() == {"city"}
        assert forced.choices[0].finish_reason == "tool_calls"
        named = {"type": "function", "function": {"name": "get_weather"}}
        with client.chat.completions.stream(**how, tool_choice=named) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments

    def test_forms(self, client):
        from pydantic import BaseModel

        class Person(BaseModel):
            name: str
            age: int

        messages = [{"role": "user", "content": "Mary Ann is 34 years old."}]
        how = {"model": "embedded", "messages": messages, "temperature": 0, "max_tokens": 40}
        parsed = client.chat.completions.parse(**how, response_format=Person).choices[0].message.parsed
        assert parsed == Person(name="Mary Ann", age=34)

    def test_errors(self, client):
        openai = pytest.importorskip("openai")
        with pytest.raises(openai.NotFoundError, match="gpt-5"):
            client.chat.completions.create(model="gpt-5", messages=QUESTION)
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            client.chat.completions.create(model="embedded", messages=QUESTION, max_tokens=5000)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-other").models.list()
        assert [model.id for model in client.models.list()] == ["embedded"]


class TestHuggingFaceClient:
    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, url):
        from huggingface_hub import InferenceClient

        return InferenceClient(url, token=KEY)

    def test_texts(self, client, backend):
        here = SpeculativeLLM(backend=backend, max_new_tokens=8).invoke(PROMPTS[0])
        how = {"max_new_tokens": 8, "return_full_text": False}
        assert client.text_generation(PROMPTS[0], **how) == here
        assert client.text_generation(PROMPTS[0], **how, details=True).details.generated_tokens == 8
        assert "".join(client.text_generation(PROMPTS[0], **how, stream=True)) == here

    def test_chats(self, client):
        answer = client.chat_completion(QUESTION, max_tokens=20, temperature=0)
        text = answer.choices[0].message.content
        assert "Paris" in text
        chunks = client.chat_completion(QUESTION, max_tokens=20, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        called = client.chat_completion(QUESTION, max_tokens=60, temperature=0, tools=[TOOL], tool_choice="required")
        assert called.choices[0].message.tool_calls[0].function.name == "get_weather"
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        messages = [{"role": "user", "content": "Mary Ann is 34."}]
        formed = client.chat_completion(messages, max_tokens=40, temperature=0, response_format=form)
        assert json.loads(formed.choices[0].message.content) == {"name": "Mary Ann", "age": 34}

    def test_errors(self, client):
        from huggingface_hub.errors import ValidationError

        with pytest.raises(ValidationError, match="top_p"):
            client.text_generation("x", top_p=1.5)


def test_the_client_text_generation(url, backend):
    pytest.importorskip("text_generation")
    pytest.importorskip("requests")
    from text_generation import Client  # type: ignore[import-untyped]
    from text_generation.errors import ValidationError  # type: ignore[import-untyped]

    client = Client(url, headers=HEADERS, timeout=60)
    here = SpeculativeLLM(backend=backend, max_new_tokens=8).invoke(PROMPTS[0])
    assert client.generate(PROMPTS[0], max_new_tokens=8).generated_text == here
    assert list(client.generate_stream(PROMPTS[0], max_new_tokens=8))[-1].generated_text == here
    with pytest.raises(ValidationError, match="stop"):
        client.generate("x", stop_sequences=["a", "b", "c", "d", "e"])


@pytest.mark.process
class TestLangChain:
    @pytest.fixture(scope="class")
    @classmethod
    def chat(cls, url):
        langchain_openai = pytest.importorskip("langchain_openai")
        how = {"base_url": f"{url}/v1", "api_key": KEY, "temperature": 0, "max_tokens": 60}
        return langchain_openai.ChatOpenAI(model="embedded", **how)

    def test_chats(self, chat):
        whole = chat.invoke(QUESTION)
        assert "Paris" in whole.content
        assert whole.usage_metadata["output_tokens"] > 0
        assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == whole.content

    def test_tools_and_forms(self, chat):
        from pydantic import BaseModel

        class Person(BaseModel):
            name: str
            age: int

        forced = chat.bind_tools([TOOL], tool_choice="any")
        (call,) = forced.invoke(QUESTION).tool_calls
        assert call["name"] == "get_weather"
        merged: Any = None
        for chunk in forced.stream(QUESTION):
            merged = chunk if merged is None else merged + chunk
        assert merged.tool_calls[0]["args"] == call["args"]
        for method in ("json_schema", "function_calling"):
            structured = chat.with_structured_output(Person, method=method)
            assert structured.invoke("Mary Ann is 34 years old.") == Person(name="Mary Ann", age=34)

    def test_init_chat_model(self, url, chat):
        chat_models = pytest.importorskip("langchain.chat_models")
        how = {"base_url": f"{url}/v1", "api_key": KEY, "temperature": 0, "max_tokens": 60}
        model = chat_models.init_chat_model("openai:embedded", **how)
        assert model.invoke(QUESTION).content == chat.invoke(QUESTION).content

    def test_our_own_client_of_tgi(self, url, backend, local):
        llm = SpeculativeLLM.from_tgi(url, api_key=KEY, tokenizer=backend.tokenizer, max_new_tokens=NUM_TOKENS)
        with llm:
            for prompt, (stop, text, reason, count, _) in list(local.items())[:8]:
                generation = llm.generate([prompt], stop=stop).generations[0][0]
                info = generation.generation_info or {}
                assert (generation.text, info["finish_reason"], info["completion_tokens"]) == (text, reason, count)
                assert "".join(llm.stream(prompt, stop=stop)) == text

    def test_our_own_chat_over_tgi(self, url, backend):
        here = ChatSpeculative(backend=backend, max_new_tokens=60).bind_tools([TOOL], tool_choice="any")
        # It knows the tokenizer by the name that the server gives.
        there = ChatSpeculative.from_tgi(url, api_key=KEY, max_new_tokens=60)
        with there, warnings.catch_warnings():
            # This server holds its grammars while it speculates.
            warnings.simplefilter("error", SpeculatingServerWarning)
            answer = there.bind_tools([TOOL], tool_choice="any").invoke(QUESTION)
        calls = here.invoke(QUESTION).tool_calls
        assert [call["args"] for call in answer.tool_calls] == [call["args"] for call in calls]


@pytest.mark.process
@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end():
    command = [sys.executable, "-m", "langchain_specdec", "serve", "embedded", "--port", "0", "--max-length", "512"]
    environment = {**os.environ, "SPECDEC_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().split()
        assert ready[:3] == ["Serving", "embedded", "on"]
        url = ready[3]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        body = {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=HEADERS, timeout=120) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            texts = [line for line in lines if line]
        assert texts[-1] == "data: [DONE]"
        assert json.loads(texts[-2].removeprefix("data: "))["specdec"]["finish_reason"] == "length"
        out, err = process.communicate(timeout=60)
    assert KEY not in out + err
    assert process.returncode == 0, err

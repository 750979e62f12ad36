"""OpenAI's interface: what is asked for, what is refused, and the shape of each answer."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any

import pytest

from langchain_specdec.server.exchange import compact
from tests.support.served import CannedBackend, ServedScript, serving
from tests.support.thinking import QWEN3, QWEN_THINKING

pytestmark = pytest.mark.server

DEEP = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Bergen"}}\n</tool_call>'


@contextmanager
def scripted(*answers, **options):
    backend = ServedScript(*answers, **options)
    with serving(backend) as client:
        yield backend, client


def ask(client, messages=HELLO, **body):
    return client.post("/v1/chat/completions", json={"messages": messages, **body})


def events_of(response):
    assert response.headers["content-type"] == "text/event-stream"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def joined(events):
    """The message that the deltas of a stream make."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for event in events:
        for choice in event["choices"]:
            message["content"] += choice["delta"].get("content") or ""
            message["reasoning_content"] += choice["delta"].get("reasoning_content") or ""
            message["tool_calls"] += choice["delta"].get("tool_calls") or []
    return message


class TestChats:
    def test_a_whole_answer(self):
        with scripted("Good day.") as (backend, client):
            answer = ask(client, max_tokens=40).json()
        assert (answer["object"], answer["model"]) == ("chat.completion", "scripted")
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": "Good day.", "refusal": None}
        assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
        prompt = len(backend.requests[0].prompt)
        written = len(backend.tokenizer("Good day.", add_special_tokens=False).input_ids)
        assert answer["usage"] == {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        assert answer["specdec"]["finish_reason"] == "eos_token"
        assert answer["specdec"]["seed"] == 7
        assert answer["metrics"]["speculative_decoding"]["num_spec_steps"] == 0

    def test_a_stream(self):
        with scripted("Good day.") as (_, client):
            events = events_of(ask(client, stream=True))
            counted = events_of(ask(client, stream=True, stream_options={"include_usage": True}))
        assert {event["object"] for event in events} == {"chat.completion.chunk"}
        assert len({event["id"] for event in events}) == 1
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert joined(events)["content"] == "Good day."
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        assert all("usage" not in event for event in events)
        assert events[-1]["specdec"]["finish_reason"] == "eos_token"
        assert all(event["usage"] is None for event in counted[:-1])
        assert counted[-1]["choices"] == []
        assert counted[-1]["usage"]["completion_tokens"] > 0
        assert "specdec" in counted[-1]
        assert "specdec" not in counted[-2]

    def test_calls(self):
        with scripted(f"I look.\n{CALL}\n{CALL}") as (_, client):
            whole = ask(client, tools=[TOOL]).json()["choices"][0]
            events = events_of(ask(client, tools=[TOOL], stream=True))
        assert whole["finish_reason"] == "tool_calls"
        assert whole["message"]["content"].strip() == "I look."
        calls = whole["message"]["tool_calls"]
        assert [call["function"] for call in calls] == [{"name": "weather", "arguments": '{"place": "Bergen"}'}] * 2
        assert len({call["id"] for call in calls}) == 2
        assert {call["type"] for call in calls} == {"function"}
        streamed = joined(events)["tool_calls"]
        assert [call["index"] for call in streamed] == [0, 1]
        assert [call["function"] for call in streamed] == [call["function"] for call in calls]
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_one_call_alone_has_no_content(self):
        with scripted(CALL) as (_, client):
            message = ask(client, tools=[TOOL], parallel_tool_calls=False).json()["choices"][0]["message"]
        assert message["content"] is None

    def test_a_call_that_cannot_be_read_is_text(self):
        broken = '<tool_call>\n{"name": "weather", "arguments": {"place": \n</tool_call>'
        with scripted(broken) as (_, client):
            whole = ask(client, tools=[TOOL]).json()["choices"][0]
            events = events_of(ask(client, tools=[TOOL], stream=True))
        assert whole["finish_reason"] == "stop"
        assert "tool_calls" not in whole["message"]
        assert '{"name": "weather"' in whole["message"]["content"]
        assert joined(events) == {"content": whole["message"]["content"], "reasoning_content": "", "tool_calls": []}

    def test_calls_and_results_of_earlier_turns(self):
        call = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Bergen"}'}}
        messages = [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a1", "content": "rain"},
        ]
        with scripted("Rain.") as (backend, client):
            assert ask(client, messages, tools=[TOOL]).status_code == 200
        assert all(text in backend.prompt for text in ("Be short.", "Weather?", '"place": "Bergen"', "rain"))

    def test_thoughts(self):
        with scripted("Hm, hm.\n</think>\n\nYes.", template=QWEN_THINKING) as (_, client):
            whole = ask(client).json()
            events = events_of(ask(client, stream=True, stream_options={"include_usage": True}))
        message = whole["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm, hm.", "Yes.")
        assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
        assert joined(events) == {"content": "Yes.", "reasoning_content": "Hm, hm.", "tool_calls": []}
        assert events[-1]["usage"]["completion_tokens_details"] == whole["usage"]["completion_tokens_details"]

    def test_a_switch_of_thinking(self):
        with scripted("Yes.", template=QWEN3) as (backend, client):
            ask(client, chat_template_kwargs={"enable_thinking": False})
            ask(client, reasoning_effort="none")
            ask(client)
            refused = ask(client, chat_template_kwargs={"enable_thinking": False}, reasoning_effort="none")
        first, second, third = backend.prompts
        assert first == second
        assert first != third
        assert refused.status_code == 400

    def test_log_probabilities(self):
        with serving(CannedBackend()) as client:
            body = {"prompt": "x", "max_tokens": 5, "logprobs": 1}
            found = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
            streamed = events_of(client.post("/v1/completions", json={**body, "stream": True}))
        assert found["token_logprobs"] == [-0.5] * 5
        assert found["text_offset"] == [0, 1, 2, 2, 3]
        assert found["tokens"][:2] == ["G", "r"]
        assert found["top_logprobs"][0] == {"G": -0.5}
        parts = [event["choices"][0]["logprobs"] for event in streamed if event["choices"]]
        assert {key: [each for part in parts if part for each in part[key]] for key in found} == found

    def test_log_probabilities_can_name_tokens_by_their_ids(self):
        with serving(CannedBackend()) as client:
            body = {"prompt": "x", "max_tokens": 4, "logprobs": 1, "return_tokens_as_token_ids": True}
            found = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
        assert found["tokens"] == [f"token_id:{byte}" for byte in "Grü".encode()]
        assert found["top_logprobs"][3] == {"token_id:188": -0.5}
        with scripted("ü.") as (backend, client):
            answer = ask(client, logprobs=True, return_tokens_as_token_ids=True).json()
        ids = backend.tokenizer("ü.", add_special_tokens=False).input_ids
        assert [each["token"] for each in answer["choices"][0]["logprobs"]["content"]] == [f"token_id:{i}" for i in ids]

    def test_log_probabilities_of_chats_have_bytes(self):
        with scripted("ü.") as (_, client):
            found = ask(client, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
            events = events_of(ask(client, logprobs=True, stream=True))
        assert bytes(byte for token in found for byte in token["bytes"]) == "ü.".encode()
        streamed = [t for event in events for c in event["choices"] for t in (c["logprobs"] or {}).get("content", ())]
        assert [token["bytes"] for token in streamed] == [token["bytes"] for token in found]

    def test_without_a_limit_there_is_all_the_room(self):
        with scripted("Yes.") as (backend, client):
            ask(client)
            ask(client, max_completion_tokens=5)
        first, second = backend.requests
        assert first.params.max_new_tokens == backend.max_length - len(first.prompt)
        assert second.params.max_new_tokens == 5
        assert first.params.temperature == 1.0

    def test_parameters_arrive(self):
        given = {
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
            "presence_penalty": 1.0,
            "frequency_penalty": -1.0,
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
        }
        with scripted("Yes.") as (backend, client):
            answer = ask(client, **given, stop="x", logit_bias={"5": -100}, user="me", metadata={"a": "b"})
            assert answer.status_code == 200, answer.text
        params = backend.requests[0].params
        assert {name: getattr(params, name) for name in given} == given
        assert (params.stop, params.logit_bias) == (("x",), {5: -100.0})

    def test_forms(self):
        schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
        forms = [
            {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
            {"type": "json_object", "value": schema},
            {"type": "json_schema", "value": {"name": "x", "schema": schema}},
        ]
        with scripted('{"age": 1}') as (backend, client):
            for form in forms:
                assert ask(client, response_format=form).json()["choices"][0]["message"]["content"] == '{"age": 1}'
            ask(client, response_format={"type": "json_object"})
            ask(client, response_format={"type": "text"})
            ask(client, response_format={"type": "regex", "value": "[0-9]+"})
        *same, any_object, free, regex = [request.params.grammar for request in backend.requests]
        assert len({grammar.identity for grammar in same}) == 1
        assert same[0].schema["required"] == ["age"]
        assert any_object.schema["type"] == "object"
        assert free is None
        assert regex.regex == "[0-9]+"


class TestRefusals:
    @pytest.fixture(scope="class")
    @classmethod
    def client(cls):
        with scripted("Yes.") as (_, client):
            yield client

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"max_tokns": 5}, "max_tokns"),
            ({"n": 2}, "n"),
            ({"functions": []}, "functions"),
            ({"audio": {}}, "audio"),
            ({"verbosity": "low"}, "verbosity"),
            ({"store": True}, "store"),
            ({"modalities": ["audio"]}, "modalities.0"),
            ({"temperature": "hot"}, "temperature"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"logit_bias": {"x": 1}}, "logit_bias"),
            ({"messages": "Hello"}, "messages"),
            ({"chat_template_kwargs": {"date": "today"}}, "chat_template_kwargs.date.[key]"),
        ],
    )  # fmt: skip
    def test_what_would_change_the_text_is_refused_by_name(self, client, body, param):
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, **body})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert error["message"].startswith(param.split(".")[0])

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"messages": []}, "no messages"),
            ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role: Input should be 'system'"),
            ({"messages": [{"content": "x"}]}, "messages.0.role: Field required"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "'tool_call_id' is missing"),
            ({"messages": [{"role": "assistant", "content": "", "tool_calls": [DEEP]}]}, "messages cannot be read"),
            ({"logit_bias": {"9" * 5000: 1}}, "is no id"),
            ({"response_format": {"value": {}}}, "response_format.type must be"),
            ({"store": 0}, "store: Input should be False"),
            ({"temperature": -1}, "temperature must be"),
            ({"top_p": 0}, "top_p must be"),
            ({"seed": -1}, "seed must be"),
            ({"max_tokens": 0}, "max_tokens must be"),
            ({"max_tokens": 1, "max_completion_tokens": 2}, "one parameter"),
            ({"top_logprobs": 2}, "needs logprobs"),
            ({"tool_choice": "required"}, "tool_choice must be"),
            ({"response_format": {"type": "yaml"}}, "response_format must be"),
            ({"response_format": {"type": "json_object"}, "stop": "x"}, "contradict"),
            ({"continue_final_message": True}, "last message"),
        ],
    )  # fmt: skip
    def test_what_contradicts_itself_is_refused(self, client, body, said):
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, **body})
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]
        assert "max_new_tokens" not in answer.text

    def test_another_model_is_told(self, client):
        error = ask(client, model="gpt-5").json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        for name in ("scripted", "tgi", "dummy", None):
            assert ask(client, model=name).status_code == 200
        assert client.get("/v1/models/gpt-5").status_code == 404
        assert client.get("/v1/models/scripted").json() == client.get("/v1/models").json()["data"][0]

    def test_a_name_of_ones_own(self):
        with serving(ServedScript("Yes."), served_model_name="small") as client:
            assert ask(client, model="small").json()["model"] == "small"
            assert ask(client, model="scripted").status_code == 404
            (model,) = client.get("/v1/models").json()["data"]
            assert (model["id"], model["root"], model["max_model_len"]) == ("small", "scripted", 4096)
            assert client.get("/info").json()["model_id"] == "scripted"

    def test_a_prompt_that_is_too_long_is_told(self, client):
        answer = ask(client, [{"role": "user", "content": "x " * 4000}])
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"

    def test_a_model_without_a_template_takes_no_messages(self):
        with serving(CannedBackend()) as client:
            answer = ask(client)
        assert answer.status_code == 400
        assert "chat template" in answer.json()["error"]["message"]

    def test_the_nearest_parameter_is_told(self, client):
        answer = client.post("/v1/chat/completions", json={"messages": HELLO, "temprature": 1})
        assert answer.json()["error"]["message"].endswith("Did you mean 'temperature'?")

    @pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/models"])
    def test_an_address_without_v1_is_told(self, client, path):
        answer = client.post(path, json={"messages": HELLO})
        assert answer.status_code == 404
        assert f"There is no {path} here, but /v1{path}" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("path", ["/v1/nothing", "/v1/chat"])
    def test_there_is_nothing_else(self, client, path):
        assert client.get(path).json()["error"]["type"] == "invalid_request_error"
        assert client.get("/v1/chat/completions").status_code == 405


class TestCompletions:
    def test_several_prompts_have_a_choice_each(self):
        with serving(CannedBackend()) as client:
            whole = client.post("/v1/completions", json={"prompt": ["a", "bc"], "max_tokens": 2}).json()
            body = {"prompt": [[1], [2, 3]], "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
            events = events_of(client.post("/v1/completions", json=body))
        assert [(c["index"], c["text"], c["finish_reason"]) for c in whole["choices"]] == [
            (0, "Gr", "length"),
            (1, "Gr", "length"),
        ]
        assert whole["usage"]["prompt_tokens"] == 3
        assert len(whole["specdec"]) == 2
        texts = {0: "", 1: ""}
        for event in events:
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == {0: "Gr", 1: "Gr"}
        assert events[-1]["usage"] == whole["usage"]

    def test_the_default_is_openais(self):
        with serving(CannedBackend()) as client:
            assert client.post("/v1/completions", json={"prompt": "a"}).json()["usage"]["completion_tokens"] == 16

    @pytest.mark.parametrize("body", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"n": 2}, {"prompt": []}])
    def test_what_it_lacks_is_refused(self, body):
        with serving(CannedBackend()) as client:
            assert client.post("/v1/completions", json={"prompt": "a", **body}).status_code == 400


# A body that each path takes, and fields that it knows.
PATHS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "/v1/chat/completions": (
        {"messages": HELLO},
        ["messages", "tools", "tool_choice", "response_format", "logit_bias", "logprobs", "stream_options", "stop"],
    ),
    "/v1/completions": (
        {"prompt": "x"},
        ["prompt", "max_tokens", "stream", "seed", "top_p", "logprobs", "temperature"],
    ),
    "/generate": ({"inputs": "x"}, ["inputs", "parameters"]),
    "/generate_stream": ({"inputs": "x"}, ["inputs", "parameters"]),
    "/": ({"inputs": "x"}, ["inputs", "parameters", "stream"]),
    "/tokenize": ({"inputs": "x"}, ["inputs"]),
}
PARAMETERS = ["temperature", "top_p", "top_k", "seed", "stop", "grammar", "max_new_tokens", "truncate", "top_n_tokens"]


class TestAnyBody:
    @pytest.fixture(scope="class")
    @classmethod
    def client(cls):
        with scripted("Yes.") as (_, client):
            yield client

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("value", ['"\\ud800"', "1e999", "9" * 400, '"\\u0000"', "[" * 200 + "]" * 200])
    def test_no_strange_value_makes_the_server_fail(self, client, path, value):
        for field in PATHS[path][1]:
            body = json.dumps({**PATHS[path][0], field: "VALUE"}).replace('"VALUE"', value)
            response = client.post(path, content=body.encode(), headers={"content-type": "application/json"})
            assert response.status_code in (200, 400, 404, 422), (body[:200], response.text)
        for field in PARAMETERS if path.startswith("/generate") else ():
            body = json.dumps({"inputs": "x", "parameters": {field: "VALUE"}}).replace('"VALUE"', value)
            response = client.post(path, content=body.encode(), headers={"content-type": "application/json"})
            assert response.status_code in (200, 400, 422), (body[:200], response.text)


def test_a_frame_is_one_line_for_every_client():
    said = {"text": "a\u2028b\u2029c\x85d\x0b\x1c\r\né"}
    written = compact(said)
    assert written.splitlines() == [written]
    assert (json.loads(written), "é" in written) == (said, True)

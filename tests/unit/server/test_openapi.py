"""The OpenAPI document: it is one, it speaks of every path, and what it says of bodies and answers is so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks
from starlette.routing import Route

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.server.app import make_app
from langchain_specdec.server.settings import ServerSettings
from tests.support.served import ServedScript

load_all_checks()
# What these take for accepted is a stream that begins with an error; and grammars are languages of their own.
REPLACED: Any = CHECKS.get_by_names(["negative_data_rejection", "positive_data_acceptance"])
APP = make_app(cast("LocalBackend", ServedScript("Yes.")), ServerSettings())
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP, headers={"host": "127.0.0.1"})
SCHEMA.config.update(base_url="http://127.0.0.1")
DOCUMENT: Any = SCHEMA.raw_schema
# What a body that has the right form may be refused for all the same.
REASONS = (
    *("grammar", "tools", "tool", "response_format", "schema", "regular expression", "structured_outputs"),
    *("is not served here", "has content of type", "reasoning", "continue_final_message", "chat template"),
    *("contradict each other", "are one parameter", "tokens", "messages cannot be read", "surrogate pair", "specdec"),
    *("top_logprobs needs", "token id", "Token id", "empty string"),
)


def check_acceptance(case: Any, response: Any) -> None:
    """A right body is taken, and a wrong one is not."""
    is_stream = response.headers.get("content-type") == ["text/event-stream"]
    is_refused = response.status_code >= 400 or (is_stream and '"error":' in response.text)
    if case.meta.generation.mode.is_negative:
        assert is_refused, f"A wrong body is taken: {case.meta.phase}"
    elif is_refused and "invalid value" in response.text:
        # To TGI, 5.0 is no whole number.
        assert any(isinstance(value, float) and value.is_integer() for value in case.body["parameters"].values())
    elif is_refused:
        assert any(reason in response.text for reason in REASONS), f"A right body is refused: {response.text}"


def test_it_is_one_and_speaks_of_every_path() -> None:
    SCHEMA.validate()
    paths = {route.path.replace(":path", "") for route in APP.routes if isinstance(route, Route)}
    assert paths == {*DOCUMENT["paths"], "/openapi.json", "/api-doc/openapi.json"}
    assert "security" not in json.dumps(DOCUMENT)


def test_it_knows_every_error_that_tgi_answers() -> None:
    told = "".join(
        (Path(__file__).parent / name).read_text("utf-8") for name in ("tgi_answers.json", "tgi_faults.json")
    )
    kinds = DOCUMENT["components"]["schemas"]["TGIError"]["properties"]["error_type"]["enum"]
    assert {*re.findall(r'\\"error_type\\":\\"(\w+)', told)} <= {*kinds}


def test_where_keys_are_needed_it_says_so() -> None:
    app = make_app(cast("LocalBackend", ServedScript("Yes.")), ServerSettings(api_key="Key"))
    keyed = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "127.0.0.1"})
    keyed.validate()
    needing = {
        path
        for path, operations in keyed.raw_schema["paths"].items()
        for operation in operations.values()
        if operation.get("security") == [{"key": []}] and "401" in operation["responses"]
    }
    assert needing == {*DOCUMENT["paths"]} - {"/health", "/ping", "/info", "/metrics"}


@SCHEMA.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_request_is_answered_as_it_says(case: Any) -> None:
    response = case.call()
    case.validate_response(response, excluded_checks=REPLACED)
    if case.method == "POST":
        check_acceptance(case, response)

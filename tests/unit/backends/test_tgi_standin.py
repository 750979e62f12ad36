"""The stand-in for TGI itself, beside what it answers byte for byte (tests/unit/server/test_tgi_answers.py)."""

import asyncio
import json
import re
import urllib.request
from pathlib import Path

import pytest

from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.sampling.params import SamplingParams
from langchain_specdec.server.tgi.fields import Limits
from tests.standin.faults import REQUEST_FAULTS, START_FAULTS, Faults
from tests.standin.inference import Shard, TokenEnd
from tests.standin.launcher import FAULTS, read_faults
from tests.standin.models import FakeModel
from tests.standin.server import ServerThread
from tgi_launcher.metrics import parse_metrics

pytestmark = pytest.mark.server

LIMITS = Limits(max_input_tokens=100, max_total_tokens=1100)
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
# As TGI, it takes what it does not hold.
RECURSIVE = {"type": "object", "properties": {"below": {"type": "array", "items": {"$ref": "#"}}}}
BOUNDED = {"name": {"type": "integer", "minimum": 0, "maximum": 150}}
UNBOUNDED = {"name": {"type": "integer"}}


class NotingModel(FakeModel):
    """Notes what it is asked for, and waits to be let go on."""

    def __init__(self):
        super().__init__(takes_grammars=True)
        self.seen = []
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def steps(self, prompt, params):
        self.seen.append(params)
        await self.may_go.wait()
        async for step in super().steps(prompt, params):
            yield step


def post(server, path, **parameters):
    """The text of an answer."""
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 4, **parameters}}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=5) as response:
        return response.read().decode()


def frames(text):
    return [json.loads(event.removeprefix("data:")) for event in text.split("\n\n") if event]


def test_every_switch_is_off_until_asked_for_and_has_a_test():
    names = {*START_FAULTS, *REQUEST_FAULTS, *FAULTS}
    assert not Faults([]).take()
    assert read_faults("") == {}
    tests = Path(__file__).parents[2]
    paths = [path for part in ("unit", "integration") for path in (tests / part).rglob("test_tgi*.py")]
    texts = [path.read_text() for path in (*paths, tests / "unit/server/tgi_faults.json")]
    assert [name for name in names if not re.search(rf"[\"',]{name}[\"':,]", "\n".join(texts))] == []


@pytest.mark.parametrize(
    ("tokens", "stop", "text"),
    [
        ("a|u|s| dem", ["aus"], "aus"),
        ("a|u|s| dem", ["aus dem", "u"], "au"),
        ("The |li|ght", ["e l"], "The light"),
        # An anchor at the end of a text is also before its last line break.
        ("th|e\n|light", ["the"], "the\n"),
    ],
)
def test_a_stop_string_counts_at_the_end_of_a_token(tokens, stop, text):
    end, said = TokenEnd(stop), ""
    for token in tokens.split("|"):
        said += end.add(token)
        if end.is_found:
            break
    assert said == text


async def test_beside_others_a_seed_can_count_for_nothing():
    model = NotingModel()
    shard = Shard(model)
    request = CompletionRequest("x", SamplingParams(max_new_tokens=2, temperature=1.0, seed=5))
    for faults in ([], ["batch-seeds"]):
        in_force = Faults([])
        in_force.replace(faults)
        in_force.take()
        model.may_go.clear()
        streams = []
        for _ in range(2):
            streams += await shard.astart([request])
            await asyncio.sleep(0)
        model.may_go.set()
        for stream in streams:
            events = [event async for event in stream]
            assert getattr(events[-1], "seed", None) == 5
    assert [params.seed for params in model.seen] == [5, 5, 5, 6]


def test_tokens_of_a_pass_can_travel_together():
    with ServerThread(FakeModel(speculate=2), LIMITS) as server:
        apart = post(server, "/generate_stream", details=True, max_new_tokens=9)
        server.set_faults("one-packet")
        together = post(server, "/generate_stream", details=True, max_new_tokens=9)
        assert together == apart
        # A frame per token, and the passes and what they skipped make up their number.
        assert [frame["index"] for frame in frames(together)] == list(range(1, 10))
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=5) as response:  # noqa: S310
            metrics = parse_metrics(response.read().decode(), time=0.0)
        passes, skipped = metrics.skipped_count, metrics.skipped_sum
        assert (passes, passes + skipped) == (2 * 4, 2 * 9)


def test_grammars_reach_the_model_without_bounds_of_numbers():
    model = NotingModel()
    given = [
        ({"type": "json", "value": json.dumps(SCHEMA)}, Grammar(schema=SCHEMA)),
        ({"type": "json_schema", "value": {"name": "person", "schema": SCHEMA}}, Grammar(schema=SCHEMA)),
        ({"type": "json", "value": RECURSIVE}, Grammar(schema=RECURSIVE)),
        ({"type": "json", "value": {**SCHEMA, "properties": BOUNDED}}, {**SCHEMA, "properties": UNBOUNDED}),
        ({"type": "regex", "value": "[0-9]+"}, Grammar(regex="[0-9]+")),
        (None, None),
    ]
    with ServerThread(model, LIMITS) as server:
        for grammar, _ in given:
            post(server, "/generate_stream", grammar=grammar)
    expected = [Grammar(schema=seen) if isinstance(seen, dict) else seen for _, seen in given]
    assert [params.grammar for params in model.seen] == expected


def test_grammars_can_be_turned_off():
    with ServerThread(NotingModel(), LIMITS, disable_grammar_support=True) as server:
        (told,) = frames(post(server, "/generate_stream", grammar={"type": "regex", "value": "a"}))
    assert told == {"error": "Input validation error: grammar is not supported", "error_type": "validation"}

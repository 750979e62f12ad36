"""How a model is made, `ChatSpeculative(model=...)` and its other ways, and what it says of itself afterwards."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.load import dumps
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from langchain_specdec import ChatSpeculative, LocalBackend, SpeculativeLLM
from langchain_specdec.backends.local_options import checked_options
from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from tests.support.backends import EchoBackend, ScriptedBackend, engine_threads
from tests.support.chat_templates import chat_tokenizer
from tests.support.tiny_models import byte_tokenizer, tiny_model

KINDS = [SpeculativeLLM, ChatSpeculative]
Loads = list[tuple[Any, dict[str, Any]]]


class Closing(ScriptedBackend):
    """A scripted model that counts how often it was closed."""

    num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


@pytest.fixture
def loads(monkeypatch) -> Loads:
    """What was loaded, and with which options. A scripted model stands in for all of it."""
    loaded: Loads = []

    def load(model: Any, tokenizer: Any = None, **options: Any) -> Closing:
        checked_options(options)
        loaded.append((model, options if tokenizer is None else {"tokenizer": tokenizer, **options}))
        return Closing("yes")

    monkeypatch.setattr("langchain_specdec.backends.local.LocalBackend", load)
    return loaded


# By a model


@pytest.mark.transformers
def test_the_model_keyword_is_the_same_as_from_model_id():
    options: dict[str, Any] = {"tokenizer": byte_tokenizer(), "drafter": "none", "max_length": 64, "max_tokens": 5}
    with (
        SpeculativeLLM(model=tiny_model(), **options) as one,
        SpeculativeLLM.from_model_id(tiny_model(), **options) as other,
    ):
        assert isinstance(one.backend, LocalBackend)
        assert one.backend.max_length == 64
        assert one.invoke("hello") == other.invoke("hello") != ""
        assert one.model_dump() == other.model_dump()
        assert one._identifying_params.keys() == other._identifying_params.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model", "model_id", "model_name"])
def test_a_model_goes_by_the_names_of_other_packages(kind, name, loads, tmp_path):
    model = kind(**{name: tmp_path}, draft_model_id="small", drafter="draft_model", max_tokens=9, tags=["t"])
    assert loads == [(tmp_path, {"draft_model": "small", "drafter": "draft_model"})]
    assert (model.max_new_tokens, model.tags) == (9, ["t"])
    assert "yes" in str(model.invoke("x"))


def test_all_ways_load_alike(loads):
    token, options = object(), {"token": "hf_secret", "num_slots": 2}
    for make in (lambda **k: ChatSpeculative(model="a", **k), lambda **k: ChatSpeculative.from_model_id("a", **k)):
        make(tokenizer=token, progress=None, temperature=0.5, timeout=3, **options)
    ChatSpeculative.model_validate({"model": "a", "tokenizer": token, **options})
    assert loads == [("a", {"tokenizer": token, **options})] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r'No model is named. {kind}\(model="embedded"\) .* {kind}.from_tgi\(base_url\)'),
        ({"model": None, "backend": None}, "No model is named"),
        ({"drafter": "none"}, "No model is named"),
        ({"model": "a", "backend": EchoBackend()}, "model and backend were both given"),
        ({"model_id": "a", "backend": EchoBackend()}, "model and backend were both given"),
        ({"model": "a", "model_name": "b"}, "model_name and model are one parameter"),
        ({"model_id": "a", "model_name": "b"}, "model_id and model_name are one parameter"),
        ({"backend": EchoBackend(), "drafter": "none", "num_slots": 2}, r"drafter, num_slots: .* LocalBackend\(...\)"),
        ({"backend": "gpt2"}, r"backend must be a backend .* got str. {kind}\(model=...\)"),
        ({"base_url": "http://a:b@c"}, r"base_url is the address of a server. {kind}.from_tgi\(base_url\)"),
        ({"model": "a", "endpoint_url": "http://a"}, r"endpoint_url is .*from_tgi"),
        ({"modle": "a"}, "'modle'. Did you mean 'model'"),
        ({"model": "a", "max_lenght": 9}, "'max_lenght'. Did you mean 'max_length'"),
        ({"model": "a", "colour": 9}, "Unknown parameter 'colour'. Known are: .*drafter"),
        ({"model": "a", "drafter": "guess"}, "drafter must be one of"),
        ({"model": "a", "temperature": -1}, "temperature must be"),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, dict) else "",
)
def test_what_cannot_be_made_is_refused_before_it_loads(kind, given, message, loads):
    with pytest.raises(InvalidParameterError, match=message.replace("{kind}", kind.__name__)) as caught:
        kind(**given)
    assert loads == []
    assert "a:b@c" not in str(caught.value)


@pytest.mark.parametrize("given", [{"streaming": "please"}, {"api_key": ["sk-1"]}], ids=str)
def test_a_field_of_a_wrong_type_is_refused_before_it_loads_and_not_shown(given, loads):
    with pytest.raises(ValidationError, match=next(iter(given))) as caught:
        ChatSpeculative(model="a", **given)
    assert loads == []
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize("given", [{"timeout": -1}, {"timeout": "soon"}, {"max_reasoning_tokens": "8"}], ids=str)
def test_a_value_out_of_range_is_refused_before_it_loads(given, loads):
    with pytest.raises(InvalidParameterError, match=f"{next(iter(given))} must be"):
        ChatSpeculative(model="a", **given)
    assert loads == []


def test_models_are_given_by_name():
    with pytest.raises(InvalidParameterError, match=r'by name, as ChatSpeculative\(model="embedded"\)'):
        ChatSpeculative("embedded")  # type: ignore[call-arg]


def test_what_was_loaded_is_closed_where_the_rest_fails(loads, monkeypatch):
    made: list[Closing] = []

    class Failing(ChatSpeculative):
        def _check_made(self) -> None:
            made.append(self.backend)  # type: ignore[arg-type]
            raise UnsupportedModelError

    with pytest.raises(UnsupportedModelError):
        Failing(model="a")  # type: ignore[call-arg]
    with pytest.raises(UnsupportedModelError):
        Failing(backend=Closing("x"))
    # A backend that somebody else has made is theirs.
    assert [backend.num_closed for backend in made] == [1, 0]


@pytest.mark.transformers
def test_a_model_without_a_chat_template_is_let_go():
    before = len(engine_threads())
    with pytest.raises(UnsupportedModelError, match="has no chat template"):
        ChatSpeculative(model=tiny_model(), tokenizer=chat_tokenizer(None), num_slots=1, max_length=64)
    gc.collect()
    assert len(engine_threads()) == before


# What is fixed afterwards


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model", "model_id", "model_name"])
async def test_a_call_cannot_choose_another_model(kind, name):
    model = kind(backend=ScriptedBackend("yes"))
    message = f"{name} is chosen when a {kind.__name__} is made, not later.*configurable_alternatives"
    asked: dict[str, Any] = {name: "other"}
    for act in (
        lambda: model.invoke("x", **asked),
        lambda: next(model.stream("x", **asked)),
        lambda: model.batch(["x"], **asked),
        lambda: model.bind(**asked).invoke("x"),
        lambda: model.model_copy(update=asked),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            act()
    with pytest.raises(InvalidParameterError, match=message):
        await model.bind(**asked).ainvoke("x")


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_of_loading_is_told_as_such_in_a_call(kind):
    model = kind(backend=ScriptedBackend("yes"))
    for act in (lambda: model.invoke("x", drafter="none"), lambda: model.model_copy(update={"drafter": "none"})):
        with pytest.raises(
            InvalidParameterError, match=rf"drafter is set when .* {kind.__name__}\(model=..., drafter="
        ):
            act()


@pytest.mark.parametrize("kind", KINDS)
def test_copies_refuse_what_is_no_field(kind):
    model = kind(backend=ScriptedBackend("yes"), stop=["a"])
    with pytest.raises(InvalidParameterError, match=r"'temprature'\. Did you mean 'temperature'"):
        model.model_copy(update={"temprature": 1})
    copied = model.model_copy(update={"max_tokens": 3, "stop": None})
    assert (copied.max_new_tokens, copied.stop, copied.backend) == (3, None, model.backend)
    assert model.model_copy().stop == ["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_configured_copies_share_the_model(kind, loads):
    model = kind(model="a")
    warm = model.configurable_fields(temperature=ConfigurableField(id="warmth"))
    warm.with_config(configurable={"warmth": 0.5}).invoke("x")
    model.with_config(tags=["t"]).invoke("x")
    assert [request.params.temperature for request in model.backend.requests] == [0.5, 0.0]
    assert len(loads) == 1
    with pytest.raises(ValueError, match="model not found"):
        model.configurable_fields(model=ConfigurableField(id="model"))
    either = model.configurable_alternatives(ConfigurableField(id="which"), default_key="a", b=kind(model="b"))
    for which in ("a", "b", "b"):
        either.with_config(configurable={"which": which}).invoke("x")
    assert [name for name, _ in loads] == ["a", "b"]


# What it says of itself


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_names_itself_where_langchain_looks(kind):
    model = kind(backend=ScriptedBackend("yes"))
    assert model.model == model.model_name == "scripted"
    assert model._identifying_params["model"] == "scripted"
    assert model._get_ls_params()["ls_model_name"] == "scripted"
    with pytest.raises(AttributeError, match="model"):
        model.model = "other"


def test_a_repr_is_short_and_holds_no_secret():
    model = ChatSpeculative(backend=ScriptedBackend("yes"), temperature=0.5, api_key="sk-secret", seed=None)
    assert repr(model) == "ChatSpeculative(model='scripted', temperature=0.5, api_key=SecretStr('**********'))"
    assert repr(SpeculativeLLM(backend=EchoBackend())) == "SpeculativeLLM(model='echo')"
    assert "sk-secret" not in dumps(model)


def test_a_repr_asks_no_server():
    class Remote(EchoBackend):
        is_remote = True
        base_url = "http://127.0.0.1:9"

        @property
        def model_name(self) -> str:  # type: ignore[override]
            pytest.fail("the server was asked")

    assert repr(SpeculativeLLM(backend=Remote())) == "SpeculativeLLM(base_url='http://127.0.0.1:9')"


def test_an_agent_takes_a_model_that_was_made_by_its_name(loads):
    agent = create_agent(model=ChatSpeculative(model="embedded"))
    assert agent.invoke({"messages": [HumanMessage("Well?")]})["messages"][-1].text == "yes"
    assert [name for name, _ in loads] == ["embedded"]


def test_init_chat_model_knows_only_its_own_providers():
    """As docs/quickstart.md says."""
    with pytest.raises(ValueError, match="specdec"):
        init_chat_model("embedded", model_provider="specdec")


def test_the_classes_say_how_they_are_made():
    for kind in KINDS:
        doc: str = kind.__doc__ or ""
        made: Callable[[str], Any] = re.compile(rf'{kind.__name__}\(model="[\w./-]+"').search
        assert made(doc)

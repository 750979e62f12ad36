"""The keywords that type checkers see are those that there are: no declaration says another thing than the next."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from langchain_core.caches import BaseCache
from langchain_core.callbacks import Callbacks
from langchain_core.rate_limiters import BaseRateLimiter
from pydantic import SecretStr
from transformers import PreTrainedModel

import tgi_launcher
from langchain_specdec import ChatSpeculative, LocalBackend, OpenAIBackend, SpeculativeLLM, TGIBackend
from langchain_specdec.backends.local_options import OPTIONS, DrafterName, LocalOptions
from langchain_specdec.backends.openai.launch_options import EngineOptions
from langchain_specdec.backends.openai.options import OpenAIOptions
from langchain_specdec.backends.remote.launch_options import ServerOptions
from langchain_specdec.backends.tgi.launch import launch_backend
from langchain_specdec.backends.tgi.launch_options import ConfigOptions, ConnectionOptions
from langchain_specdec.construction import keywords
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.parameter_names import ALIASES, LOADING_ALIASES
from langchain_specdec.sampling.params import SamplingParams
from tests.support.langchain_versions import needs_decisions

pytestmark = pytest.mark.transformers

KINDS = [(SpeculativeLLM, "LLM"), (ChatSpeculative, "Chat")]
ORIGIN = set(get_type_hints(keywords.Origin, localns={"ModelSource": Any}))
# Fields that older versions of langchain-core do not have.
LATER = {"profile"}
NAMES = {
    **{name: getattr(tgi_launcher, name) for name in ("Backoff", "Method", "Progress", "ServerExit")},
    "BaseCache": BaseCache,
    "BaseRateLimiter": BaseRateLimiter,
    "Callbacks": Callbacks,
    "ModelProfile": Any,
    "ModelSource": str | os.PathLike[str] | PreTrainedModel,
    "PreTrainedModel": PreTrainedModel,
    "SecretStr": SecretStr,
    "StepCost": StepCost,
    "torch": torch,
}
# What is taken beside the type of the field.
WIDER = {
    "adapter": str | os.PathLike[str] | None,
    "api_key": str | SecretStr | None,
    "logit_bias": Mapping[int, float] | None,
    "stop": str | Sequence[str] | None,
}


def types_of(declared: Any) -> dict[str, Any]:
    """The types of a `TypedDict`, of a class or of a function's parameters."""
    hints = get_type_hints(declared, localns=NAMES)
    return {name: normal(hint) for name, hint in hints.items() if name != "return"}


def normal(hint: Any) -> Any:
    """A type in a form that can be compared, however it was written."""
    parts = get_args(hint)
    if type(hint) is type(int | None) or get_origin(hint) is Union:
        return frozenset().union(*(each if isinstance(each := normal(part), frozenset) else {each} for part in parts))
    if get_origin(hint) is Literal:
        return frozenset(repr(part) for part in parts)
    return hint


def or_none(kind: Any) -> frozenset[Any]:
    return (kind if isinstance(kind, frozenset) else frozenset({kind})) | {NoneType}


@pytest.mark.parametrize(("kind", "prefix"), KINDS, ids=["llm", "chat"])
def test_a_constructor_s_keywords_are_the_fields_and_the_options_of_loading(kind: Any, prefix: str) -> None:
    fields = set(kind.model_fields)
    declared = set(types_of(getattr(keywords, f"{prefix}Keywords"))) - (LATER - fields)
    assert declared == fields | {"model", "tokenizer", *OPTIONS, *ALIASES, *LOADING_ALIASES}
    loading = set(types_of(getattr(keywords, f"{prefix}Loading"))) - (LATER - fields)
    assert loading == declared - ORIGIN
    assert {"model", "backend", "model_id", "model_name"} == ORIGIN
    # Beside several adapters it is the name of one, and without them one that is merged.
    assert fields & {"model", *OPTIONS} == {"adapter"}, "a field would hide an option"


@pytest.mark.parametrize(("kind", "prefix"), KINDS, ids=["llm", "chat"])
def test_a_server_s_keywords_are_the_fields_and_the_options_of_connections(kind: Any, prefix: str) -> None:
    fields = set(kind.model_fields) - {"backend"}
    connection = set(types_of(getattr(keywords, f"{prefix}Connection"))) - (LATER - fields)
    assert connection == fields | set(types_of(ConnectionOptions)) | set(ALIASES)
    server = set(types_of(getattr(keywords, f"{prefix}Server"))) - (LATER - fields)
    assert server == fields | set(types_of(OpenAIOptions)) | set(ALIASES)
    launch = set(types_of(getattr(keywords, f"{prefix}Launch"))) - (LATER - fields)
    assert launch == connection | set(types_of(ServerOptions)) | set(types_of(ConfigOptions))
    launch = set(types_of(getattr(keywords, f"{prefix}LaunchServer"))) - (LATER - fields)
    assert launch == server | set(types_of(ServerOptions)) | set(types_of(EngineOptions))


@pytest.mark.parametrize(("kind", "prefix"), KINDS, ids=["llm", "chat"])
def test_keywords_of_fields_have_their_types(kind: Any, prefix: str) -> None:
    declared = types_of(getattr(keywords, f"{prefix}Keywords"))
    for name, field in kind.model_fields.items():
        if name not in {"backend", "tokenizer", *LATER}:
            assert declared[name] == normal(WIDER.get(name, field.annotation)), name
    for alias, name in {**ALIASES, "model_id": "model", "model_name": "model"}.items():
        assert declared[alias] == declared[name]
    assert declared["draft_model_id"] == declared["draft_model"] == or_none(declared["model"])


@needs_decisions
def test_keywords_of_decisions_are_their_fields_and_the_options_of_loading() -> None:
    from langchain_specdec import SpeculativeDecisions

    declared = types_of(keywords.DecisionKeywords)
    fields = set(SpeculativeDecisions.model_fields)
    assert set(declared) == fields | {"tokenizer", *OPTIONS, *LOADING_ALIASES}
    assert set(types_of(keywords.DecisionLoading)) == set(declared) - ORIGIN
    options = set(OpenAIOptions.__annotations__)
    server = (fields - {"backend"}) | options
    assert set(types_of(keywords.DecisionServer)) == server
    launch = server | set(types_of(ServerOptions)) | set(types_of(EngineOptions))
    assert set(types_of(keywords.DecisionLaunchServer)) == launch
    for name in fields - {"backend", "model"}:
        assert declared[name] == normal(SpeculativeDecisions.model_fields[name].annotation), name
    shown = inspect.signature(SpeculativeDecisions).parameters
    assert {*fields, "tokenizer", *OPTIONS} <= shown.keys()


def test_sampling_fields_have_the_types_of_sampling_parameters() -> None:
    declared = types_of(keywords.SamplingFields)
    for name, kind in types_of(SamplingParams).items():
        assert declared[name] == (normal(WIDER[name]) if name in WIDER else or_none(kind)), name


def test_words_of_an_option_are_its_type() -> None:
    for name, kind in types_of(LocalOptions).items():
        words = {word for word in kind if isinstance(word, str)} if isinstance(kind, frozenset) else set()
        assert words == {repr(word) for word in OPTIONS[name].words}, name


@pytest.mark.parametrize(
    ("kind", "make", "options"),
    [
        (TGIBackend, SpeculativeLLM.from_tgi, ConnectionOptions),
        (OpenAIBackend, SpeculativeLLM.from_server, OpenAIOptions),
    ],
)
def test_options_of_connections_are_those_of_the_backend(kind: Any, make: Any, options: Any) -> None:
    taken = types_of(kind.__init__)
    assert types_of(options) == {name: taken[name] for name in taken.keys() - {"base_url", "server"}}
    backend, method = (inspect.signature(of).parameters for of in (kind, make))
    for name in types_of(options):
        assert method[name].default == backend[name].default


@pytest.mark.parametrize(
    ("config", "options", "apart"),
    [
        (tgi_launcher.TGIConfig, ConfigOptions, {"model_id", "speculate", "api_key"}),
        (tgi_launcher.EngineConfig, EngineOptions, {"model_id", "engine", "api_key"}),
    ],
)
def test_options_of_servers_are_those_of_the_launcher(config: Any, options: Any, apart: set[str]) -> None:
    for server in (tgi_launcher.TGIServer, tgi_launcher.Server):
        taken = types_of(server.__init__)
        assert types_of(ServerOptions) == {name: or_none(kind) for name, kind in taken.items() if name != "config"}
    fields = types_of(config)
    own = {name: fields[name] for name in config.model_fields}
    # pydantic makes these of them.
    wider: dict[Any, set[Any]] = {
        tuple[int, ...]: {Sequence[int]},
        tuple[str, ...]: {Sequence[str]},
        dict[str, str]: {Mapping[str, str]},
        SecretStr: {str, SecretStr},
        tgi_launcher.Method: {tgi_launcher.Method, *(repr(method.value) for method in tgi_launcher.Method)},
    }
    expected = {
        name: frozenset(each for part in or_none(kind) for each in wider.get(part, {part}))
        for name, kind in own.items()
        if name not in apart
    }
    assert types_of(options) == expected


@pytest.mark.parametrize("kind", [SpeculativeLLM, ChatSpeculative])
def test_a_signature_names_every_option_with_its_default(kind: Any) -> None:
    shown = inspect.signature(kind).parameters
    assert {"model", "backend", "tokenizer", *OPTIONS} <= shown.keys()
    assert set(kind.model_fields) <= shown.keys()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in shown.values())
    for make in (kind, kind.from_model_id):
        shown = inspect.signature(make).parameters
        assert {name: shown[name].default for name in OPTIONS} == {n: option.default for n, option in OPTIONS.items()}
    launch = inspect.signature(kind.launch_tgi).parameters
    assert {*types_of(ConfigOptions), *types_of(ServerOptions), *types_of(ConnectionOptions)} < launch.keys()
    assert launch["speculate"].default == inspect.signature(launch_backend).parameters["speculate"].default == 4
    launch = inspect.signature(kind.launch_server).parameters
    assert {*types_of(EngineOptions), *types_of(ServerOptions), *types_of(OpenAIOptions)} < launch.keys()
    assert inspect.signature(LocalBackend).parameters["drafter"].annotation == DrafterName

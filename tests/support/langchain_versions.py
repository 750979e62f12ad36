"""What older versions of LangChain lack: the reason why a test is skipped there."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
from langchain_core.language_models import BaseChatModel
from packaging.version import Version


def needs(package: str, since: str, what: str) -> pytest.MarkDecorator:
    """Skip a test on a version of a package that has not yet what is tested."""
    try:
        is_old = Version(version(package)) < Version(since)
    except PackageNotFoundError:
        is_old = True
    return pytest.mark.skipif(is_old, reason=f"{package} has {what} since {since}")


needs_profiles = needs("langchain-core", "1.1", "profiles of models")
needs_traced_usage = needs("langchain-core", "1.2.6", "usage in the metadata of a run")
needs_triggers = needs("langchain", "1.1", "SummarizationMiddleware(trigger=..., keep=...)")
needs_decisions = needs("langchain-core", "1.8", "decision models")

needs_chosen_strategy = needs("langchain", "1.1", "a choice between an object and a call by the profile of the model")
needs_agent_names = needs("langchain", "1.5", "the agent's name beside its chunks")

HAS_EVENTS_V3 = hasattr(BaseChatModel, "stream_events")
"""Whether chat models have `stream_events`."""

needs_events_v3 = pytest.mark.skipif(not HAS_EVENTS_V3, reason="this LangChain has no version 3 of events")

"""A trained head given for a draft model, as users give it: by folder, with lookups or alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from langchain_specdec import LocalBackend, SpeculativeLLM
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import InvalidParameterError, ModelLoadError, UnsupportedModelError
from langchain_specdec.runner.cpu.native_head_runner import NativeHeadRunner
from langchain_specdec.runner.cpu.native_runner import NativeRunner
from tests.support.eagle3_folders import TinyHead
from tests.support.tiny_models import byte_tokenizer, tiny_model

pytestmark = pytest.mark.transformers
PROMPT = "one two three one two"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model that a native decoder runs, and a head for it."""
    root = tmp_path_factory.mktemp("heads")
    tiny_model(num_hidden_layers=6).save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    return str(root / "model"), str(TinyHead().write(root / "head", "classic"))


def answer(model: str, **options: Any) -> tuple[str, dict[str, Any], list[Any]]:
    options = {"num_slots": 2, "max_length": 128, "step_cost": StepCost.flat(draft=0.01), **options}
    backend = LocalBackend(model, **options)
    with SpeculativeLLM(backend=backend, max_new_tokens=40, temperature=0.7, seed=1) as llm:
        runners: list[Any] = list(backend._runners)
        generation = llm.generate([PROMPT]).generations[0][0]
        assert generation.generation_info is not None
        return generation.text, generation.generation_info["speculation"], runners


@pytest.mark.parametrize("drafter", ["auto", "draft_model"])
def test_a_head_drafts_by_itself_or_beside_lookups(drafter: str, folders: tuple[str, str]) -> None:
    model, head = folders
    plain, _, _ = answer(model, drafter="none")
    text, stats, (target, runner) = answer(model, drafter=drafter, draft_model=head)
    assert text == plain
    assert stats["drafted_by_source"]["eagle3"] > 0
    assert drafter == "auto" or set(stats["drafted_by_source"]) == {"eagle3"}
    if isinstance(target, NativeRunner):
        assert isinstance(runner, NativeHeadRunner)


def test_heads_that_are_of_no_use_are_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    model, head = folders
    wide = str(TinyHead(target_hidden=64, hidden=64, head_dim=16).write(tmp_path / "wide"))
    with pytest.raises(UnsupportedModelError, match="reads 192 numbers at a time"):
        LocalBackend(model, draft_model=wide)
    with pytest.raises(UnsupportedModelError, match=r"is a trained head.*as its draft_model"):
        LocalBackend(head)
    with pytest.raises(InvalidParameterError, match=r"is a trained head.*draft_quantization would do nothing"):
        LocalBackend(model, draft_model=head, draft_quantization="int8")
    with pytest.raises(InvalidParameterError, match="would never use"):
        LocalBackend(model, draft_model=head, drafter="prompt_lookup")
    (Path(wide) / "model.safetensors").unlink()
    with pytest.raises((UnsupportedModelError, ModelLoadError)):
        LocalBackend(model, draft_model=wide)

"""Speculation by heads on a real TGI: a Medusa model and an MLP speculator, written for the model that is served."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from langchain_specdec import SpeculativeLLM
from tests.support.real_tgi import MARKS, in_time, model_folder, real_config
from tests.support.speculator_heads import write_medusa, write_mlp_speculator
from tgi_launcher.endpoints import get_text
from tgi_launcher.metrics import parse_metrics

pytestmark = MARKS


@pytest.mark.parametrize(
    ("write", "kind"),
    [(write_medusa, "medusa"), (write_mlp_speculator, "mlp_speculator")],
    ids=["medusa", "mlp"],
)
def test_heads_draft_and_the_text_is_the_models_own(servers, expect_same_text, write, kind):
    servers.close()
    output = AutoModelForCausalLM.from_pretrained(model_folder()).get_output_embeddings().weight
    # Heads have the size of the vocabulary: they are not kept, as pytest keeps its folders.
    with tempfile.TemporaryDirectory() as folder:
        heads = write(Path(folder) / kind, model_folder(), output)
        options = real_config().model_dump(exclude_unset=True) | {"model_id": str(heads)}
        lines: list[str] = []
        with SpeculativeLLM.launch_tgi(speculate=None, on_log=lines.append, **options) as llm:
            assert any(f"Using speculation {kind} with 2 input ids" in line for line in lines)
            expect_same_text(llm.backend)
            before = num_skipped(llm)
            # These heads guess that the last token comes once more.
            assert llm.invoke("ha ha ha ha ha ha ha ha ha ha ha ha ha", max_new_tokens=32)
            in_time(lambda: num_skipped(llm) > before, "drafts are accepted", seconds=5)


def num_skipped(llm):
    """Tokens that needed no pass of their own, since the server began."""
    return parse_metrics(get_text(f"{llm.backend.base_url}/metrics", timeout=10), time=0.0).skipped_sum

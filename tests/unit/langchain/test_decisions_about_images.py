"""`SpeculativeDecisions` about states with images: probabilities are those of transformers' own forward."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langchain_specdec import LocalBackend
from langchain_specdec.errors import InvalidParameterError
from tests.support import image_models as images
from tests.support.langchain_versions import needs_decisions

pytestmark = [pytest.mark.transformers, needs_decisions]

try:
    from langchain_core.decisions import Choice, Noul

    from langchain_specdec.decisions import SpeculativeDecisions
except ImportError:
    QUESTIONS: dict[str, Any] = {}
else:
    QUESTIONS = {
        "red": Noul(instructions="Is it red?"),
        "what": Choice(instructions="What is it?", criteria={"cat": "Purrs.", "dog": None}),
    }

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{{ PLACEHOLDER if c.type == 'image' else c.text }}{% endfor %}{% endif %}\n{% endfor %}assistant:"
)
PLACEHOLDERS = {"gemma3": f"'{images.BEGIN}'", "qwen2_5_vl": f"'{images.BEGIN}{images.PART}{images.END}'"}


@pytest.fixture(params=images.params(PLACEHOLDERS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def decisions(family: str) -> Iterator[SpeculativeDecisions]:
    template = TEMPLATE.replace("PLACEHOLDER", PLACEHOLDERS[family])
    processor = images.processor(family)._replace(chat_template=template)
    with SpeculativeDecisions(
        model=copy.deepcopy(images.model(family)), tokenizer=processor, num_slots=2, max_length=500
    ) as made:
        yield made


def picture(seed: int) -> dict[str, Any]:
    return {"type": "image", "base64": base64.b64encode(images.picture(seed)).decode(), "mime_type": "image/png"}


def test_probabilities_are_those_of_an_uncached_forward(family: str, decisions: SpeculativeDecisions) -> None:
    state = [
        HumanMessage(["Look: ", picture(1), "."]),
        AIMessage("", tool_calls=[{"name": "see", "args": {}, "id": "1"}]),
        ToolMessage([picture(2)], tool_call_id="1"),
    ]
    response = decisions.invoke({"state": state, "questions": QUESTIONS})
    for name, one in decisions._ask(state, QUESTIONS).items():
        assert len(one.request.images) == 2
        prompt_ids: Any = one.request.prompt
        logits = images.last_logits(family, list(prompt_ids), one.request.images)
        wanted = logits[list(one.tokens)].double().softmax(-1).tolist()
        answer: Any = response.answers[name]
        told = [answer.noul, 1 - answer.noul] if name == "red" else list(answer.probabilities.values())
        assert told == pytest.approx(wanted, abs=1e-5)


def test_an_image_is_read_once_for_all_questions(decisions: SpeculativeDecisions) -> None:
    backend = decisions.backend
    assert isinstance(backend, LocalBackend)
    state = HumanMessage([picture(1), "Look. " * 20])
    response = decisions.invoke({"state": state, "questions": QUESTIONS})
    second = decisions._ask(state, QUESTIONS)["what"].request
    assert response.usage is not None
    assert response.usage["input_token_details"]["cache_read"] > second.images[0].stop + len("Look. " * 20)


def test_what_is_no_image_is_refused(decisions: SpeculativeDecisions) -> None:
    broken = {**picture(1), "base64": "AAAA"}
    for state, message in (
        (HumanMessage([broken]), "Image 1 of the prompt is none that Pillow can read"),
        (HumanMessage([{"type": "image", "url": "http://x"}]), "is given by its address"),
        (HumanMessage([{"type": "video", "url": "http://x"}]), "The model reads text and images only"),
        ({"seen": picture(1)}, "content of type 'image' outside a message"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            decisions.invoke({"state": state, "questions": QUESTIONS})

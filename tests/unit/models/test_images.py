"""Images at prefill: the text is that of transformers' own greedy decoding, whatever else runs and drafts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.prompt_images import PromptImage
from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.sampling.params import SamplingParams
from tests.support import image_models as images
from tests.support import tiny_models as tiny

pytestmark = pytest.mark.transformers

FAMILIES = images.params(images.FAMILIES)
NUM_TOKENS = 16
Prompt = tuple[list[int], tuple[PromptImage, ...]]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def backend(family: str) -> Iterator[LocalBackend]:
    backend = make_backend(family)
    yield backend
    backend.close()


def make_backend(family: str, **options: Any) -> LocalBackend:
    how: dict[str, Any] = {"num_slots": 4, "max_length": 256, "drafter": "auto"}
    return LocalBackend(copy.deepcopy(images.model(family)), images.processor(family), **how | options)


def prompt(backend: LocalBackend, text: str, *pictures: bytes) -> Prompt:
    """A prompt in which an image stands for each `{}`."""
    reader = backend.image_reader
    assert reader is not None, backend.why_no_images
    read = reader.read(pictures)
    ids = backend.tokenizer.encode(text.format(*read.texts), add_special_tokens=False)
    return ids, read.placed(ids)


def prompts(backend: LocalBackend) -> list[Prompt]:
    first, second = images.picture(1), images.picture(2, 40, 40)
    return [
        prompt(backend, "see {} what is it, what is it", first),
        prompt(backend, "{}two of them{}what is it", second, first),
        prompt(backend, "no image at all, no image at all"),
    ]


def written(backend: LocalBackend, asked: Sequence[Prompt], **params: Any) -> list[list[int]]:
    how = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True, **params)
    done = backend.complete([CompletionRequest(ids, how, images=placed) for ids, placed in asked])
    return [[token.id for token in each.tokens] for each in done]


def expected(family: str, asked: Sequence[Prompt]) -> list[list[int]]:
    return [images.generated(family, ids, placed, NUM_TOKENS) for ids, placed in asked]


@pytest.mark.parametrize("options", [{"drafter": "none"}, {"drafter": "auto"}, {"prefill_chunk": 5}])
def test_text_is_that_of_transformers(family: str, options: dict[str, Any]) -> None:
    with closing(make_backend(family, **options)) as backend:
        asked = prompts(backend)
        assert written(backend, asked) == expected(family, asked)
        # Alone, from what rests in the slots, and each in the slot of another.
        for one in (*asked, *reversed(asked)):
            assert written(backend, [one]) == expected(family, [one])


def test_image_changes_the_text(family: str, backend: LocalBackend) -> None:
    texts = written(backend, [prompt(backend, "see {} what", images.picture(seed)) for seed in (3, 4)])
    assert texts[0] != texts[1]


def test_prefix_is_reused_by_what_the_image_holds(family: str) -> None:
    with closing(make_backend(family, num_slots=1)) as backend:
        before = 0

        def read_for(one: Prompt) -> int:
            nonlocal before
            assert written(backend, [one]) == expected(family, [one])
            read, before = backend.engine.num_prefill_tokens - before, backend.engine.num_prefill_tokens
            return read

        same, other = images.picture(5), images.picture(6)
        first = prompt(backend, "see {} what", same)
        assert read_for(first) == len(first[0]) - 1
        # A longer talk goes on after the image.
        longer = prompt(backend, "see {} what, and then more", same)
        assert read_for(longer) <= len("at, and then more") + NUM_TOKENS
        # Another image with the same tokens is another prefix; what stands before it stays.
        another = prompt(backend, "see {} what, and then more", other)
        assert another[0] == longer[0]
        assert read_for(another) == len(another[0]) - 1 - another[1][0].start


def test_seeded_text_is_the_same_alone_and_beside_others(family: str, backend: LocalBackend) -> None:
    asked = prompts(backend)
    how = {"temperature": 0.9, "seed": 11}
    with closing(make_backend(family, drafter="none")) as plain:
        alone = [written(plain, [one], **how)[0] for one in asked]
    assert written(backend, asked, **how) == alone


def test_files_of_a_model(family: str, tmp_path: Path) -> None:
    """Read from a folder, with its processor's files: packed weights, and classes found by the configuration."""
    images.model(family).save_pretrained(tmp_path)
    images.tokenizer().save_pretrained(tmp_path)
    images.image_processor(family).save_pretrained(tmp_path)
    with closing(LocalBackend(str(tmp_path), num_slots=4, max_length=256)) as backend:
        asked = prompts(backend)
        assert written(backend, asked) == expected(family, asked)


def test_model_without_its_processor_goes_on_with_text(tmp_path: Path) -> None:
    images.model("gemma3").save_pretrained(tmp_path)
    images.tokenizer().save_pretrained(tmp_path)
    with closing(LocalBackend(str(tmp_path), num_slots=1, max_length=64)) as backend:
        assert backend.image_reader is None
        assert "its image processor cannot be loaded" in backend.why_no_images
        assert written(backend, [([97, 98, 99], ())])[0]


def test_text_model_is_given_no_images() -> None:
    with closing(LocalBackend(tiny.tiny_model(), tiny.byte_tokenizer(), num_slots=1)) as backend:
        assert backend.image_reader is None
        assert backend.why_no_images == "it reads text only"
        image = PromptImage(0, 1, -1, {})
        with pytest.raises(InvalidParameterError, match="this model is given text only"):
            backend.start([CompletionRequest([97, 98], SamplingParams(), images=[image])])


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"", "cannot be read"), (b"no image", "cannot be read"), (images.picture(1)[:60], "cannot be read")],
)
def test_what_is_no_image_is_refused(data: bytes, told: str) -> None:
    with closing(make_backend("gemma3")) as backend:
        assert backend.image_reader is not None
        with pytest.raises(InvalidParameterError, match=f"Image 2 of the prompt {told}"):
            backend.image_reader.read([images.picture(1), data])


def test_image_with_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with closing(make_backend("gemma3")) as backend:
        assert backend.image_reader is not None
        with pytest.raises(InvalidParameterError, match="DecompressionBombWarning"):
            backend.image_reader.read([images.picture(1, 11, 11)])


def test_prompt_that_cut_an_image_is_refused() -> None:
    with closing(make_backend("gemma3")) as backend:
        assert backend.image_reader is not None
        read = backend.image_reader.read([images.picture(1)])
        ids = backend.tokenizer.encode(read.texts[0], add_special_tokens=False)
        with pytest.raises(InvalidParameterError, match="3 tokens that stand for images, and its images take 4"):
            read.placed(ids[:6])

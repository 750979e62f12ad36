"""Images at prefill: the text is that of transformers' own greedy decoding, whatever else runs and drafts."""

from __future__ import annotations

import copy
import gc
import io
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from transformers import PROCESSOR_MAPPING

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.completions.completion import CompletionRequest
from langchain_specdec.completions.prompt_images import PromptImage
from langchain_specdec.drafters.prompt_lookup import PromptLookupDrafter
from langchain_specdec.engine.engine import Engine
from langchain_specdec.engine.step_cost import StepCost
from langchain_specdec.errors import GenerationError, InvalidParameterError
from langchain_specdec.models.image_reader import _opened
from langchain_specdec.runner.cuda.captured_runner import CapturedRunner
from langchain_specdec.runner.model_runner import ModelRunner
from langchain_specdec.sampling.params import SamplingParams
from tests.support import image_models as images
from tests.support import tiny_models as tiny
from tests.support.model_families import IS_TRANSFORMERS_5
from tests.support.mtp_layers import mtp_weights, write_with_mtp
from tests.support.recorded_graphs import RecordedCapture
from tgi_launcher.extras import install_command

FAMILIES = images.params(images.FAMILIES)
NUM_TOKENS = 16
# What differs between versions of transformers is tried on 4.57 too.
on_all_versions = pytest.mark.transformers
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
    # Templates of Qwen write the marks around an image themselves.
    texts = [text if images.BEGIN in text else images.BEGIN + text + images.END for text in read.texts]
    ids = backend.tokenizer.encode(text.format(*texts), add_special_tokens=False)
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


@on_all_versions
@pytest.mark.parametrize("options", [{"drafter": "auto"}, {"drafter": "none", "prefill_chunk": 5}])
def test_text_is_that_of_transformers(family: str, options: dict[str, Any]) -> None:
    with closing(make_backend(family, **options)) as backend:
        # As docs/models.md has it.
        assert backend.engine.runner.takes_trees == (family not in images.OF_STATES)
        asked = prompts(backend)
        assert written(backend, asked) == expected(family, asked)
        # Alone, from what rests in the slots, and each in the slot of another.
        for one in (*asked, *reversed(asked)):
            assert written(backend, [one]) == expected(family, [one])


@pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="processors of transformers 4 do not tell")
def test_text_of_an_image_is_that_of_its_processor(family: str, backend: LocalBackend) -> None:
    assert backend.image_reader is not None
    picture = images.picture(2, 40, 20)
    made = images.image_processor(family)([_opened(picture)], return_tensors="pt")
    # Whole processors need torchvision, for videos.
    own = SimpleNamespace(
        image_processor=images.image_processor(family),
        image_token=images.PART,
        boi_token=images.BEGIN,
        eoi_token=images.END,
        full_image_sequence=f"\n\n{images.BEGIN}{images.PART * 4}{images.END}\n\n",
    )
    kind: Any = PROCESSOR_MAPPING[type(images.model(family).config)]
    assert backend.image_reader.read([picture]).texts == [kind.replace_image_token(own, made, 0)]


def test_picture_of_a_phone_is_read_upright() -> None:
    turned = Image.open(io.BytesIO(images.picture(1))).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    assert _opened(file.getvalue()).tobytes() == _opened(images.picture(1)).tobytes()


def test_image_changes_the_text(family: str, backend: LocalBackend) -> None:
    texts = written(backend, [prompt(backend, "see {} what", images.picture(seed)) for seed in range(8)])
    assert len(set(map(tuple, texts))) > 1


@on_all_versions
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


@on_all_versions
def test_files_of_a_model(family: str, tmp_path: Path) -> None:
    """Read from a folder, with its processor's files: packed weights, and classes found by the configuration."""
    images.model(family).save_pretrained(tmp_path)
    images.tokenizer().save_pretrained(tmp_path)
    images.image_processor(family).save_pretrained(tmp_path)
    with closing(LocalBackend(str(tmp_path), num_slots=4, max_length=256)) as backend:
        asked = prompts(backend)
        assert written(backend, asked) == expected(family, asked)


def test_processor_brings_its_chat_template() -> None:
    processor = images.processor("gemma3")._replace(chat_template="{{ messages[0].content }}")
    with closing(LocalBackend(copy.deepcopy(images.model("gemma3")), processor, num_slots=1, max_length=64)) as backend:
        assert backend.image_reader is not None
        assert backend.tokenizer.chat_template == processor.chat_template
    assert processor.tokenizer.chat_template is None


@on_all_versions
def test_model_without_its_processor_goes_on_with_text(tmp_path: Path) -> None:
    images.model("gemma3").save_pretrained(tmp_path)
    images.tokenizer().save_pretrained(tmp_path)
    with closing(LocalBackend(str(tmp_path), num_slots=1, max_length=64)) as backend:
        assert backend.image_reader is None
        assert "its image processor cannot be loaded" in backend.why_no_images
        assert written(backend, [([97, 98, 99], ())])[0]


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images.model("gemma3").save_pretrained(tmp_path)
    images.tokenizer().save_pretrained(tmp_path)
    images.image_processor("gemma3").save_pretrained(tmp_path)
    monkeypatch.setattr("langchain_specdec.models.image_families.find_spec", lambda name: None)
    with closing(LocalBackend(str(tmp_path), num_slots=1, max_length=64)) as backend:
        assert backend.why_no_images == f"Pillow is missing ({install_command('images')})"


def test_text_model_is_given_no_images() -> None:
    with closing(LocalBackend(tiny.tiny_model(), tiny.byte_tokenizer(), num_slots=1)) as backend:
        assert backend.image_reader is None
        assert backend.why_no_images == "it reads text only"
        image = PromptImage(0, 1, -1, {})
        with pytest.raises(InvalidParameterError, match="this model is given text only"):
            backend.start([CompletionRequest([97, 98], SamplingParams(), images=[image])])


def test_prompt_that_ends_in_an_image_is_refused() -> None:
    with closing(make_backend("gemma3")) as backend:
        ids, placed = prompt(backend, "see {} what", images.picture(1))
        asked = CompletionRequest(ids[: placed[0].stop], SamplingParams(max_new_tokens=8), images=placed)
        with pytest.raises(InvalidParameterError, match="ends in an image"):
            backend.start([asked])


def test_nothing_is_kept_of_images_that_were_read() -> None:
    with closing(make_backend("gemma3")) as backend:
        ids, placed = prompt(backend, "see {} what", images.picture(1))
        kept = weakref.ref(placed[0])
        assert written(backend, [(ids, placed)])
        del placed
        for _ in range(100):
            if kept() is None:
                return
            time.sleep(0.02)
            gc.collect()
        pytest.fail("an image is kept")


def test_closing_lets_go_of_the_model(family: str) -> None:
    backend = make_backend(family)
    assert written(backend, prompts(backend)[:1])
    runner = backend._runners[0]
    assert isinstance(runner, ModelRunner)
    kept = weakref.ref(runner.model.base_model)
    backend.close()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"", "is none that Pillow can read"), (b"no image", "is none"), (images.picture(1)[:60], "cannot be read")],
)
def test_what_is_no_image_is_refused(data: bytes, told: str) -> None:
    with closing(make_backend("gemma3")) as backend:
        assert backend.image_reader is not None
        with pytest.raises(InvalidParameterError, match=f"Image 2 of the prompt {told}"):
            backend.image_reader.read([images.picture(1), data])


def test_image_that_its_processor_cannot_work_with_is_refused() -> None:
    with closing(make_backend("qwen2_vl")) as backend:
        assert backend.image_reader is not None
        with pytest.raises(InvalidParameterError, match=r"Image 1 .* of 1 x 500 pixels, .* absolute aspect ratio"):
            backend.image_reader.read([images.picture(1, 1, 500)])


def test_processor_of_another_model_is_refused() -> None:
    model, other = copy.deepcopy(images.model("qwen2_vl")), images.processor("gemma3")
    with closing(LocalBackend(model, other, num_slots=1, max_length=64)) as backend:
        assert backend.image_reader is not None
        with pytest.raises(InvalidParameterError, match="makes no image_grid_thw"):
            backend.image_reader.read([images.picture(1)])
    with pytest.raises(InvalidParameterError, match="must be a loaded tokenizer, got Gemma3ImageProcessor"):
        LocalBackend(model, other.image_processor, num_slots=1, max_length=64)


def test_image_with_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with closing(make_backend("gemma3")) as backend:
        assert backend.image_reader is not None
        with pytest.raises(InvalidParameterError, match="too large: it has 121 pixels"):
            backend.image_reader.read([images.picture(1, 11, 11)])


def test_prompt_that_cut_an_image_is_refused() -> None:
    with closing(make_backend("gemma3")) as backend:
        assert backend.image_reader is not None
        read = backend.image_reader.read([images.picture(1)])
        ids = backend.tokenizer.encode(read.texts[0], add_special_tokens=False)
        with pytest.raises(InvalidParameterError, match="3 tokens that stand for images, and its images take 4"):
            read.placed(ids[:6])


@pytest.mark.slow
@pytest.mark.usefixtures("only_operators")
@pytest.mark.parametrize("name", images.params(["gemma3", "qwen2_5_vl"]))
def test_captured_steps_follow_the_positions_of_images(name: str) -> None:
    """Graphs that were recorded for one text are replayed for another, whose images shift positions otherwise."""
    with closing(make_backend(name, drafter="none")) as backend:
        asked = prompts(backend)
    model = copy.deepcopy(images.model(name))
    runner = ModelRunner(model, 4, 256, 11, reads_images=True)
    captured = CapturedRunner(runner, RecordedCapture(), "reduce-overhead")
    engine = Engine(captured, PromptLookupDrafter(5), images.tokenizer(), (tiny.EOS,), step_cost=StepCost.flat())
    with closing(engine):
        params = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
        for one in (asked[2], *asked, *reversed(asked)):
            [stream] = engine.submit_all([CompletionRequest(one[0], params, images=one[1])])
            assert tiny.token_ids(tiny.read(stream)[0]) == expected(name, [one])[0]
    assert captured.store.num_made > 0


def test_draft_model_reads_the_tokens_of_images_as_any(family: str) -> None:
    draft = tiny.tiny_model(vocab_size=images.VOCAB)
    options = {"drafter": "draft_model", "draft_model": draft, "draft_tokenizer": images.tokenizer()}
    with closing(make_backend(family, **options)) as backend:
        asked = prompts(backend)
        assert written(backend, asked) == expected(family, asked)


@pytest.mark.parametrize("name", images.params(["qwen3_5"]))
def test_mtp_layers_draft_for_texts_with_images(name: str, tmp_path: Path) -> None:
    write_with_mtp(images.model(name), mtp_weights(images.model(name)), tmp_path)
    images.tokenizer().save_pretrained(tmp_path)
    images.image_processor(name).save_pretrained(tmp_path)
    how: Any = {"num_slots": 4, "max_length": 256, "step_cost": StepCost.flat()}
    with closing(LocalBackend(str(tmp_path), drafter="mtp", **how)) as backend:
        asked = prompts(backend)
        assert written(backend, asked) == expected(name, asked)
        assert sum(runner.num_forwards for runner in backend.engine.drafter.runners) > 0


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantization": "int8"}])
def test_other_numbers_have_the_same_text_with_drafts(tmp_path: Path, options: dict[str, Any]) -> None:
    images.model("gemma3").save_pretrained(tmp_path)
    images.tokenizer().save_pretrained(tmp_path)
    images.image_processor("gemma3").save_pretrained(tmp_path)
    how = {"num_slots": 2, "max_length": 256, **options}
    with (
        closing(LocalBackend(str(tmp_path), drafter="none", **how)) as plain,
        closing(LocalBackend(str(tmp_path), **how)) as backend,
    ):
        asked = prompts(backend)
        assert [written(backend, [one])[0] for one in asked] == [written(plain, [one])[0] for one in asked]


def test_image_that_the_model_cannot_take_fails_alone(family: str, backend: LocalBackend) -> None:
    asked = prompts(backend)
    ids, placed = asked[0]
    broken = [
        PromptImage(image.start, image.stop, -5, {name: tensor[:, :1] for name, tensor in image.inputs.items()})
        for image in placed
    ]
    params = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    streams = backend.start(
        [CompletionRequest(ids, params, images=broken), *(CompletionRequest(i, params, images=p) for i, p in asked)]
    )
    with pytest.raises(GenerationError, match="The completion failed while it ran"):
        list(streams[0])
    assert [tiny.token_ids(tiny.read(stream)[0]) for stream in streams[1:]] == expected(family, asked)


def test_many_images_at_a_time_in_few_slots(family: str) -> None:
    with closing(make_backend(family, num_slots=2, prefill_chunk=24)) as backend:
        asked = [
            prompt(backend, text, *(images.picture(number + index) for index in range(text.count("{}"))))
            for number, text in enumerate(["{}{}{}", "{} a {} b", "a {}", "ab", "{} {}"] * 2)
            for text in [text + " and so on and so on"]
        ]
        assert written(backend, asked) == expected(family, asked)

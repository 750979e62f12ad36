"""The private copy of a tokenizer: the same tokens, whatever the caller's own carries or is used for meanwhile."""

from __future__ import annotations

import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from langchain_specdec import ChatSpeculative, LocalBackend, SpeculativeLLM, TGIBackend
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError, UnsupportedModelError
from langchain_specdec.models.compatibility import common_vocabulary
from langchain_specdec.models.private_tokenizer import PrivateTokenizer, encode_within
from tests.support.backends import ScriptedBackend
from tests.support.chat_templates import chat_tokenizer
from tests.support.tiny_models import byte_tokenizer, loaded, tiny_model

pytestmark = pytest.mark.transformers

TEXTS = ["", "hello", " two  spaces ", "Grüße, 東京 \U0001f600", "a<eos>b <bos>", "\n\t x", "x" * 300]


class PythonTokenizer(PreTrainedTokenizer):
    """A tokenizer written in Python: a token is a character."""

    def __init__(self, **kwargs: Any) -> None:
        self._known = {chr(code): code for code in range(256)}
        super().__init__(eos_token="<eos>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {**self._known, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._known.get(token, 63)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def with_bos() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    bos = ("<bos>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    return tokenizer


def with_prefix_space() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    return tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {"▁": 256, "e": 257, "▁e": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "e")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<eos>", "<bos>"])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 260), ("<eos>", 259)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


KINDS = [byte_tokenizer, chat_tokenizer, with_bos, with_prefix_space, sentencepiece_like, PythonTokenizer]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("is_cut", [False, True])
def test_tokens_are_those_of_a_clean_tokenizer(make: Any, is_cut: bool) -> None:
    clean, used = make(), make()
    if is_cut and used.is_fast:
        used.backend_tokenizer.enable_truncation(4, direction="left")
        used.backend_tokenizer.enable_padding(length=64)
    used.model_max_length, used.truncation_side, used.padding_side = 3, "left", "left"
    private = PrivateTokenizer(used)
    for text in TEXTS:
        for adds in (True, False):
            assert private.encode(text, add_special_tokens=adds) == clean(text, add_special_tokens=adds).input_ids
    for text in TEXTS[:-1]:
        ids = clean(text, add_special_tokens=False).input_ids
        expected = clean.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert private.decode(ids) == expected


def test_the_callers_tokenizer_is_neither_changed_nor_followed() -> None:
    own = byte_tokenizer()
    own.backend_tokenizer.enable_truncation(4)
    own.backend_tokenizer.enable_padding(length=64)
    state = own.backend_tokenizer.to_str()
    private = PrivateTokenizer(own)
    private.encode("a long text")
    assert own.backend_tokenizer.to_str() == state
    assert private.original is own
    own.add_tokens([AddedToken("long")])
    own(["a long text"], truncation=True, max_length=2)
    assert private.encode("a long text") == byte_tokenizer()("a long text").input_ids
    assert PrivateTokenizer.of(private) is private


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_tokenizer_of_our_own_is_copied_once_it_is_asked_for(make: Any, is_cut: bool) -> None:
    own, text = make(), "a long text"
    if is_cut and own.is_fast:
        own.backend_tokenizer.enable_truncation(4, direction="left")
        own.backend_tokenizer.enable_padding(length=64)
    expected, state = make()(text).input_ids, own.backend_tokenizer.to_str() if own.is_fast else None
    private = PrivateTokenizer(own, is_ours=True)
    assert private.copied is own
    assert private.encode(text) == expected
    assert private.latest is private
    handed_out = private.original
    assert handed_out is not own
    assert handed_out is private.original
    assert state is None or handed_out.backend_tokenizer.to_str() == state
    handed_out.add_tokens([AddedToken("long")])
    handed_out.chat_template = "x"
    assert private.encode(text) == expected
    # Whoever begins with it anew gets what has become of it.
    latest = private.latest
    assert latest.copied.chat_template == "x"
    assert latest.original is handed_out
    assert len(latest.ids_of_added("long")) == 1
    assert private.ids_of_added("long") == []


def test_a_tokenizer_is_copied_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    private, copied = PrivateTokenizer(byte_tokenizer(), is_ours=True), copy.deepcopy
    copies: list[Any] = []

    def counting(tokenizer: Any) -> Any:
        copies.append(tokenizer)
        return copied(tokenizer)

    monkeypatch.setattr(copy, "deepcopy", counting)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: private.original, range(64)))
    assert {id(tokenizer) for tokenizer in found} == {id(private.original)}
    assert copies == [private.copied]


@pytest.mark.parametrize("make", [byte_tokenizer, PythonTokenizer])
def test_other_threads_may_use_the_callers_tokenizer(make: Any) -> None:
    own, text = make(), "The boat leaves at nine. " * 8
    expected, cut = own(text).input_ids, own(text, truncation=True, max_length=16).input_ids
    private, is_done = PrivateTokenizer(own), threading.Event()
    theirs: list[list[int]] = []

    def use() -> None:
        while not is_done.is_set():
            theirs.append(own(text, truncation=True, max_length=16).input_ids)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        ours = [private.encode(text) for _ in range(200)]
    finally:
        is_done.set()
        thread.join()
    assert all(ids == expected for ids in ours)
    assert theirs
    assert all(ids == cut for ids in theirs)


def test_a_backend_cuts_no_prompt_and_neither_does_its_chat() -> None:
    text = "A document of some length. " * 8
    counts = []
    for is_cut in (False, True):
        tokenizer = chat_tokenizer()
        if is_cut:
            tokenizer.backend_tokenizer.enable_truncation(16)
            tokenizer.backend_tokenizer.enable_padding(length=400)
        backend = LocalBackend(tiny_model(vocab_size=len(tokenizer)), tokenizer, max_length=500, num_slots=1)
        if is_cut:
            tokenizer(text, truncation=True, max_length=8)
        chat = ChatSpeculative(backend=backend, max_new_tokens=1)
        llm = SpeculativeLLM(backend=backend, max_new_tokens=1)
        chats = [chat.invoke(text + end).usage_metadata for end in ("", "<", "<|im_end|>")]
        info = llm.generate([text]).generations[0][0].generation_info
        assert info is not None
        counts.append(([usage and usage["input_tokens"] for usage in chats], info["prompt_tokens"]))
        counts[-1] = (*counts[-1], llm.get_num_tokens(text))  # type: ignore[assignment]
        backend.close()
    assert counts[0] == counts[1]
    assert counts[0][1] == len(text)


def test_pairs_are_compared_by_all_of_a_text() -> None:
    model, tokenizers = tiny_model(), [byte_tokenizer(), byte_tokenizer()]
    # Cut to nothing but the beginning, which is the same, the texts would look alike.
    for tokenizer in tokenizers:
        tokenizer.backend_tokenizer.enable_truncation(1)
    tokenizers[1].backend_tokenizer.normalizer = normalizers.Lowercase()
    target, draft = (loaded(model, tokenizer=tokenizer) for tokenizer in tokenizers)
    assert common_vocabulary(target, target) is None
    assert common_vocabulary(target, draft) is not None


# Texts that are far too long


def test_a_huge_text_is_refused_by_its_beginning() -> None:
    seen: list[int] = []

    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * (len(text) // 4)

    with pytest.raises(
        PromptTooLongError,
        match=r"1000000 characters, and its first \d+ alone have more tokens than max_length, which is 100",
    ):
        encode_within(encode, "x" * 1_000_000, "prompt", 100)
    assert sum(seen) < 5000


@pytest.mark.parametrize("size", [0, 10, 1_000, 100_000])
def test_any_other_text_is_encoded_as_a_whole(size: int) -> None:
    # Such as one of few tokens: spaces, or what a tokenizer knows nothing of.
    encoded = encode_within(lambda text: [len(text)], "x" * size, "prompt", 100)
    assert encoded == [size]
    assert encode_within(lambda text: [1] * len(text), "x" * size, "prompt", None) == [1] * size


def test_a_text_of_a_few_tokens_too_many_is_encoded() -> None:
    # The engine tells the count, and what max_new_tokens would fit.
    assert len(encode_within(lambda text: [1] * len(text), "x" * 1500, "prompt", 100)) == 1500


def test_backend_and_chat_refuse_a_huge_prompt_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LocalBackend(tiny_model(vocab_size=300), chat_tokenizer(), max_length=64, num_slots=1)
    seen: list[int] = []
    call = type(backend.tokenizer).__call__

    def counting(self: Any, text: str, **kwargs: Any) -> Any:
        seen.append(len(text))
        return call(self, text, **kwargs)

    monkeypatch.setattr(type(backend.tokenizer), "__call__", counting)
    for model in (SpeculativeLLM(backend=backend), ChatSpeculative(backend=backend)):
        with pytest.raises(PromptTooLongError, match="too long"):
            model.invoke("word " * 200_000)
    assert max(seen) < 10_000
    with pytest.raises(InvalidParameterError, match="not valid Unicode"):
        SpeculativeLLM(backend=backend).invoke("a\udc80" * 2000)
    backend.close()


def test_a_chat_is_rendered_by_the_copy() -> None:
    own = chat_tokenizer()
    backend = LocalBackend(tiny_model(vocab_size=len(own)), own, max_length=64, num_slots=1)
    chats = [ChatSpeculative(backend=backend), ChatSpeculative(backend=backend, tokenizer=own)]
    counts = [chat.get_num_tokens_from_messages([HumanMessage("Hi")]) for chat in chats]
    own.chat_template = "x"
    chats.append(ChatSpeculative(backend=backend))
    own.apply_chat_template = None
    assert [chat.get_num_tokens_from_messages([HumanMessage("Hi")]) for chat in chats] == [*counts, counts[0]]
    backend.close()


def test_a_tokenizer_that_cannot_be_copied_is_refused() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.lock = threading.Lock()
    message = r"The tokenizer \(\w+\) cannot be copied, .*: cannot pickle '_thread.lock' object\. Give one as"
    with pytest.raises(UnsupportedModelError, match=message):
        LocalBackend(tiny_model(vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(UnsupportedModelError, match=message):
        ChatSpeculative(backend=ScriptedBackend("x"), tokenizer=tokenizer)
    with pytest.raises(UnsupportedModelError, match=message):
        TGIBackend("http://127.0.0.1:1", tokenizer=tokenizer)


def test_copies_are_not_needed_twice() -> None:
    tokenizer = chat_tokenizer()
    backend = LocalBackend(tiny_model(vocab_size=len(tokenizer)), tokenizer, max_length=64, num_slots=1)
    chat = ChatSpeculative(backend=backend)
    assert chat._template._private is backend.private_tokenizer
    assert copy.deepcopy(chat)._template._private is backend.private_tokenizer
    backend.close()


class Shouting(PreTrainedTokenizerFast):
    """Decodes in its own way, as a few tokenizers of transformers do."""

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return str(super().decode(*args, **kwargs)).upper()


def test_tokens_are_decoded_as_the_tokenizers_own_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = byte_tokenizer()
    shouting = Shouting(tokenizer_object=plain.backend_tokenizer, eos_token="<eos>", bos_token="<bos>")
    rng = random.Random(0)
    for tokenizer in (plain, shouting, PythonTokenizer()):
        private = PrivateTokenizer(tokenizer)
        for _ in range(30):
            tokens = [rng.randrange(258) for _ in range(rng.randrange(9))]
            own = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert private.decode(tokens) == own
    # What transformers does around it is four times the work, twice a token.
    private = PrivateTokenizer(plain)
    monkeypatch.setattr(type(private.copied), "decode", lambda *_, **__: pytest.fail("the long way"))
    assert private.decode([72, 105]) == plain.backend_tokenizer.decode([72, 105])

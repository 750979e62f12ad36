"""Tokenizers out of GGUF files: the tokens of a text are those that the model's own tokenizer gives."""

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from langchain_specdec.errors import ModelLoadError, UnsupportedModelError
from langchain_specdec.models.gguf.file import GGUFFile
from langchain_specdec.models.gguf.tokenizer import build_backend, ending_tokens, read_tokenizer
from tests.support.gguf_files import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

pytestmark = pytest.mark.transformers

CORPUS = [
    "The quick brown fox isn't lazy; it's “naïve” — Straße, don't we'll I'LL THEY'RE",
    "def f(x: int) -> int:\n\treturn x ** 2  # square\r\n\n\n    if a == b:  pass",
    "emoji 😀 👩\u200d👩 日本語のテキスト、中文文本。한국어 Привет, мир! שלום 1234567890 3.14159 ½ ² ٣",
    "CamelCaseWords andSoOn XMLHttpRequest /usr/bin/env python3.11 e\u0301 é",
] * 3
# Texts that pre-tokenizers cut in different ways.
TEXTS = st.lists(
    st.sampled_from(
        [
            *"aAbzZ019 \t\n\r.,!/'’_-é½²٣日한Ж",
            *["\u00a0", "\u3000", "e\u0301", "ǅ", "'s", "'LL", "  ", "\r\n", "<|x|>"],
            *["don't", "12345", "😀", "👩\u200d👩", "▁", "<s>", "</s>", "Camel", "\ufeff", "\u2028"],
        ]
    ),
    max_size=12,
).map("".join)

# As they stand in the tokenizer.json of the models that the names belong to.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
ORIGINALS: dict[str, list[Any]] = {
    "gpt-2": [],
    "smollm": [DIGITS],
    "starcoder": [DIGITS],
    "llama-bpe": [LLAMA3],
    "dbrx": [LLAMA3],
    "qwen2": [QWEN2],
    "tekken": [TEKKEN],
    "gpt-4o": [GPT4O],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGITS],
}
TAKES_WHOLE = ("llama-bpe", "tekken")


@cache
def original(pre: str) -> Tokenizer:
    """A trained tokenizer of the kind that a name stands for."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre in TAKES_WHOLE))
    splits = [pre_tokenizers.Split(Regex(s), "isolated") if isinstance(s, str) else s for s in ORIGINALS[pre]]
    has_own = ORIGINALS[pre] in ([], [DIGITS])
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=has_own))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|x|>", normalized=False, special=True)])
    tokenizer.add_tokens([AddedToken("Camel", normalized=False)])
    return tokenizer


def as_fields(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """What the converter writes of a byte-level tokenizer, with two fillers at the end."""
    vocab, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
    tokens = sorted(vocab, key=vocab.__getitem__)
    kinds = [
        NORMAL if index not in added else CONTROL if added[index].special else USER_DEFINED
        for index in range(len(tokens))
    ]
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, f"[PAD{len(tokens)}]", f"[PAD{len(tokens) + 1}]"],
        "tokenizer.ggml.token_type": [*kinds, UNUSED, UNUSED],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": vocab["<|x|>"],
        "tokenizer.ggml.add_bos_token": False,
    }


def file_of(fields: dict[str, Any]) -> GGUFFile:
    return GGUFFile(Path("x.gguf"), fields, {})


@cache
def read(pre: str) -> Tokenizer:
    return build_backend(file_of(as_fields(original(pre), pre)))


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_tokenizers_give_the_tokens_of_the_original(pre):
    @given(TEXTS)
    def same(text: str) -> None:
        ours, theirs = read(pre).encode(text), original(pre).encode(text)
        assert ours.ids == theirs.ids
        for skip in (True, False):
            assert read(pre).decode(ours.ids, skip) == original(pre).decode(ours.ids, skip)

    same()
    for text in CORPUS:
        assert read(pre).encode(text).ids == original(pre).encode(text).ids


def test_fillers_are_no_tokens_of_texts():
    fields = as_fields(original("llama-bpe"), "llama-bpe")
    filler = fields["tokenizer.ggml.tokens"][-1]
    assert filler not in read("llama-bpe").get_vocab()
    assert len(read("llama-bpe").encode(filler).ids) > 1
    # A token of that name which is none stays.
    fields["tokenizer.ggml.token_type"][-1] = NORMAL
    assert filler in build_backend(file_of(fields)).get_vocab()


# SentencePiece.

PIECES = [
    "▁",
    "t",
    "h",
    "e",
    "a",
    "n",
    "s",
    "th",
    "▁th",
    "▁the",
    "an",
    "▁a",
    "▁an",
    "es",
    "ss",
    "▁t",
    "he",
    "▁▁",
    "tha",
]


def piece_fields(**changes: Any) -> dict[str, Any]:
    """A vocabulary as Llama 2's: unknown, control and byte tokens, then pieces, the first of which are merged first."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *PIECES, "<|im_end|>"]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(PIECES), CONTROL]
    scores = [0.0] * 259 + [-float(index) for index in range(len(PIECES))] + [-1000.0]
    found = {
        "model": "llama", "pre": "default", "tokens": tokens, "token_type": kinds, "scores": scores,
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    } | changes  # fmt: skip
    return {"general.architecture": "llama"} | {f"tokenizer.ggml.{name}": value for name, value in found.items()}


def spelled_out(text: str) -> list[str]:
    """SentencePiece's BPE, one merge after the other: of all neighbours that are a piece, the best, from the left."""
    symbols = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        merged = [a + b for a, b in pairwise(symbols)]
        best = min((PIECES.index(piece), at) for at, piece in enumerate([*merged, PIECES[-1]]) if piece in PIECES)
        if best[1] == len(merged):
            break
        symbols[best[1] : best[1] + 2] = [merged[best[1]]]
    return [
        token
        for symbol in symbols
        for token in ([symbol] if symbol in PIECES else [f"<0x{byte:02X}>" for byte in symbol.encode()])
    ]


@given(st.text(alphabet="theans é\n😀", max_size=14))
def test_sentence_piece_merges_by_score(text):
    assert pieces().encode(text, add_special_tokens=False).tokens == spelled_out(text)
    assert pieces().decode(pieces().encode(text).ids) == text


@cache
def pieces() -> Tokenizer:
    return build_backend(file_of(piece_fields()))


def test_a_text_begins_and_ends_as_the_file_says():
    plain, begun = spelled_out("the"), ["<s>", *spelled_out("the")]
    for flags, expected in (
        ({}, begun),
        ({"add_bos_token": False}, plain),
        ({"add_eos_token": True}, [*begun, "</s>"]),
        ({"add_bos_token": False, "add_eos_token": True}, [*plain, "</s>"]),
    ):
        tokenizer = build_backend(file_of(piece_fields(**flags)))
        assert tokenizer.encode("the").tokens == expected
        assert tokenizer.encode("the", add_special_tokens=False).tokens == plain
    fields = as_fields(original("llama-bpe"), "llama-bpe")
    fields["tokenizer.ggml.bos_token_id"] = fields["tokenizer.ggml.eos_token_id"]
    del fields["tokenizer.ggml.add_bos_token"]
    assert build_backend(file_of(fields)).encode("a").tokens == ["<|x|>", "a"]
    fields["tokenizer.ggml.pre"] = "qwen2"
    assert build_backend(file_of(fields)).encode("a").tokens == ["a"]


def test_special_tokens_are_found_in_texts_and_left_out_of_them():
    assert pieces().encode("the<|im_end|>the</s>", add_special_tokens=False).tokens == [
        *spelled_out("the"), "<|im_end|>", *spelled_out("the"), "</s>",
    ]  # fmt: skip
    assert pieces().decode(pieces().encode("the<|im_end|>").ids) == "the"


def test_phi3_takes_the_space_after_its_own_tokens():
    fields = piece_fields() | {"general.architecture": "phi3"}
    tokenizer = build_backend(file_of(fields))
    assert tokenizer.encode("<s> the").ids == pieces().encode("<s> the").ids
    assert tokenizer.encode("<|im_end|> the").ids != pieces().encode("<|im_end|> the").ids
    assert tokenizer.encode("<|im_end|> the").ids == tokenizer.encode("<|im_end|>the").ids


def test_gemmas_spaces_are_taken_first_and_texts_have_none_of_their_own():
    fields = piece_fields(add_space_prefix=False)
    tokens, kinds, scores = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores"))
    index = tokens.index("▁▁")
    tokens[index], kinds[index], scores[index] = "  ", USER_DEFINED, -1000.0  # as the converter writes it
    tokenizer = build_backend(file_of(fields))
    assert tokenizer.encode("the", add_special_tokens=False).tokens == ["the"] if "the" in PIECES else ["th", "e"]
    assert tokenizer.encode("the  the", add_special_tokens=False).tokens == ["th", "e", "▁▁", "th", "e"]
    assert tokenizer.decode(tokenizer.encode(" the  the ").ids) == " the  the "


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, [2, 278]),  # <|im_end|> ends a message
        ({"eos_token_id": 278}, [278]),
        ({"eot_token_id": 5, "eom_token_id": 4}, [2, 4, 5, 278]),
        ({"eos_token_id": 10**6}, [278]),
    ],
)
def test_tokens_that_end_a_text(fields, ends):
    assert ending_tokens(file_of(piece_fields(**fields))) == ends


def test_a_token_that_looks_like_the_end_of_a_message_and_is_none():
    fields = piece_fields()
    fields["tokenizer.ggml.token_type"][278] = NORMAL
    assert ending_tokens(file_of(fields)) == [2]


def test_the_class_is_that_of_transformers_with_the_template_of_the_file():
    fields = piece_fields() | {"tokenizer.chat_template": "{{ messages[0].content }}{{ eos_token }}"}
    tokenizer = read_tokenizer(file_of(fields), 77)
    assert type(tokenizer).__module__.startswith("transformers.tokenization_utils")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token) == (
        "<s>", "</s>", "<unk>", None,
    )  # fmt: skip
    assert tokenizer.model_max_length == 77
    assert set(tokenizer("the")) == {"input_ids", "attention_mask"}
    assert tokenizer("the").input_ids == [1, *tokenizer.convert_tokens_to_ids(spelled_out("the"))]
    messages = [{"role": "user", "content": "the"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "the</s>"
    fields |= {"tokenizer.chat_template.tool_use": "tools"}
    assert read_tokenizer(file_of(fields), 77).apply_chat_template(
        messages, tokenize=False, chat_template="tool_use"
    ) == ("tools")
    assert read_tokenizer(file_of(piece_fields()), 77).chat_template is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pre": "unheard-of", "model": "gpt2", "merges": []}, "cuts texts in the way 'unheard-of'"),
        ({"model": "t5"}, "is of kind 't5'; 'gpt2' (byte-level BPE) and 'llama'"),
        ({"model": None}, "is of kind None"),
    ],
)
def test_unknown_kinds_are_refused_with_what_to_give(changes, words):
    with pytest.raises(UnsupportedModelError) as caught:
        read_tokenizer(file_of(piece_fields(**changes)), 77)
    assert str(caught.value).startswith(f"The tokenizer of 'x.gguf' {words}")
    assert str(caught.value).endswith("by AutoTokenizer.from_pretrained, and give it as tokenizer=.")


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": [1, 2]},
        {"token_type": [1]},
        {"token_type": 3},
        {"scores": [0.0]},
        {"scores": None},
        {"model": "gpt2", "pre": "gpt-2"},
        {"model": "gpt2", "pre": "gpt-2", "merges": ["no pair of tokens"]},
        {"model": "gpt2", "pre": "gpt-2", "merges": ["nopair"]},
        {"model": "gpt2", "pre": "gpt-2", "merges": [3]},
        {"tokens": ["x"] * 278, "token_type": [CONTROL] * 278},
    ],
)
def test_damaged_tokenizers(changes):
    with pytest.raises(ModelLoadError, match=r"^'x.gguf' is damaged: [^\n]* give tokenizer=\.$"):
        read_tokenizer(file_of(piece_fields(**changes)), 77)

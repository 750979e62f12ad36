"""What a vocabulary spells: the text of a special token within an answer is text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import llguidance.hf
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from langchain_specdec.grammar.constraint import GrammarCompiler
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.vocabulary import Vocabulary
from tests.support.chat_templates import MARKUP, QWEN, SPECIALS, chat_tokenizer

pytestmark = pytest.mark.transformers

_CORPUS = ["A lamp by the sea < s > | </ think > im_end 0 1 2", "the keeper of the lamp"] * 9


def _trained(model: Any, trainer: Callable[..., Any]) -> PreTrainedTokenizerFast:
    """A tokenizer whose special tokens stand in its model's vocabulary, too."""
    raw = Tokenizer(model)
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "</s>", "[INST]"]
    raw.train_from_iterator(_CORPUS, trainer(vocab_size=90, special_tokens=special, show_progress=False))
    raw.add_special_tokens(special)
    raw.add_tokens(["lamp", "<think>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": lambda: chat_tokenizer(QWEN),
    "bpe": lambda: _trained(models.BPE(unk_token="<unk>"), trainers.BpeTrainer),
    "unigram": lambda: _trained(models.Unigram(), trainers.UnigramTrainer),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_spell_what_they_spell_under_their_own_names(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    size, eos = len(tokenizer), tokenizer.eos_token_id
    vocabulary = Vocabulary(tokenizer, size, (eos,))
    own = llguidance.hf.from_tokenizer(tokenizer, n_vocab=size, eos_token=eos)
    special = [own.is_special_token(token) for token in range(size)]
    assert [vocabulary.tokens.is_special_token(token) for token in range(size)] == special
    assert vocabulary.spellings == [b"" if special[t] else own.decode_bytes([t]) for t in range(size)]


@pytest.mark.parametrize("text", [*SPECIALS[:4], *MARKUP[:3], "a <eos> b"])
def test_the_text_of_a_special_token_is_forced_as_text(text: str) -> None:
    tokenizer = chat_tokenizer(QWEN)
    special = set(tokenizer.added_tokens_decoder)
    compiler = GrammarCompiler(tokenizer, len(tokenizer), (tokenizer.eos_token_id,))
    # As a value, as a name, and in a text that follows a pattern.
    for grammar in (
        Grammar(schema={"const": text}),
        Grammar(schema={"type": "object", "properties": {text: {"const": 1}}, "required": [text]}),
        Grammar(regex="".join(f"\\{c}" if c in "|[]" else c for c in text)),
    ):
        *answer, _ = compiler.compile(grammar, 99).shortest(99) or []
        written = tokenizer.decode(answer)
        assert not special & set(answer)
        assert (written if grammar.regex else json.loads(written)) in (text, {text: 1})

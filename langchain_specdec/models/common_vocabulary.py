"""The tokens that two tokenizers have in common, and texts of the one as tokens of the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from langchain_specdec.errors import InvalidParameterError, UnsupportedModelError
from langchain_specdec.grammar.token_names import special_names
from langchain_specdec.grammar.vocabulary import Vocabulary
from langchain_specdec.models.private_tokenizer import PrivateTokenizer

# Lower than any score, and yet a number, so that what a grammar forbids is lower still.
_NEVER = -1e30
# What SentencePiece calls the tokens that spell a byte of whatever has no token.
_BYTE_FALLBACK = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_PROBE_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs.\n\n\tdef f(x): return x ** 2  # twice",
    "Grüße aus Köln, 東京 \U0001f600 — naïve café?",
    " leading and trailing spaces  ",
)
_NUM_PROBED_ENTRIES = 4000


class TokenSpellings(NamedTuple):
    """What the tokens of a model spell.

    Attributes:
        spelled: The bytes of each token, and whether they are the name of a special one.
        byte_fallbacks: Tokens that spell a byte where nothing else does.
        bos: The token that begins a text; None where there is none.
        eos: The token that ends one; None where there is none.
        begins: Whether every text of the model is made to begin with the former.
    """

    spelled: Sequence[tuple[bytes, bool]]
    byte_fallbacks: frozenset[int]
    bos: int | None
    eos: int | None
    begins: bool = False

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int) -> TokenSpellings:
        """Those of a tokenizer, as far as a model of so many tokens knows them.

        Raises:
            InvalidParameterError: It is of a kind whose tokens' spelling cannot be known.
        """
        eos = tokenizer.eos_token_id
        # Where no token ends a text, which one is said to is no matter here.
        vocabulary = Vocabulary(tokenizer, vocab_size, [eos or 0])
        special = set(vocabulary.special_ids.values())
        spelled = [(text, token in special) for token, text in enumerate(vocabulary.texts[:vocab_size])]
        fallbacks = frozenset(t for name, t in tokenizer.get_vocab().items() if _BYTE_FALLBACK.fullmatch(name))
        bos = tokenizer.bos_token_id
        begins = bos is not None and tokenizer("", add_special_tokens=True).input_ids[:1] == [bos]
        return cls(spelled, fallbacks, bos, eos, begins)

    @property
    def first_of_each(self) -> dict[tuple[bytes, bool], int]:
        """The first token of each spelling; one for a byte where there is no other."""
        first: dict[tuple[bytes, bool], int] = {}
        for token, spelling in sorted(enumerate(self.spelled), key=lambda each: each[0] in self.byte_fallbacks):
            if spelling[0]:
                first.setdefault(spelling, token)
        return first


class CommonVocabulary:
    """The tokens that a draft model shares with its target although their tokenizers differ.

    Tokens are the same if they spell the same bytes, and special ones if they have the same name; those that begin and
    end a text are the same, whatever they are called. The draft model picks among the common ones only: this is
    token-level intersection (TLI, algorithm 4 of Timor et al. 2025, "Accelerating LLM Inference with Lossless
    Speculative Decoding Algorithms for Heterogeneous Vocabularies", https://arxiv.org/abs/2502.05202). The target's
    other tokens are spelled for it in as long pieces as it has, one by one, so that its text grows with the target's
    and nothing of it changes later.

    Args:
        target: Tokens of the target.
        draft: Tokens of the draft model.

    Attributes:
        num_tokens: Tokens of the target.
    """

    def __init__(self, target: TokenSpellings, draft: TokenSpellings) -> None:
        self.num_tokens = len(target.spelled)
        self._spelled = target.spelled
        self._bos = target.bos
        self._begin = draft.bos if draft.begins else None
        self._theirs = draft.first_of_each
        self._longest = max((len(text) for text, is_special in self._theirs if not is_special), default=0)
        ours = target.first_of_each
        pairs = {token: self._theirs[spelling] for spelling, token in ours.items() if spelling in self._theirs}
        self._spelt: dict[int, tuple[int, ...]] = {}
        # The end comes last: one token may be both, and only the end is drafted.
        for end, theirs in ((target.bos, draft.bos), (target.eos, draft.eos)):
            if end is not None and theirs is not None:
                # Each token of the draft model stands for one of the target's, and yet spells both.
                pairs = {token: other for token, other in pairs.items() if other != theirs}
                pairs[end] = theirs
                self._spelt[end] = (theirs,)
        self._pairs = pairs
        self._spelt |= {token: (theirs,) for token, theirs in pairs.items()}
        self._on_device: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, token: int) -> bool:
        return token in self._pairs

    @property
    def share(self) -> float:
        """Common tokens among those of the target that spell anything."""
        return len(self) / max(sum(bool(text) for text, _ in self._spelled), 1)

    def begin(self, tokens: Sequence[int]) -> list[int]:
        """What stands before a text of the target for the draft model, whose texts may all begin with a token."""
        return [] if self._begin is None or list(tokens[:1]) == [self._bos] else [self._begin]

    def spell(self, tokens: Iterable[int]) -> list[int]:
        """Tokens of the target as tokens of the draft model."""
        return [theirs for token in tokens for theirs in self._spell(token)]

    def _spell(self, token: int) -> tuple[int, ...]:
        if token not in self._spelt:
            text = self._spelled[token][0] if token < self.num_tokens else b""
            self._spelt[token] = tuple(self._longest_pieces(text))
        return self._spelt[token]

    def _longest_pieces(self, text: bytes) -> Iterator[int]:
        at = 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                if (theirs := self._theirs.get((text[at:end], False))) is not None:
                    yield theirs
                    at = end
                    break
            else:
                # A byte that the draft model has no token for.
                at += 1

    def scores(self, logits: Tensor, vocab_size: int) -> Tensor:
        """The draft model's logits as logits of the target's tokens; those that are not common are never picked.

        Args:
            logits: `[..., vocab of the draft model]`.
            vocab_size: Number of the target's logits.

        Returns:
            float32 `[..., vocab_size]`.
        """
        ours, theirs, _ = self._indices(logits.device)
        scores = logits.new_full((*logits.shape[:-1], vocab_size), _NEVER, dtype=torch.float32)
        return scores.index_copy_(-1, ours, logits.index_select(-1, theirs).float())

    def theirs(self, tokens: Tensor) -> Tensor:
        """The draft model's tokens for common ones of the target, int64 of any shape; for others one of no meaning."""
        return self._indices(tokens.device)[2][tokens]

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._on_device:
            ours, theirs = (torch.tensor(list(ids), device=device) for ids in (self._pairs, self._pairs.values()))
            # As far as the target's logits may go: they are padded.
            by_ours = torch.zeros(self.num_tokens, dtype=torch.int64, device=device)
            by_ours[ours] = theirs
            self._on_device[device] = ours, theirs, by_ours
        return self._on_device[device]


class ModelTokens(NamedTuple):
    """The tokens of a model.

    Attributes:
        name: What the model is called, for messages.
        tokenizer: Its tokenizer.
        num_tokens: Tokens that it knows.
    """

    name: str
    tokenizer: PrivateTokenizer
    num_tokens: int


def shared_tokens(target: ModelTokens, draft: ModelTokens) -> CommonVocabulary | None:
    """What the tokenizers of a model and its draft model have in common; None where they are the same.

    Raises:
        UnsupportedModelError: They have nothing in common, or cannot be compared.
    """
    if _are_same(target, draft):
        return None
    pair = f"{draft.name} cannot draft for {target.name}"
    advice = f"Choose a draft model of {target.name}'s own family, or drafter='prompt_lookup', which needs none."
    try:
        ours, theirs = (TokenSpellings.of(each.tokenizer.copied, each.num_tokens) for each in (target, draft))
    except InvalidParameterError as error:
        msg = (
            f"{pair}: their tokenizers differ, and what the tokens of one of them spell cannot be told: only fast "
            f"tokenizers that are byte-level or SentencePiece's can be compared. {advice}"
        )
        raise UnsupportedModelError(msg) from error
    common = CommonVocabulary(ours, theirs)
    if not len(common):
        raise UnsupportedModelError(f"{pair}: their tokenizers have no token in common. {advice}")
    return common


def _are_same(target: ModelTokens, draft: ModelTokens) -> bool:
    """Whether two models read and write the same tokens, and the draft model knows them all.

    Equal sizes prove nothing, so the vocabularies are compared entry by entry, and what some texts become. Marks that
    one of them has by a name of its own, as of a later chat format, make no difference: they are few, and whatever
    the draft model takes them for, the text around them is the same. The one that begins texts does: models write
    badly without theirs.
    """
    ours, theirs = (each.tokenizer.copied.get_vocab() for each in (target, draft))
    own_marks = [
        special_names(each.tokenizer.copied) - others.keys() - {each.tokenizer.bos_token}
        for each, others in ((target, theirs), (draft, ours))
    ]
    ours, theirs = (
        {name: token for name, token in vocab.items() if name not in marks}
        for vocab, marks in zip((ours, theirs), own_marks, strict=True)
    )
    if ours != theirs or max(ours.values(), default=0) >= draft.num_tokens:
        return False
    # Entries of the vocabulary, so that each merge of a few thousand is put to the test.
    entries = sorted(ours.values())[:: max(len(ours) // _NUM_PROBED_ENTRIES, 1)]
    texts = *_PROBE_TEXTS, "".join(target.tokenizer.decode([entry]) for entry in entries)
    return all(
        target.tokenizer.encode(text, add_special_tokens=False)
        == draft.tokenizer.encode(text, add_special_tokens=False)
        for text in texts
    )

"""The tokenizer of a server's model, in this process."""

from __future__ import annotations

from typing import Any

from typing_extensions import Self

from langchain_specdec.backends.tgi.parameters import VocabularySize
from langchain_specdec.errors import InvalidParameterError, ModelLoadError
from langchain_specdec.models.private_tokenizer import PrivateTokenizer


class LocalTokenizer:
    """Counts tokens as the server will.

    Args:
        tokenizer: A Hugging Face tokenizer. It is copied.

    Attributes:
        private: The copy.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.private = PrivateTokenizer.of(tokenizer)

    @classmethod
    def load(cls, tokenizer: Any) -> Self | None:
        """A tokenizer, or the one of an id or folder; None stays None.

        Raises:
            ModelLoadError: It cannot be found or read.
            InvalidParameterError: It is no tokenizer.
        """
        if tokenizer is None:
            return None
        if isinstance(tokenizer, PrivateTokenizer):
            return cls(tokenizer)
        if isinstance(tokenizer, str):
            from transformers import AutoTokenizer

            try:
                return cls(AutoTokenizer.from_pretrained(tokenizer))
            except Exception as error:
                msg = f"The tokenizer of {tokenizer} cannot be loaded: {error}"
                raise ModelLoadError(msg) from error
        if not callable(tokenizer) or not hasattr(tokenizer, "bos_token_id"):
            msg = f"tokenizer must be a Hugging Face tokenizer, a model id or a folder, got {tokenizer!r}."
            raise InvalidParameterError(msg)
        return cls(tokenizer)

    @property
    def vocabulary(self) -> VocabularySize | None:
        """How many tokens the model has; None where the tokenizer does not tell."""
        tokenizer = self.private.copied
        if not hasattr(tokenizer, "__len__"):
            return None
        return VocabularySize(min(getattr(tokenizer, "vocab_size", len(tokenizer)), len(tokenizer)), len(tokenizer))

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens that the server makes of a prompt, with those that it puts in front."""
        return self.private.encode(prompt, what="prompt")

    def without_bos(self, text: str) -> str:
        """A text without the token that begins it, where the server will put it there once more.

        Chat templates write that token, and TGI adds it to every prompt.
        """
        bos_id, bos = self.private.bos_token_id, self.private.bos_token
        if bos is None or not text.startswith(bos):
            return text
        # Two more characters tell; the tokens of the whole may be many.
        return text.removeprefix(bos) if self.prompt_ids(text[: len(bos) + 2])[:2] == [bos_id, bos_id] else text

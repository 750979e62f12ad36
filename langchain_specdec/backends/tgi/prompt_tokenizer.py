"""The tokenizer of a server's model, in this process."""

from __future__ import annotations

import copy
import threading
from typing import Any

from typing_extensions import Self

from langchain_specdec.errors import InvalidParameterError, ModelLoadError


class LocalTokenizer:
    """Counts tokens as the server will.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # A tokenizer is not thread-safe, and its owner may use the original.
        self._own = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, tokenizer: Any) -> Self | None:
        """A tokenizer, or the one of an id or folder; None stays None.

        Raises:
            ModelLoadError: It cannot be found or read.
            InvalidParameterError: It is no tokenizer.
        """
        if tokenizer is None:
            return None
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

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a text, special tokens at its beginning included."""
        with self._lock:
            return list(self._own(text, verbose=False).input_ids)

    def without_bos(self, text: str) -> str:
        """A text without the token that begins it, where the server will put it there once more.

        Chat templates write that token, and TGI adds it to every prompt.
        """
        bos_id, bos = self._own.bos_token_id, self._own.bos_token
        if bos_id is None or not text.startswith(bos):
            return text
        return text.removeprefix(bos) if self.token_ids(text)[:2] == [bos_id, bos_id] else text

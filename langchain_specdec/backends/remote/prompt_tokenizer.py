"""The tokenizer of a server's model, in this process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import Self

from langchain_specdec.backends.remote.facts import ModelInfo
from langchain_specdec.backends.remote.failures import in_short, is_loopback
from langchain_specdec.errors import InvalidParameterError, ModelLoadError
from langchain_specdec.models.private_tokenizer import PrivateTokenizer

# A server tells its limits itself.
_ANY_LENGTH = 2**31


class VocabularySize(NamedTuple):
    """How many tokens a model has, at least and at most: tokens added to a tokenizer may be unknown to its model."""

    least: int
    most: int


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
            loaded, why = _from_pretrained(tokenizer)
            if loaded is None:
                msg = f"The tokenizer of {tokenizer} cannot be loaded: {why}"
                raise ModelLoadError(msg)
            return cls(PrivateTokenizer(loaded, is_ours=True))
        if not callable(tokenizer) or not hasattr(tokenizer, "bos_token_id"):
            msg = f"tokenizer must be a Hugging Face tokenizer, a model id or a folder, got {tokenizer!r}."
            raise InvalidParameterError(msg)
        return cls(tokenizer)

    @classmethod
    def of_server(cls, name: str, revision: str | None, url: str) -> Self:
        """The tokenizer of the model that a server names, from its folder if that is of this machine, or the Hub.

        Args:
            name: The model's id or folder.
            revision: Commit on the Hub, where it is known.
            url: Address of the server.

        Raises:
            ModelLoadError: It cannot be found or read.
        """
        is_path = _is_path(name)
        loaded, why = None, "that is a path here, and a server on another machine does not choose what is opened here."
        if is_loopback(url) or not is_path:
            loaded, why = _from_pretrained(name, None if is_path else revision)
        if loaded is None:
            msg = (
                f"The tokenizer of {name!r}, the model of the server at {url}, cannot be loaded: {why} Give the "
                f"tokenizer of that model, its id, or a folder with it: tokenizer=."
            )
            raise ModelLoadError(msg)
        return cls(PrivateTokenizer(loaded, is_ours=True))

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

        Chat templates write that token, and servers add it to every prompt.
        """
        bos_id, bos = self.private.bos_token_id, self.private.bos_token
        if bos is None or not text.startswith(bos):
            return text
        # Two more characters tell; the tokens of the whole may be many.
        return text.removeprefix(bos) if self.prompt_ids(text[: len(bos) + 2])[:2] == [bos_id, bos_id] else text


class TokenizerInUse:
    """The tokenizer that a user gave, or that of the model which the server names.

    Args:
        given: What the user gave.
        url: Address of the server.
    """

    def __init__(self, given: LocalTokenizer | None, url: str) -> None:
        self._given = given
        self._url = url
        self._lock = threading.Lock()
        self._learned: tuple[str, LocalTokenizer] | None = None

    def certain(self, info: ModelInfo | None) -> LocalTokenizer | None:
        """The same as `current`, but None where the server's model is not known."""
        return self._given if info is None else self.current(info)

    def current(self, info: ModelInfo | None) -> LocalTokenizer | None:
        """The one for the model that the server has now, if there is one already."""
        if self._given is not None or self._learned is None:
            return self._given
        name, tokenizer = self._learned
        return tokenizer if info is None or info.model_id == name else None

    def load(self, info: ModelInfo) -> LocalTokenizer | None:
        """The same, loaded where that was not done yet.

        Raises:
            ModelLoadError: It cannot be found or read.
        """
        with self._lock:
            known = self.current(info)
            if known is None:
                known = self._load(info)
                self._learned = info.model_id, known
            return known

    def _load(self, info: ModelInfo) -> LocalTokenizer:
        """Load the tokenizer of the server's model."""
        return LocalTokenizer.of_server(info.model_id, info.model_sha, self._url)


def _is_path(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # none that a file could have
        return False


def _from_pretrained(name: str, revision: str | None = None) -> tuple[Any, str]:
    """A tokenizer by its id, folder or GGUF file, or None and why not. Code that comes with it is not run."""
    from transformers import AutoTokenizer

    from langchain_specdec.models.embedded import EMBEDDED_MODEL_ID, gguf_file
    from langchain_specdec.models.gguf.file import open_gguf
    from langchain_specdec.models.gguf.tokenizer import read_tokenizer

    options = {} if revision is None else {"revision": revision}
    file = gguf_file() if name == EMBEDDED_MODEL_ID else Path(name)
    try:
        if file is not None and file.suffix == ".gguf" and file.is_file():
            # As `specdec serve` names them.
            return read_tokenizer(open_gguf(file), _ANY_LENGTH), ""
        # With None in place of False, it would ask at the terminal.
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options), ""
    except Exception as error:
        # The Hub's exceptions hold the request with the user's token, so none is handed on.
        return None, in_short(str(error))

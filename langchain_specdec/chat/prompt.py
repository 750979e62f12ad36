"""A prompt as a chat template has rendered it, and the images in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from langchain_specdec.chat.images import numbers_in, with_texts
from langchain_specdec.chat.special_tokens import ProtectedEncoder, Sealed


class Prompt(NamedTuple):
    """A rendered prompt.

    Attributes:
        rendered: Its text, sealed, with marks for images.
        sealed: What was sealed in it.
        encoder: Encodes it.
    """

    rendered: str
    sealed: Sealed
    encoder: ProtectedEncoder

    @property
    def image_numbers(self) -> list[int]:
        """The numbers of the images in it, in its order."""
        return numbers_in(self.rendered)

    def with_images(self, texts: Sequence[str]) -> Prompt:
        """The same with what stands for each image in the prompts of the model; special tokens in it are special."""
        return self._replace(rendered=with_texts(self.rendered, texts))

    def token_ids(self, begin: str = "", limit: int | None = None) -> list[int]:
        """Its tokens, see `ChatTemplate.token_ids`."""
        return self.encoder.encode(self.rendered + begin, self.sealed, limit)

    def text(self, begin: str = "") -> str:
        """Itself for a server that takes text; what looks like a special token is broken by a zero-width space."""
        return self.encoder.as_text(self.rendered + begin, self.sealed)

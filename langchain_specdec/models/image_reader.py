"""Images as a model takes them: read from their bytes, by its image processor, and the tokens that stand for them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_specdec.completions.prompt_images import PromptImage
from langchain_specdec.errors import InvalidParameterError

Made = Mapping[str, Any]
"""What an image processor makes of an image, tensors and numbers by name."""


@dataclass(frozen=True)
class ImageTokens:
    """How images stand in the prompts of a family.

    Attributes:
        placeholder: What a chat template writes where an image stands.
        token_id: The token that stands for a part of an image.
        text: Says what text takes the placeholder's place.
        num_parts: Says how many times `token_id` is in it.
    """

    placeholder: str
    token_id: int
    text: Callable[[Made], str]
    num_parts: Callable[[Made], int]


@dataclass(frozen=True)
class ReadImages:
    """Images that a processor has read, in the order of the prompt.

    Attributes:
        texts: What stands in the prompt in place of each placeholder.
    """

    texts: Sequence[str]
    _token_id: int
    _counts: Sequence[int]
    _digests: Sequence[int]
    _inputs: Sequence[Made]

    def placed(self, token_ids: Sequence[int]) -> tuple[PromptImage, ...]:
        """The images by the tokens of the prompt that their texts have become part of."""
        places = [index for index, token in enumerate(token_ids) if token == self._token_id]
        if len(places) != sum(self._counts):
            msg = (
                f"The prompt has {len(places)} tokens that stand for images, and its images take {sum(self._counts)}. "
                "The chat template and the image processor of this model do not belong together."
            )
            raise InvalidParameterError(msg)
        images, first = [], 0
        for count, digest, inputs in zip(self._counts, self._digests, self._inputs, strict=True):
            start = places[first]
            images.append(PromptImage(start, start + count, digest, inputs))
            first += count
        return tuple(images)


class ImageReader:
    """Reads images for one model.

    Args:
        processor: An image processor of transformers.
        tokens: How images stand in this family's prompts.
        given: Names of what the processor makes that the model's forward takes.
    """

    def __init__(self, processor: Any, tokens: ImageTokens, given: Sequence[str]) -> None:
        self._processor = processor
        self._tokens = tokens
        self._given = given

    @property
    def placeholder(self) -> str:
        """What a chat template writes where an image stands."""
        return self._tokens.placeholder

    def read(self, images: Sequence[bytes]) -> ReadImages:
        """Read images out of the bytes of their files (PNG, JPEG, WebP, ...), the first frame of each.

        Raises:
            InvalidParameterError: It is no image, is damaged, has more pixels than Pillow takes for harmless, or is one
                that the processor cannot work with.
        """
        made = [self._processed(data, number) for number, data in enumerate(images, 1)]
        return ReadImages(
            [self._tokens.text(each) for each in made],
            self._tokens.token_id,
            [self._tokens.num_parts(each) for each in made],
            [_digest(data) for data in images],
            [{name: each[name] for name in self._given} for each in made],
        )

    def _processed(self, data: bytes, number: int) -> Made:
        try:
            picture = _opened(data)
        except MemoryError:
            raise
        except Exception as error:
            msg = f"Image {number} of the prompt {_fault(error)}"
            raise InvalidParameterError(msg) from error
        made: Made
        try:
            made = self._processor([picture], return_tensors="pt")
        except MemoryError:
            raise
        except Exception as error:
            msg = (
                f"Image {number} of the prompt, of {picture.width} x {picture.height} pixels, cannot be given to the "
                f"model: its image processor raised {type(error).__name__}: {error}"
            )
            raise InvalidParameterError(msg) from error
        if missing := [name for name in self._given if name not in made]:
            msg = (
                f"The image processor makes no {' and no '.join(missing)}, which this model is given of an image. It "
                "is that of another model: give the processor of this one as tokenizer=, or in the model's folder."
            )
            raise InvalidParameterError(msg)
        return made


def _opened(data: bytes) -> Any:
    """The picture in a file, upright, as transformers opens it."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        # Pillow warns of what may be made to take all memory, and refuses only twice as much.
        most, size = Image.MAX_IMAGE_PIXELS, image.width * image.height
        if most is not None and size > most:
            msg = f"it has {size} pixels, and Pillow takes no more than {most} for harmless."
            raise Image.DecompressionBombError(msg)
        return ImageOps.exif_transpose(image).convert("RGB")


def _fault(error: Exception) -> str:
    """What is wrong with an image, as the rest of a sentence."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "is none that Pillow can read. Give the bytes of a PNG, JPEG, WebP or GIF file."
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large: {error} Make it smaller."
    return f"cannot be read ({type(error).__name__}: {error}). Is it damaged?"


def _digest(data: bytes) -> int:
    return -1 - int.from_bytes(hashlib.sha256(data).digest()[:8], "big")

"""The bytes of an image that a message gives: nothing is fetched for one, and none is read from a disk."""

from __future__ import annotations

import base64
from typing import Any, NoReturn

from langchain_specdec.errors import InvalidParameterError

_SHAPE = '{"type": "image", "base64": "...", "mime_type": "image/png"}'
_LONGEST_SHOWN = 80
_STANDARD = str.maketrans("-_", "+/")


def image_bytes(data: Any, address: str) -> bytes:
    """The file of an image.

    Args:
        data: What it is given as: bytes, or base64. None where it is not.
        address: Where it is said to be; "" where that is not told.

    Raises:
        InvalidParameterError: It is an address, a damaged text or no image at all.
    """
    if data is None:
        _refuse_address(address)
    if isinstance(data, str):
        # Some leave the padding out, and some use the alphabet of addresses.
        packed = "".join(data.split()).rstrip("=").translate(_STANDARD)
        try:
            data = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
        except ValueError as error:
            msg = f"The base64 of an image is damaged: {error}. Encode the bytes of its file: {_SHAPE}."
            raise InvalidParameterError(msg) from error
    if not isinstance(data, (bytes, bytearray)):
        kind = type(data).__name__
        msg = f"An image is given as an object of type {kind}. Give the bytes of its file as base64: {_SHAPE}."
        raise InvalidParameterError(msg)
    if not data:
        msg = f"An image has no data. Give the bytes of its file as base64: {_SHAPE}."
        raise InvalidParameterError(msg)
    return bytes(data)


def _refuse_address(address: str) -> NoReturn:
    shown = address if len(address) <= _LONGEST_SHOWN else f"{address[:_LONGEST_SHOWN]}..."
    if address.startswith("data:"):
        msg = f"An image is given as the data URL {shown!r}, which is not in base64. Give it as {_SHAPE}."
    elif address:
        msg = (
            f"An image is given by its address, {shown!r}. Nothing is fetched: whoever writes a message would choose "
            f"what this machine asks for. Read the image yourself, and give its bytes as base64: {_SHAPE}."
        )
    else:
        msg = f"An image has no data. Give the bytes of its file as base64, and no id of another provider: {_SHAPE}."
    raise InvalidParameterError(msg)

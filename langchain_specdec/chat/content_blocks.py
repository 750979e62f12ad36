"""Content blocks of LangChain, of providers and of MCP as text: links, files, pictures and sounds too."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, FunctionMessage, ToolMessage
from pydantic_core import to_jsonable_python

from langchain_specdec.chat.image_bytes import image_bytes
from langchain_specdec.chat.images import Images, mark_of, split
from langchain_specdec.errors import InvalidParameterError

# Blocks whose text a message shows, and the key that it stands under.
_TEXT_KEYS = dict.fromkeys(("text", "text-plain", "input_text", "output_text"), "text") | {"refusal": "refusal"}
# Blocks that hold what a model would have to see or hear, or a file, or a link to one of these.
_MEDIA = frozenset(
    {
        *("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file"),
        *("file_url", "input_file", "document", "media", "resource", "resource_link", "text-plain"),
    }
)
# Where blocks hold what they are about; the first that is there counts.
_ADDRESS_KEYS = ("url", "uri", "file_uri", "file_url", "image_url", "audio_url", "video_url")
_DATA_KEYS = ("base64", "data", "blob", "file_data", "b64_json", "bytes")
_TYPE_KEYS = ("mime_type", "mimeType", "media_type")
_TITLE_KEYS = ("title", "filename", "name", "file_name", "file_id")
# What else blocks of files have; a row of a tool's own has other keys.
_BLOCK_KEYS = frozenset(
    {
        *("type", "id", "source_type", "index", "extras", "metadata", "annotations", "detail", "source", "resource"),
        *(*_ADDRESS_KEYS, *_DATA_KEYS, *_TYPE_KEYS, *_MEDIA),
    }
)
_DEEPEST = 3
_DATA_URL = re.compile(r"data:([^;,]*)[^,]{0,100}?;base64,")
# Shorter texts are rarely files, and do no harm.
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\r\n]{200,}={0,2}\n?")
_TEXT_TYPE = re.compile(r"text/.*|application/(.*\+)?(json|xml|yaml|javascript|sql|toml)")


class _Media(NamedTuple):
    """What a block is about: a link, or bytes, in whatever form they are given."""

    kind: str
    title: str
    address: str
    data: Any
    is_image: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.title and not self.address and self.data is None

    @property
    def link(self) -> str:
        return f"{self.title}: {self.address}" if self.title else self.address

    def note(self, why: str = "this model reads text") -> str:
        """What stands in its place where it cannot be shown."""
        size = _readable(_num_bytes(self.data)) if isinstance(self.data, (str, bytes, bytearray)) else ""
        told = ", ".join(filter(None, (self.title or self.address, self.kind, size)))
        return f"[{told}, left out: {why}]"

    @property
    def text(self) -> str | None:
        """The text of a file that is one; None where it is none."""
        if not _TEXT_TYPE.fullmatch(self.kind.partition(";")[0].strip().lower()):
            return None
        try:
            if isinstance(self.data, str):
                return base64.b64decode("".join(self.data.split()), validate=True).decode()
            return bytes(self.data).decode() if isinstance(self.data, (bytes, bytearray)) else None
        except ValueError:
            return None


class _Holder(NamedTuple):
    """What holds a block: a message, the name of the tool whose result it is, and the images of the call."""

    message: BaseMessage
    tool: str
    images: Images

    @property
    def is_result(self) -> bool:
        return isinstance(self.message, (ToolMessage, FunctionMessage))

    @property
    def why_no_image(self) -> str:
        """Why an image of a result, or of an answer, stands there as a note."""
        return "this model reads text" if self.images.why_none else "it cannot be shown here"

    def refusal(self, kind: str, *, is_image: bool = False) -> InvalidParameterError:
        what = f"A message of type {self.message.type!r} has content of type {kind!r}"
        if is_image:
            return InvalidParameterError(
                f"{what}, and the model can be given no images: {self.images.why_none}. Leave that out, or give what "
                f"it says as text."
            )
        read = "text" if self.images.why_none else "text and images"
        return InvalidParameterError(
            f"{what}. The model reads {read} only: leave that out, or give what it says as text."
        )


def content_text(message: BaseMessage, tool: str = "", images: Images | None = None) -> str:
    """The text of a message; what is no text as a link or a note, but for messages that a person writes.

    Args:
        message: The message.
        tool: Name of the tool whose result it is, for errors.
        images: Gets the images of the message, and gives the marks that stand for them in the text; None refuses those
            of a person.

    Raises:
        InvalidParameterError: A person's message, or the system's, holds something other than text, and images where
            the model can be given some; or an image is given by an address, or damaged; or a result cannot be written.
    """
    if isinstance(message.content, str):
        return message.content
    return _joined(_pieces(message.content, _Holder(message, tool, Images() if images is None else images)))


def with_notes(text: str, images: Images, numbers: Collection[int]) -> str:
    """A text with notes in place of some images.

    Args:
        text: The text, with marks for images.
        images: The images.
        numbers: Those that are left out.
    """

    def shown(piece: str | int) -> tuple[str, bool]:
        if isinstance(piece, str):
            return piece, False
        return (images.note(piece), True) if piece in numbers else (mark_of(piece), False)

    return _joined(map(shown, split(text)))


def as_json(value: Any, what: str) -> Any:
    """A value as JSON holds it: dates, numbers, models and the like of programs that wrote it themselves as texts.

    Args:
        value: The value.
        what: What it is, for errors.

    Raises:
        InvalidParameterError: It cannot be written so.
    """
    try:
        return to_jsonable_python(value, fallback=str)
    except (ValueError, RecursionError) as error:
        msg = f"{what} cannot be written as JSON: {' '.join(str(error).split())}."
        raise InvalidParameterError(msg) from error


def _joined(pieces: Iterable[tuple[str, bool]]) -> str:
    """Texts as they are; what stands for something else gets lines of its own."""
    joined, was_apart = "", False
    for text, is_apart in pieces:
        if joined and text and (is_apart or was_apart) and not (joined.endswith("\n") or text.startswith("\n")):
            joined += "\n"
        joined += text
        was_apart = is_apart if text else was_apart
    return joined


def _pieces(content: Sequence[Any], holder: _Holder) -> Iterator[tuple[str, bool]]:
    for block in content:
        if isinstance(block, Mapping):
            yield from _of_block(block, holder)
        else:
            yield str(block), False


def _of_block(block: Mapping[str, Any], holder: _Holder) -> Iterator[tuple[str, bool]]:
    # Those of Bedrock have no type, but one key. What a tool found may have any, and hold no more than a text there.
    keys = (key for key, value in block.items() if key in _MEDIA and isinstance(value, Mapping))
    kind = str(block.get("type") or next(keys, "text"))
    text = block.get(_TEXT_KEYS.get(kind, ""))
    if isinstance(text, str):
        yield text, False
    elif kind in _MEDIA:
        yield from _of_media(block, kind, holder)
    elif holder.is_result:
        yield _found(block["json"] if kind == "json" and "json" in block else block, holder.tool), False
    elif not isinstance(holder.message, AIMessage):
        raise holder.refusal(kind)
    # Else thoughts are not repeated, calls stand in `tool_calls`, and what other providers' servers did is no text.


def _found(value: Any, tool: str) -> str:
    """What a tool found, in whatever form."""
    what = f"The result of the tool {tool!r}" if tool else "The result of a tool"
    return json.dumps(as_json(_without_bytes(value, what), what), ensure_ascii=False)


def _of_media(block: Mapping[str, Any], kind: str, holder: _Holder) -> Iterator[tuple[str, bool]]:
    source = block.get("source")
    inner = source if isinstance(source, Mapping) else block.get("resource")
    if isinstance(inner, Mapping) and inner.get("type") == "content":
        content = inner.get("content")
        yield from _pieces([content] if isinstance(content, str) else content or [], holder)
        return
    media = _media(block, kind)
    text = _plain_text(block, inner)
    text = media.text if text is None else text
    if text is not None:
        yield text, True
    elif holder.is_result and media.is_empty and block.keys() - _BLOCK_KEYS:
        # A row of a tool's own, such as that of a file in a listing.
        yield _found(block, holder.tool), True
    elif mark := _mark_of_image(media, holder):
        yield mark, False
    elif holder.is_result or isinstance(holder.message, AIMessage):
        # A thread goes on, whatever its tools and other models found.
        yield (media.link if media.address and media.data is None else media.note(holder.why_no_image)), True
    else:
        raise holder.refusal(kind, is_image=media.is_image)


def _mark_of_image(media: _Media, holder: _Holder) -> str:
    """The mark of an image that the model is given; "" where the block is none, or is not shown to it."""
    if not media.is_image or holder.images.why_none or isinstance(holder.message, AIMessage):
        return ""
    try:
        data = image_bytes(media.data, media.address)
    except InvalidParameterError:
        if holder.is_result:
            return ""
        raise
    return holder.images.add(data, media.note(holder.why_no_image), is_found=holder.is_result)


def _plain_text(block: Mapping[str, Any], inner: Any) -> str | None:
    """The text that a file is given as."""
    key = "data" if isinstance(inner, Mapping) and inner.get("type") == "text" else "text"
    for holder, name in ((block, "text"), (inner, key)):
        if isinstance(holder, Mapping) and isinstance(text := holder.get(name), str):
            return text
    return None


def _media(block: Mapping[str, Any], kind: str) -> _Media:
    found = [(key, value) for part in _parts(block, _DEEPEST) for key, value in part.items()]

    def first(keys: Sequence[str]) -> Any:
        return next((value for wanted in keys for key, value in found if key == wanted and _is_filled(value)), None)

    title, address, data, media_type = map(first, (_TITLE_KEYS, _ADDRESS_KEYS, _DATA_KEYS, _TYPE_KEYS))
    family = kind.removeprefix("input_").removesuffix("_url")
    if family == "image" and address is None and data is None:
        # Processors of transformers take whatever stands here.
        given = first(("image",))
        address, data = (given, None) if isinstance(given, str) else (None, given)
    for value in (address, data):
        if isinstance(value, str) and (match := _DATA_URL.match(value)):
            address, data, media_type = None, value[match.end() :], media_type or match[1]
    if isinstance(suffix := first(("format",)), str) and not media_type:
        media_type = f"{family}/{suffix}"
    default = "text/plain" if kind == "text-plain" else family
    found_kind = str(media_type or default)
    is_image = family == "image" or found_kind.lower().startswith("image/")
    return _Media(found_kind, str(title or ""), str(address or ""), data, is_image)


def _parts(block: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    """A block and what it is made of, from the outside."""
    yield block
    if depth:
        for value in block.values():
            if isinstance(value, Mapping):
                yield from _parts(value, depth - 1)


def _is_filled(value: Any) -> bool:
    return value is not None and not isinstance(value, Mapping) and value not in ("", b"")


def _without_bytes(value: Any, what: str) -> Any:
    """A value with notes in place of bytes and of files in base64."""
    try:
        return _noted(value, "")
    except RecursionError as error:
        msg = f"{what} cannot be written as JSON: it is nested too deeply."
        raise InvalidParameterError(msg) from error


def _noted(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _noted(item, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_noted(item, key) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return _Media("bytes", "", "", value).note()
    if isinstance(value, str):
        if match := _DATA_URL.match(value):
            return _Media(match[1] or "file", "", "", value[match.end() :]).note()
        if key in _DATA_KEYS and _BASE64.fullmatch(value):
            return _Media("file", "", "", value).note()
    return value


def _num_bytes(data: str | bytes | bytearray) -> int:
    return len(data.rstrip("=\n")) * 3 // 4 if isinstance(data, str) else len(data)


def _readable(num_bytes: int) -> str:
    for unit, size in (("MB", 1_000_000), ("kB", 1_000)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{num_bytes} bytes"

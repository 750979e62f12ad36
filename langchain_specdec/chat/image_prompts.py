"""Prompts with images in them: what stands for each there, and what the model is given of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage

from langchain_specdec.backends.base import Backend
from langchain_specdec.chat.arrangements import Message
from langchain_specdec.chat.content_blocks import with_notes
from langchain_specdec.chat.images import Images
from langchain_specdec.chat.messages import to_template_messages
from langchain_specdec.chat.prompt import Prompt
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.errors import InvalidParameterError

if TYPE_CHECKING:
    from langchain_specdec.models.image_reader import ImageReader, ReadImages


def images_for(backend: Backend, *, takes_messages: bool = False) -> Images:
    """Takes the images of a call, where the backend's model can be given some.

    Args:
        backend: Where it will run.
        takes_messages: Whether the call may be sent to a server as messages.
    """
    may_send = takes_messages and backend.takes_messages
    return Images("" if backend.image_reader is not None or may_send else backend.why_no_images)


def placeholder_of(backend: Backend) -> str:
    """What a template writes where an image stands; "" where the model can be given none."""
    reader = backend.image_reader
    return "" if reader is None else reader.placeholder


def template_for(
    backend: Backend, tokenizer: Any, source: str | None, variables: Mapping[str, Any] | None
) -> ChatTemplate:
    """The chat template of a backend's model.

    Args:
        backend: Has the model.
        tokenizer: The model's; None where it is not known.
        source: A template in place of its own, or the name of one of several that it has.
        variables: Further variables of the template.

    Raises:
        InvalidParameterError: There is no tokenizer.
        UnsupportedModelError: There is no template.
    """
    if tokenizer is None:
        msg = (
            f"{type(backend).__name__} has no tokenizer, and so no chat template. Give that of the model it serves: "
            f"tokenizer=, a Hugging Face tokenizer, its id or its folder."
        )
        raise InvalidParameterError(msg)
    # A server is not asked for a name that only errors show.
    name = "The server's model" if backend.is_remote else backend.model_name
    return ChatTemplate(tokenizer, name, source, variables, placeholder_of(backend))


def read_into(
    write: Callable[[Sequence[Message]], Prompt], rows: Sequence[Message], images: Images, reader: ImageReader | None
) -> tuple[Prompt, ReadImages | None]:
    """A prompt with what stands for its images in it, and the images; None where there are none.

    An image of a person that cannot be read is refused. That of a tool becomes a note: a thread goes on, whatever its
    tools found.

    Args:
        write: Makes the prompt of messages.
        rows: The messages.
        images: Their images.
        reader: Reads them.

    Raises:
        InvalidParameterError: The template cannot render the messages, or an image cannot be read.
    """
    prompt = write(rows)
    numbers = prompt.image_numbers
    if not numbers or reader is None:
        return prompt, None
    try:
        read = reader.read([images.data(number) for number in numbers])
    except InvalidParameterError:
        broken = [number for number in images.found if number in numbers and not _is_readable(images, number, reader)]
        if not broken:
            raise
        noted = [{**row, "content": with_notes(row["content"], images, broken)} for row in rows]
        return read_into(write, noted, images, reader)
    return prompt.with_images(read.texts), read


def num_tokens(
    messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]], template: ChatTemplate, backend: Backend
) -> int:
    """Tokens of the prompt of messages, with their images and tools; 0 without messages.

    Raises:
        InvalidParameterError: The template cannot render them, or an image cannot be read.
    """
    images = images_for(backend)
    rows = to_template_messages(messages, images)

    def write(rows: Sequence[Message]) -> Prompt:
        return template.prompt(rows, tools, images=images)

    return len(read_into(write, rows, images, backend.image_reader)[0].token_ids()) if rows else 0


def _is_readable(images: Images, number: int, reader: ImageReader) -> bool:
    try:
        reader.read([images.data(number)])
    except InvalidParameterError:
        return False
    return True

"""Prompts as the tokens that the model is given, in its chat format where it has one."""

from __future__ import annotations

from contextlib import suppress

from langchain_specdec.backends.local import LocalBackend
from langchain_specdec.chat.template import ChatTemplate
from langchain_specdec.errors import InvalidParameterError, PromptTooLongError
from langchain_specdec.sampling.params import MAX_STOP_LENGTH
from langchain_specdec.training.prompt_files import GivenPrompt

# Stands for a user's text in a rendered template.
_MARK = "specdec7marks3here"


class PromptFormat:
    """How prompts for a model are written.

    Args:
        backend: The model.
        is_chat: Whether texts are a user's messages; None: where the model has a chat template.

    Raises:
        InvalidParameterError: They are to be messages, and the model has no template.
    """

    def __init__(self, backend: LocalBackend, is_chat: bool | None = None) -> None:
        self._backend = backend
        has_template = backend.private_tokenizer.copied.chat_template is not None
        if is_chat and not has_template:
            msg = f"{backend.model_name} has no chat format. Leave out --chat, or take the model's chat version."
            raise InvalidParameterError(msg)
        self.template: ChatTemplate | None = None
        if has_template and is_chat is not False:
            self.template = ChatTemplate(backend.private_tokenizer, backend.model_name)

    def token_ids(self, prompt: GivenPrompt, room: int) -> list[int] | None:
        """The tokens of a prompt; None where it has more than there is room for.

        Raises:
            InvalidParameterError: It is a conversation, and the model has no chat format or cannot render it.
        """
        with suppress(PromptTooLongError):
            ids = self._encoded(prompt, room)
            return ids if 0 < len(ids) <= room else None
        return None

    def _encoded(self, prompt: GivenPrompt, room: int) -> list[int]:
        if self.template is None:
            if prompt.messages:
                msg = (
                    f"The prompts have conversations, and {self._backend.model_name} is given plain text. Leave out "
                    "--raw, take the model's chat version, or give prompts of text."
                )
                raise InvalidParameterError(msg)
            return self._backend.prompt_ids(prompt.text)
        messages = [dict(message) for message in prompt.messages] or [{"role": "user", "content": prompt.text}]
        return self.template.token_ids(messages, prompt.tools, limit=room)

    @property
    def opened_turn(self) -> tuple[list[int], tuple[str, ...]]:
        """What a person's turn begins with, as tokens, and strings that end it beside the model's own tokens.

        The model writes prompts of its own behind it. Without a chat format it is the token that begins a text.

        Raises:
            InvalidParameterError: There is no such beginning.
        """
        tokenizer = self._backend.private_tokenizer
        if self.template is None:
            begin = tokenizer.bos_token_id
            if begin is None:
                # Some models begin a text by what ends one.
                begin = tokenizer.copied.eos_token_id
            if begin is None:
                msg = f"{self._backend.model_name} has no token that begins a text. Give prompts in a file: --prompts."
                raise InvalidParameterError(msg)
            return [begin], ()
        rendered = self.template.prompt([{"role": "user", "content": _MARK}])
        before, found, after = rendered.rendered.partition(_MARK)
        if not found:
            msg = f"The chat template of {self._backend.model_name} shows no message of a person. Give --prompts."
            raise InvalidParameterError(msg)
        first = next((line.strip() for line in after.splitlines() if line.strip()), "")
        return rendered.encoder.encode(before, rendered.sealed), (first[:MAX_STOP_LENGTH],) if first else ()

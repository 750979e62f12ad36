"""What a server is to be: who may reach it, and how much it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.options import Option, option_field


@dataclass(frozen=True)
class ServerSettings:
    """Limits and doors of a server.

    Each is declared with its default, what it is, and what it may be.

    Attributes:
        api_key: What clients have to send with every request that is not for health or figures, or several such keys;
            None: nothing.

    Raises:
        InvalidParameterError: A value is out of its range, or a key is no text that a header can hold, or given twice.
    """

    # fmt: off
    host: str = option_field("127.0.0.1", "Address to listen on. `0.0.0.0` is open to the network.", str)
    port: int = option_field(8000, "Port to listen on; 0 takes a free one.", int, 0, 65535)
    allowed_host: Sequence[str] | None = option_field(
        None, "Name under which clients may reach the server, beside localhost and addresses. May be repeated.", list)
    served_model_name: str | None = option_field(
        None, "What the model is called in OpenAI's interface.", str, unset="as it is given")
    max_waiting: int = option_field(
        64, "Requests that may wait for a slot; more are refused with 429.", int, 0, 100_000)
    request_timeout: float = option_field(
        600.0, "Seconds that a request may take.", float, 0.001, 86_400.0, range="a number of seconds above 0")
    body_limit: int = option_field(2_000_000, "Most bytes of a request's body.", int, 1, 1 << 30)
    drain_timeout: int = option_field(
        90, "Seconds that running requests have to end after SIGTERM.", int, 1, 86_400)
    share: bool = option_field(
        False, "Let all API keys share what is kept of earlier prompts and answers; else each has its own.", bool)
    # fmt: on
    api_key: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, option in SETTINGS.items():
            option.check(name, getattr(self, name))
        # They are not shown, not even wrong ones.
        if any(not key or not key.isascii() or not key.isprintable() or " " in key for key in self.api_keys):
            msg = "The API key must be printable ASCII without spaces, at least one character."
            raise InvalidParameterError(msg)
        if len(set(self.api_keys)) < len(self.api_keys):
            msg = "An API key is given twice. Give each client, or each group of them, its own."
            raise InvalidParameterError(msg)

    @property
    def api_keys(self) -> Sequence[str]:
        """All keys; none where none is needed."""
        if self.api_key is None:
            return ()
        return (self.api_key,) if isinstance(self.api_key, str) else tuple(self.api_key)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in SETTINGS)
        return f"ServerSettings({shown}, api_key={'set' if self.api_keys else None})"


SETTINGS: dict[str, Option] = {
    name: field.metadata["option"]
    for name, field in ServerSettings.__dataclass_fields__.items()
    if "option" in field.metadata
}
"""Every option by its name."""

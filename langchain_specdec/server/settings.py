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
        api_key: What clients have to send with every request that is not for health or figures; None: nothing.

    Raises:
        InvalidParameterError: A value is out of its range, or the key is no text that a header can hold.
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
    # fmt: on
    api_key: str | None = None

    def __post_init__(self) -> None:
        for name, option in SETTINGS.items():
            option.check(name, getattr(self, name))
        if self.api_key is None:
            return
        # It is not shown, not even a wrong one.
        if not self.api_key or not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key:
            msg = "The API key must be printable ASCII without spaces, at least one character."
            raise InvalidParameterError(msg)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in SETTINGS)
        return f"ServerSettings({shown}, api_key={'set' if self.api_key else None})"


SETTINGS: dict[str, Option] = {
    name: field.metadata["option"]
    for name, field in ServerSettings.__dataclass_fields__.items()
    if "option" in field.metadata
}
"""Every option by its name."""

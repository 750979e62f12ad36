"""How fields of a server's config are declared: as options under a heading, with the checks that configs share."""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from typing import Annotated, Any

from pydantic import Field, SecretStr

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Group(str, Enum):
    """Headings that the options are listed under."""

    SPECULATION = "Speculation"
    MODEL = "Model"
    LIMITS = "Limits"
    HARDWARE = "Hardware"
    SERVER = "Server"
    RUNTIME = "How it is run"


def option(default: Any, description: str, group: Group, *, is_flag: bool = True, is_shown: bool = True) -> Any:
    """A field; `is_flag` where it is an option of `text-generation-launcher` of the same name."""
    extra: dict[str, Any] = {"group": group.value, "flag": is_flag}
    return Field(default, description=description, json_schema_extra=extra, repr=is_shown)


def check_is_not_embedded(model: str) -> None:
    """Refuse the model that `specdec` alone has, before another engine looks for it on the Hub.

    Raises:
        ValueError: It is that one.
    """
    if model == "embedded":
        msg = "'embedded' is a model of specdec alone: take engine='specdec', or another model."
        raise ValueError(msg)


def checked_key(value: SecretStr | None) -> SecretStr | None:
    """A secret that goes into a header.

    Raises:
        ValueError: It cannot.
    """
    if value is not None and not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        msg = "A key must be visible ASCII characters without spaces, as it goes into a header. It is not shown here."
        raise ValueError(msg)
    return value


def checked_hostname(value: str) -> str:
    """The address that a server listens on; `localhost` is 127.0.0.1.

    Raises:
        ValueError: It is no IP address.
    """
    if value == "localhost":
        return "127.0.0.1"
    if not is_address(value):
        msg = f"hostname must be an IP address, such as 127.0.0.1 or 0.0.0.0, got {value!r}."
        raise ValueError(msg)
    return str(ipaddress.ip_address(value))


def is_address(value: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def checked_size(value: str) -> str:
    """An amount of shared memory, as Docker takes it.

    Raises:
        ValueError: It is none.
    """
    if not re.fullmatch(r"\d+[bkmg]?", value.lower()):
        msg = f"shm_size must be a number with b, k, m or g, such as 1g, got {value!r}."
        raise ValueError(msg)
    return value


def checked_devices(value: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of GPUs.

    Raises:
        ValueError: There are none, or one is named twice.
    """
    if not value or len(set(value)) < len(value):
        msg = "devices must be different GPU numbers, at least one."
        raise ValueError(msg)
    return value


def checked_env(value: dict[str, str]) -> dict[str, str]:
    """Variables for an environment.

    Raises:
        ValueError: A name or a value cannot be one's.
    """
    for name, text in value.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or "\0" in text:
            msg = f"{name!r} cannot be an environment variable."
            raise ValueError(msg)
    return value

"""Formats of strings as regular expressions: no wider than what Python and Pydantic read."""

from __future__ import annotations

import re
from datetime import date

_YEAR = r"(?:000[1-9]|00[1-9]\d|0[1-9]\d{2}|[1-9]\d{3})"
_FOURTH = r"(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = rf"(?:\d{{2}}{_FOURTH}|{_FOURTH}00)"
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
# No leap seconds: Python knows none.
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_CLOCK = r"(?:\d{1,5}H(?:\d{1,5}M(?:\d{1,5}S)?)?|\d{1,5}M(?:\d{1,5}S)?|\d{1,5}S)"
_DURATION = (
    rf"P(?:\d{{1,5}}W|(?:\d{{1,5}}Y(?:\d{{1,5}}M(?:\d{{1,5}}D)?)?|\d{{1,5}}M(?:\d{{1,5}}D)?|\d{{1,5}}D)(?:T{_CLOCK})?"
    rf"|T{_CLOCK})"
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d{2}|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_HEXTET = r"[0-9a-fA-F]{1,4}"
_IPV6 = "(?:" + "|".join(
    [
        rf"{_HEXTET}(?::{_HEXTET}){{7}}",
        *(
            # So many groups before the double colon, and as many behind it as leave one out.
            (rf"{_HEXTET}(?::{_HEXTET}){{{before - 1}}}" if before else "")
            + "::"
            + (rf"(?:{_HEXTET}(?::{_HEXTET}){{0,{6 - before}}})?" if before < 7 else "")
            for before in range(8)
        ),
    ]
) + ")"  # fmt: skip
# Without a second hyphen, as in "xn--", which stands for another text; the last label is no number.
_LABEL = r"[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,30}"
_DOMAIN = rf"(?:{_LABEL}\.){{1,4}}[a-zA-Z]{{2,24}}"
_EMAIL = rf"[a-zA-Z0-9_+-]{{1,30}}(?:\.[a-zA-Z0-9_+-]{{1,15}}){{0,2}}@{_DOMAIN}"
_PORT = r"(?::(?:[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5]))?"
_HOST = rf"(?:(?:{_LABEL}\.){{0,4}}[a-zA-Z](?:-?[a-zA-Z0-9]){{0,30}}|{_IPV4}|\[{_IPV6}\]){_PORT}"
_NAMED_HOST = r"(?:[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*\.){0,3}[a-zA-Z][a-zA-Z0-9]*(?:-[a-zA-Z0-9]+)*(?::[1-9]\d{0,3})?"
_USER = r"(?:[a-zA-Z0-9._~-]+(?::[a-zA-Z0-9._~-]+)?@)?"
_PATH_CHARACTER = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_TAIL = rf"(?:/{_PATH_CHARACTER}*)*(?:\?(?:{_PATH_CHARACTER}|[/?])*)?(?:\#(?:{_PATH_CHARACTER}|[/?])*)?"
_SCHEME = r"[a-zA-Z][a-zA-Z0-9+.-]*"
_URI = (
    rf"(?:{_SCHEME}://{_USER}{_HOST}{_TAIL}|file://(?:/{_PATH_CHARACTER}+)+"
    rf"|(?:mailto|urn|tel|news|data):(?:{_PATH_CHARACTER}|[/?])+)"
)
_HEX = "0123456789abcdef"


def _ipv4_network() -> str:
    """Addresses with a length of their prefix, all bits behind it zero."""
    networks = [rf"{_IPV4}(?:/32)?"]
    for length in range(32):
        whole, bits = divmod(length, 8)
        octets = [_OCTET] * whole
        if bits:
            octets.append("(?:" + "|".join(str(n << (8 - bits)) for n in range(1 << bits)) + ")")
        octets += ["0"] * (4 - len(octets))
        networks.append(r"\.".join(octets) + f"/{length}")
    return "(?:" + "|".join(networks) + ")"


def _ipv6_network() -> str:
    networks = [rf"{_IPV6}(?:/128)?"]
    for length in range(128):
        whole, bits = divmod(length, 16)
        groups = [_HEXTET] * whole
        if bits:
            digits, rest = divmod(bits, 4)
            part = r"[0-9a-fA-F]" * digits
            if rest:
                part += "[" + "".join(_HEX[n << (4 - rest)] for n in range(1 << rest)) + "]"
            groups.append(part.ljust(len(part), "0") + "0" * (4 - digits - bool(rest)))
        networks.append(":".join(groups) + ("::" if len(groups) < 8 else "") + f"/{length}")
    return "(?:" + "|".join(networks) + ")"


def _uuid(version: str) -> str:
    return rf"[0-9a-fA-F]{{8}}-[0-9a-fA-F]{{4}}-{version}[0-9a-fA-F]{{3}}-[89abAB][0-9a-fA-F]{{3}}-[0-9a-fA-F]{{12}}"


_IPV4_INTERFACE = rf"{_IPV4}(?:/(?:[12]?\d|3[0-2]))?"
_IPV4_NETWORK = _ipv4_network()
_IPV6_INTERFACE = rf"{_IPV6}(?:/(?:[1-9]?\d|1[01]\d|12[0-8]))?"
_IPV6_NETWORK = _ipv6_network()
PATTERNS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME + _OFFSET,
    "date-time": f"{_DATE}T{_TIME}{_OFFSET}",
    "local-date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": _EMAIL,
    "name-email": _EMAIL,
    "ipv4": _IPV4,
    "ipv4interface": _IPV4_INTERFACE,
    "ipv4network": _IPV4_NETWORK,
    "ipv6": _IPV6,
    "ipv6interface": _IPV6_INTERFACE,
    "ipv6network": _IPV6_NETWORK,
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipvanyinterface": f"(?:{_IPV4_INTERFACE}|{_IPV6_INTERFACE})",
    "ipvanynetwork": f"(?:{_IPV4_NETWORK}|{_IPV6_NETWORK})",
    "uri": _URI,
    "multi-host-uri": rf"{_SCHEME}://{_USER}{_HOST}(?:,{_HOST})*(?:/{_PATH_CHARACTER}+)?",
    "uuid1": _uuid("1"),
    **{f"uuid{version}": _uuid(str(version)) for version in range(3, 9)},
    "base64": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?",
    "base64url": r"(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-][AQgw]==|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]=)?",
    "json-pointer": r"(?:/(?:[^~/]|~[01])*)*",
}
"""Regular expressions that a whole string of a format matches. What they leave out is rare: quoted names in addresses,
domains in other alphabets."""

UNHELD = {
    "file-path": "that a file exists",
    "directory-path": "that a folder exists",
}
"""Formats of which only a part shows in the text, and what does not."""


def addresses(name: str, schemes: str) -> str:
    """A regular expression of addresses of a format (`uri` or `multi-host-uri`) that have one of these schemes.

    Its table of states is small: hosts have names, and labels are not counted to their last character.

    Args:
        name: The format.
        schemes: A regular expression of them, in brackets.
    """
    if re.fullmatch(schemes, "file"):
        return rf"file://(?:/{_PATH_CHARACTER}+)+"
    rest = f"{_NAMED_HOST}{_TAIL}" if name == "uri" else rf"{_NAMED_HOST}(?:,{_NAMED_HOST})*(?:/{_PATH_CHARACTER}+)?"
    return f"{schemes}://{_USER}{rest}"


def dates_between(first: date, last: date) -> str:
    """A regular expression of the dates from one to another, both included."""
    low, high = first.isoformat(), last.isoformat()
    common = 0
    while common < len(low) and low[common] == high[common]:
        common += 1
    if common == len(low):
        return low
    head = low[:common]
    parts = []
    # Above the first date: it up to one digit, then a larger one; below the last in the same way.
    for at in range(common + 1, len(low)):
        if low[at] not in "-9":
            parts.append(f"{low[:at]}[{int(low[at]) + 1}-9]{_any_from(at + 1)}")
        if high[at] not in "-0":
            parts.append(f"{high[:at]}[0-{int(high[at]) - 1}]{_any_from(at + 1)}")
    if int(low[common]) + 1 < int(high[common]):
        parts.append(f"{head}[{int(low[common]) + 1}-{int(high[common]) - 1}]{_any_from(common + 1)}")
    return "(?:" + "|".join([low, high, *parts]) + ")"


def _any_from(at: int) -> str:
    return "".join("-" if i in (4, 7) else r"\d" for i in range(at, 10))

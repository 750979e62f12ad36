"""How answers of a TGI server are checked against their grammars: servers that speculate break theirs."""

from __future__ import annotations

from langchain_specdec.backends.remote.grammar_check import GrammarCheck
from langchain_specdec.backends.remote.owned_server import OwnedServer

_SPECULATING = (
    "Such servers do that most of the time where they speculate, and never hold the bounds of numbers. Use a server "
    "started with speculate=0, also as a second one for answers of a given form; or LocalBackend, which speculates and "
    "holds grammars, bounds included."
)
_NOT_HELD = (
    "Its grammars hold no bounds and multiples of numbers, no bounds of dates, no form of a dictionary's keys, and no "
    "length or second pattern beside a pattern. Ask again, say in the prompt what they do not hold, or use "
    "LocalBackend, which holds all of it."
)


def tgi_grammar_check(url: str, api_key: str | None, server: OwnedServer | None = None) -> GrammarCheck:
    """The check of a server's answers.

    Args:
        url: Address of the server, for messages.
        api_key: Its key, which no message may hold.
        server: The server, where it was started from here: it tells whether it speculates.
    """
    may_speculate = server is None or server.config.num_speculative_tokens > 0
    return GrammarCheck(url, api_key, "TGI server", _SPECULATING if may_speculate else _NOT_HELD)

"""What a TGI server wrote, checked against the grammar that was asked for: servers that speculate break theirs."""

from __future__ import annotations

from langchain_specdec.backends.tgi.owned_server import OwnedServer
from langchain_specdec.completions.events import FinishReason
from langchain_specdec.grammar.grammar import Grammar
from langchain_specdec.grammar.text_check import Fit, text_check
from tgi_launcher.redaction import Redactor

# Characters shown before and after the place from which on an answer does not fit.
_SHOWN = 30


class GrammarCheck:
    """Checks answers against what was asked for, and not against what was sent: a server's words say less.

    Args:
        url: Address of the server, for messages.
        api_key: Its key, which no message may hold.
        server: The server, where it was started from here: it tells whether it speculates.
    """

    def __init__(self, url: str, api_key: str | None, server: OwnedServer | None = None) -> None:
        self._url = url
        self._redact = Redactor([api_key or ""])
        self._may_speculate = server is None or server.config.num_speculative_tokens > 0

    def error(self, grammar: Grammar, text: str, reason: FinishReason) -> str | None:
        """Why an answer does not fit its grammar; None where it does, or was cut and fits so far.

        Args:
            grammar: What was asked for.
            text: The whole answer.
            reason: How it ended.
        """
        if reason == "length":
            # What is left of a character that was cut.
            text = text.rstrip("\ufffd")
        fit = text_check(grammar).fit(text)
        if fit.is_whole or (fit.is_begun and reason == "length"):
            return None
        if fit.failure:
            return (
                f"The answer could not be checked against its grammar ({self._redact(fit.failure)}), so it does not "
                f"count as one that fits. Ask for a shorter or simpler one, or use LocalBackend, which holds grammars."
            )
        why = (
            "Such servers do that most of the time where they speculate, and never hold the bounds of numbers. Use a "
            "server started with speculate=0, also as a second one for answers of a given form; or LocalBackend, which "
            "speculates and holds grammars, bounds included."
            if self._may_speculate
            else "Its grammars hold no bounds and multiples of numbers, no bounds of dates, no form of a dictionary's "
            "keys, and no length or second pattern beside a pattern. Ask again, say in the prompt what they do not "
            "hold, or use LocalBackend, which holds all of it."
        )
        return f"{self._what(fit, text)}: the TGI server at {self._url} broke its grammar. {why}"

    def _what(self, fit: Fit, text: str) -> str:
        at = fit.num_fitting
        # Half a key would not be masked, so no part is shown of an answer that holds one.
        shown = "" if self._redact(text) != text else f", in {text[max(at - _SHOWN, 0) : at + _SHOWN]!r}"
        if fit.is_begun:
            return f"The answer ended after {at} characters, before its grammar allows it{shown}"
        return f"The answer does not fit its grammar from character {at + 1} on{shown}"

"""What a server wrote, checked against the grammar that was asked for."""

from __future__ import annotations

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
        kind: What a server of this kind is called.
        advice: What to do about one that breaks its grammar, in whole sentences.
    """

    def __init__(self, url: str, api_key: str | None, kind: str, advice: str) -> None:
        self._url = url
        self._redact = Redactor([api_key or ""])
        self._kind = kind
        self._advice = advice

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
        return f"{self._what(fit, text)}: the {self._kind} at {self._url} broke its grammar. {self._advice}"

    def _what(self, fit: Fit, text: str) -> str:
        at = fit.num_fitting
        # Half a key would not be masked, so no part is shown of an answer that holds one.
        shown = "" if self._redact(text) != text else f", in {text[max(at - _SHOWN, 0) : at + _SHOWN]!r}"
        if fit.is_begun:
            return f"The answer ended after {at} characters, before its grammar allows it{shown}"
        return f"The answer does not fit its grammar from character {at + 1} on{shown}"

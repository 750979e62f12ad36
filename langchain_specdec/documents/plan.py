"""Which prompts a summary takes, in which order: stuff, map-reduce and refine, without running any of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_core.prompts import BasePromptTemplate

from langchain_specdec.documents.pieces import split
from langchain_specdec.documents.room import Room
from langchain_specdec.errors import GenerationError, InvalidParameterError, PromptTooLongError

Method = Literal["auto", "stuff", "map_reduce", "refine"]
Stage = Literal["stuff", "map", "reduce", "refine"]

_BETWEEN = "\n\n"
# Below it a piece has nothing to summarise.
_LEAST_ROOM = 16
# Summaries of pieces that are hardly shorter than the pieces would be summarised again for ever.
_SHRINKING = 0.9
_FRAME = "Next part of the text:\n\n{piece}\n\nSummary of the parts before it:\n\n{summary}"


@dataclass(frozen=True)
class Step:
    """Prompts that can run at the same time.

    Attributes:
        stage: What they are: `stuff`, `map`, `reduce` or `refine`.
        level: 1 for the text itself, 2 for summaries of its pieces, and so on; 1 for all steps of `refine`.
        texts: What to summarise in each.
        instruction: What to do with it.
        first: Number of the first prompt, from 1 on; a step of `refine` has one prompt of several.
        total: Number of prompts of this stage and level.
        is_last: Whether its only answer is the summary.
    """

    stage: Stage
    level: int
    texts: Sequence[str]
    instruction: str
    first: int
    total: int
    is_last: bool


@dataclass(frozen=True)
class Plan:
    """How summaries are made.

    Attributes:
        method: Which way.
        prompt: Prompt with the variables `text` and `instruction`.
        instruction: What to do with the text and with pieces of it.
        combine_instruction: What to do with summaries of pieces.
        room: What the model has room for.
    """

    method: Method
    prompt: BasePromptTemplate[str]
    instruction: str
    combine_instruction: str
    room: Room

    def values(self, text: str, instruction: str) -> dict[str, str]:
        """The values of the prompt's variables."""
        values = {"text": self.room.as_data(text), "instruction": instruction}
        return {name: value for name, value in values.items() if name in self.prompt.input_variables}

    def count(self, text: str, instruction: str) -> int:
        """Tokens of a prompt."""
        return self.room.count(self.prompt.format_prompt(**self.values(text, instruction)))

    def steps(self, texts: Sequence[str]) -> Generator[Step, list[str], None]:
        """The steps for texts that follow one another. It is sent the answers of each; the last step has `is_last`.

        Raises:
            InvalidParameterError: There is no text.
            PromptTooLongError: There is no room for the text, or for pieces of it.
            GenerationError: The summaries of pieces are as long as the pieces.
        """
        parts = [text + _BETWEEN for text in texts if text.strip()]
        if not parts:
            msg = "There is no text to summarise: it is empty."
            raise InvalidParameterError(msg)
        parts[-1] = parts[-1].removesuffix(_BETWEEN)
        limit = self.room.limit  # refused, where it is not known, before anything is counted
        if self.method == "refine":
            yield from self._refine(parts)
            return
        whole = "".join(parts)
        if self.method != "map_reduce":
            size = self.count(whole, self.instruction)
            if size <= limit:
                yield Step("stuff", 1, [whole], self.instruction, 1, 1, is_last=True)
                return
            if self.method == "stuff":
                raise self._too_long(size)
        yield from self._map_reduce(parts)

    def _map_reduce(self, parts: Sequence[str]) -> Generator[Step, list[str], None]:
        instruction = self.instruction
        stage: Stage = "map"
        level = 1
        while True:
            pieces = self._pieces(parts, instruction, reserve=0)
            if len(pieces) == 1:
                break
            summaries = yield Step(stage, level, pieces, instruction, 1, len(pieces), is_last=False)
            parts = self._shorter(summaries, "".join(pieces))
            stage, instruction, level = "reduce", self.combine_instruction, level + 1
        yield Step(stage, level, pieces, instruction, 1, 1, is_last=True)

    def _shorter(self, summaries: Sequence[str], text: str) -> list[str]:
        """The summaries as a text, if there is one and it is shorter than what they are of."""
        parts = [summary.strip() + _BETWEEN for summary in summaries if summary.strip()]
        if not parts:
            msg = f"The model wrote nothing about any of the {len(summaries)} pieces. Try another instruction."
            raise GenerationError(msg)
        parts[-1] = parts[-1].removesuffix(_BETWEEN)
        before, after = (self.count(each, self.combine_instruction) for each in (text, "".join(parts)))
        if after > max(self.room.limit, before * _SHRINKING):
            msg = (
                f"The summaries of {len(summaries)} pieces have {after} tokens together, and the pieces had {before}: "
                f"so they never come to fit into one prompt. {self._fewer_new_tokens()} ask for shorter summaries, or "
                "take method='refine'."
            )
            raise GenerationError(msg)
        return parts

    def _fewer_new_tokens(self) -> str:
        limit = self.room.max_new_tokens
        return "Either" if limit is None else f"Lower max_new_tokens, which is {limit},"

    def _refine(self, parts: Sequence[str]) -> Generator[Step, list[str], None]:
        # A summary that is encoded again may have a few tokens more than were decoded.
        longest = self.room.max_new_tokens
        reserve = self.room.limit // 4 if longest is None else longest * 5 // 4
        pieces = self._pieces(parts, self.combine_instruction, reserve, _FRAME.format(piece="", summary=""))
        text, instruction = pieces[0], self.instruction
        for number, following in enumerate([*pieces[1:], None], 1):
            is_last = following is None
            answers = yield Step("refine", 1, [text], instruction, number, len(pieces), is_last)
            if following is not None:
                text = _FRAME.format(piece=following.strip("\n"), summary=answers[0].strip())
                instruction = self.combine_instruction

    def _pieces(self, parts: Sequence[str], instruction: str, reserve: int, frame: str = "") -> list[str]:
        whole = "".join(parts)
        if self.count(whole, instruction) <= self.room.limit:
            return [whole]
        around = self.count(frame, instruction)
        room = self.room.limit - around - reserve
        # A summary as long as what it is of brings the end no nearer.
        least = _LEAST_ROOM if frame else max(_LEAST_ROOM, self.room.max_new_tokens or 0)
        if room < least:
            ways = self._ways(around, self.count(frame, ""), least, reserve)
            raise self._no_room(around, least, reserve, ways)
        empty = self.count("", instruction)
        return split(parts, lambda text: self.count(text, instruction) - empty, room)

    def _too_long(self, size: int) -> PromptTooLongError:
        advice = self.room.more_room(size)
        more = "" if advice is None else f", or {advice}"
        return PromptTooLongError(
            f"Text and instruction have {size} tokens, and there is room for {self.room.limit}{self._beside()}. "
            f"Take method='map_reduce' or method='refine', which read it in pieces{more}."
        )

    def _ways(self, around: int, bare: int, least: int, reserve: int) -> list[str]:
        """What makes room for pieces, each way alone.

        Args:
            around: Tokens around a piece.
            bare: Those without the instruction.
            least: Those of the smallest piece.
            reserve: Those kept for the summary so far.
        """
        can_lower = (self.room.max_new_tokens or 0) > 1
        # With a single new token, which is the most that lowering gives.
        beside = _LEAST_ROOM + bool(reserve)
        lowered = self.room.limit_beside(1) - beside
        ways = ["lower max_new_tokens"] if can_lower and around <= lowered else []
        if bare <= self.room.limit - reserve - least:
            ways.append("shorten the instruction")
        if not ways and can_lower and bare <= lowered:
            ways.append("lower max_new_tokens and shorten the instruction")
        if (advice := self.room.more_room(around + reserve + least)) is not None:
            ways.append(advice)
        elif not ways and can_lower and (advice := self.room.more_room(around + beside, 1)) is not None:
            ways.append(f"lower max_new_tokens and {advice}")
        return ways or ["take a model that has room for more"]

    def _no_room(self, around: int, least: int, reserve: int, ways: Sequence[str]) -> PromptTooLongError:
        for_summary = f" and {reserve} for the summary so far" if reserve else ""
        return PromptTooLongError(
            f"There is no room for pieces of the text: a prompt may have {self.room.limit} tokens{self._beside()}, "
            f"{around} of them are the instruction and what is around it{for_summary}, and a piece takes {least} or "
            f"more. To make room: {', or '.join(ways)}."
        )

    def _beside(self) -> str:
        limit = self.room.max_new_tokens
        return "" if limit is None else f" beside the {limit} of the summary (max_new_tokens)"

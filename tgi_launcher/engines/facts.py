"""What is particular to an engine, as data: its command, flags, speculation, figures, and the lines of its log."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tgi_launcher.errors import Reason
from tgi_launcher.logs import Stage


class Method(str, Enum):
    """What drafts come from."""

    NGRAM = "ngram"
    SUFFIX = "suffix"
    DRAFT_MODEL = "draft-model"
    EAGLE3 = "eagle3"
    MEDUSA = "medusa"

    @property
    def words(self) -> str:
        """As a part of a sentence."""
        return {"ngram": "n-grams", "suffix": "suffixes", "draft-model": "a draft model", "eagle3": "EAGLE-3 heads",
                "medusa": "Medusa heads"}[self.value]  # fmt: skip

    @property
    def needs_model(self) -> bool:
        """Whether drafts come from a model of their own, heads included."""
        return self in (Method.DRAFT_MODEL, Method.EAGLE3, Method.MEDUSA)


@dataclass(frozen=True)
class Speculation:
    """How a server is to speculate, in the words of no engine.

    Attributes:
        method: What drafts come from.
        num_tokens: Tokens to draft per step.
        model: Draft model or heads: a folder, a file or an id of the Hub; None where the method needs none.
    """

    method: Method
    num_tokens: int
    model: str | None = None


@dataclass(frozen=True)
class MetricNames:
    """Names in `/metrics`, without the ending `_total`; empty where there is none.

    Attributes:
        generated: Counts tokens that were generated.
        requests: Counts requests.
        accepted: Counts drafted tokens that were accepted.
        drafted: Counts drafted tokens.
        verified: Counts decode passes of requests, where `accepted` is not counted.
        running: How many requests are decoded now.
        waiting: How many requests wait now.
    """

    generated: str
    requests: str = ""
    accepted: str = ""
    drafted: str = ""
    verified: str = ""
    running: str = ""
    waiting: str = ""


@dataclass(frozen=True)
class Machines:
    """Machines that serve one model together.

    Attributes:
        num_nodes: How many there are.
        rank: Which of them this is; 0 is the first, which answers requests.
        address: The first, as the others reach it.
        port: Where they meet there.
    """

    num_nodes: int
    rank: int
    address: str
    port: int


@dataclass(frozen=True)
class Images:
    """The images of an engine for Docker, with pinned tags; empty where there is none.

    Attributes:
        gpu: For NVIDIA's GPUs.
        cpu: For CPUs.
        words: What stands before the arguments, where the image does not start the server by itself.
        shm_size: Shared memory that its processes may need; None for Docker's own default.
    """

    gpu: str = ""
    cpu: str = ""
    words: tuple[str, ...] = ()
    shm_size: str | None = None


@dataclass(frozen=True)
class FailureRule:
    """A line of a log that says why a server did not start.

    Attributes:
        reason: What kind of failure it is.
        pattern: What the log says.
        text: What to say of it, in a sentence: `{title}`, `{model}`, `{port}`, and `{0}` and so on for the
            groups of the pattern.
    """

    reason: Reason
    pattern: re.Pattern[str]
    text: str


@dataclass(frozen=True)
class EngineFacts:
    """What is particular to an engine.

    Attributes:
        name: As users give it.
        title: As its makers write it.
        program: The program, and the words that come before its options.
        install: What to do where the program is missing, as the rest of a sentence.
        first_port: Where the search for a free port begins.
        model: The arguments that say which model.
        flags: Options by the fields of EngineConfig that they are.
        speculation: The arguments for each method that it has.
        metrics: What it counts.
        lacks: Why a method or a field cannot be had, where more is to be said than that it cannot.
        default_tokens: Tokens to draft per step where nobody says how many.
        always: Arguments of every server.
        when_speculating: Arguments of every server that speculates.
        no_speculation: Arguments of a server that must not speculate, though it would by itself.
        module: Python module that is the same program, for where it is not on PATH.
        key_variable: Variable of the environment that it reads its key from; None if it reads it from none.
        key_file_option: Option that names a YAML file with `api-key`, where it reads its key from no variable.
        images: Its images for Docker.
        machines: The arguments by which it is one of several machines; None where it cannot be.
        followers_answer: Whether `/health` of machines other than the first answers.
        variables: Variables of its own that are always set.
        option_variables: Variables of the environment that it would take for options.
        record: A line of its log, with the groups `level` and `message`.
        stages: Lines of its log that say how far a start has come.
        serving: The line of its log from which on that may hold what clients have sent.
        failures: Lines of its log that say why it did not start, before those that all engines share.
        drain_seconds: How long it may take to end.
    """

    name: str
    title: str
    program: tuple[str, ...]
    install: str
    first_port: int
    model: Callable[[str], Sequence[str]]
    flags: Mapping[str, str]
    speculation: Mapping[Method, Callable[[Speculation], Sequence[str]]]
    metrics: MetricNames
    lacks: Mapping[str, str] = field(default_factory=dict)
    default_tokens: int = 4
    always: tuple[str, ...] = ()
    when_speculating: tuple[str, ...] = ()
    no_speculation: tuple[str, ...] = ()
    module: str | None = None
    key_variable: str | None = None
    key_file_option: str | None = None
    images: Images = Images()
    machines: Callable[[Machines], Sequence[str]] | None = None
    followers_answer: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    option_variables: re.Pattern[str] = re.compile(r"(?!)")
    record: re.Pattern[str] = re.compile(r"(?!)")
    stages: tuple[tuple[re.Pattern[str], Stage], ...] = ()
    serving: re.Pattern[str] = re.compile(r"(?!)")
    failures: tuple[FailureRule, ...] = ()
    drain_seconds: float = 30.0

    def refusal(self, method: Method) -> str | None:
        """Why it cannot speculate by a method, in one sentence; None where it can."""
        if method in self.speculation:
            return None
        has = ", ".join(one.value for one in self.speculation)
        why = self.lacks.get(method.value)
        return f"{self.title} does not speculate by {method.words}{f' ({why})' if why else ''}: it has {has}."

"""Why a server did not start or did not go on, in one sentence, from its log and its exit code.

TGI's exit codes do not say: any failure is 1. What does is the `Error: …` line on standard error and the records of
level ERROR before it. The texts are those of TGI 3.3 (launcher/src/main.rs, router/src/server.rs,
server/text_generation_server) and of the libraries that it stands on.

Once the router has opened its port, shards and router may log what a client sent. From then on only the launcher's own
lines and its exit code count: no request can decide what a server is said to have died of, or whether it is restarted.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tgi_launcher.cpu import HINT
from tgi_launcher.errors import Reason
from tgi_launcher.logs import LogRecord, shortened

_CLAP_USAGE = 2
_RUST_PANIC = 101
_DOCKER_ITSELF = 125
# Characters of a line, and of all of them, that are looked at.
_MAX_LINE = 2000
_MAX_TEXT = 2**19
_MAX_CAUSE = 300


@dataclass(frozen=True)
class Diagnosis:
    """What went wrong, in one sentence."""

    reason: Reason
    summary: str


@dataclass(frozen=True)
class Evidence:
    """What a diagnosis goes by.

    Attributes:
        records: The log, oldest first.
        returncode: Of the launcher; minus the signal that ended it; None if unknown.
        model_id: Model of the server.
        port: Port of the server.
        is_docker: Whether Docker ran it.
        was_ready: Whether it ever answered.
    """

    records: Iterable[LogRecord]
    returncode: int | None
    model_id: str
    port: int
    is_docker: bool = False
    was_ready: bool = False


_Tell = Callable[[re.Match[str], Evidence], str]

_PORT_TAKEN = "A port is taken (port {port}, or that of the metrics exporter): somebody else bound it in the meantime."
# What a signal mostly means, as the rest of "TGI's launcher …". By name: not every system has each.
_SIGNALS = {
    "SIGKILL": "was killed by SIGKILL: by the system, if main memory ran out, or by somebody.",
    "SIGSEGV": "crashed (SIGSEGV, a wrong access to memory): a fault in {title}, in PyTorch or in a driver.",
    "SIGILL": "crashed (SIGILL, an unknown instruction): it was built for another processor than this.",
    "SIGBUS": "crashed (SIGBUS): mostly shared memory, /dev/shm, is full; with Docker, set a larger shm_size.",
    "SIGFPE": "crashed (SIGFPE, an impossible computation): a fault in {title}, in PyTorch or in a driver.",
    "SIGABRT": "gave up (SIGABRT): it met a state that it could not go on from.",
    "SIGTERM": "was ended by SIGTERM: somebody stopped it.",
}


def _says(text: str) -> _Tell:
    return lambda match, evidence: text.format(
        *(group.strip() if group else "" for group in match.groups()), model=evidence.model_id, port=evidence.port
    )


# What Docker says, whatever it was to run: a pattern, and the sentence for it.
DOCKER_RULES = tuple(
    (Reason.DOCKER_FAILED, pattern, text)
    for pattern, text in (
        (
            r"Cannot connect to the Docker daemon",
            "Docker's daemon is not running, or cannot be reached: start it, or install the engine itself.",
        ),
        (
            r"permission denied while trying to connect to the Docker daemon socket",
            "This user may not talk to Docker's daemon: add it to the group docker.",
        ),
        (
            r"could not select device driver .* with capabilities: \[\[gpu",
            "Docker cannot give containers GPUs: install the NVIDIA Container Toolkit, or set docker_gpus=False.",
        ),
        (
            r"(?:manifest (?:for \S+ )?(?:unknown|not found)|pull access denied for (\S+)|failed to resolve reference)",
            "Docker cannot find or may not pull the image: check docker_image.",
        ),
    )
)

# The first rule that matches wins, so a cause stands before its effects.
_RULES: tuple[tuple[Reason, re.Pattern[str], _Tell], ...] = tuple(
    (reason, re.compile(pattern, re.IGNORECASE | re.MULTILINE), _says(text))
    for reason, pattern, text in (
        (
            Reason.SPECULATE_EXCEEDS_HEADS,
            r"Speculate is set to `?(\d+)`? but this (\w+) models? only has `?(\d+)`? heads",
            "speculate={0}, but {model} has only {2} {1} heads: set speculate to at most {2}, or leave it out.",
        ),
        (
            Reason.SPECULATION_UNSUPPORTED,
            r"Speculator decoding is not enabled for AutoModel",
            "TGI runs {model} with a fallback that cannot speculate: use a model of a family that TGI has its own code "
            "for, without Medusa or MLP-speculator heads.",
        ),
        (
            Reason.INCOMPLETE_INSTALLATION,
            r"(text-generation-(?:server|router)) not found in PATH",
            "The launcher does not find {0} on PATH: the installation of Text Generation Inference is incomplete.",
        ),
        *DOCKER_RULES,
        (
            Reason.PORT_TAKEN,
            r"(?:port is already allocated|Failed to bind to|failed to build prometheus recorder"
            r"|Bind for \S+ failed)",
            _PORT_TAKEN,
        ),
        (
            Reason.PORT_TAKEN,
            r"(?:EADDRINUSE|address already in use|server socket has failed to listen|DistNetworkError)",
            "The port that the shards meet at is taken, maybe by shards of an earlier server: choose another "
            "master_port.",
        ),
        (
            Reason.MODEL_NOT_FOUND,
            r"No local weights found in (.+?) with extension",
            "The folder {0} holds no weights that TGI could load: it needs *.safetensors, or *.bin or *.pt to convert.",
        ),
        (
            Reason.MODEL_NOT_FOUND,
            r"^(?:[\w.]+\.)?EntryNotFoundError: No \.\w+ weights found for model (\S+)",
            "TGI finds no weights of {0} that it could load (*.safetensors, or *.bin to convert), neither in the local "
            "cache nor, unless HF_HUB_OFFLINE is set, on the Hub.",
        ),
        (
            Reason.MODEL_NOT_FOUND,
            r"(?:RepositoryNotFoundError|Repository Not Found|RevisionNotFoundError|404 Client Error"
            r"|is not a local folder and is not a valid model identifier)",
            "There is no model {model} on the Hub, no such revision, or it is private: check model_id and revision.",
        ),
        (
            Reason.MODEL_ACCESS_DENIED,
            r"(?:GatedRepoError|Access to model \S+ is restricted|401 Client Error|403 Client Error|gated repo"
            r"|Invalid (?:user(?:name)? or password|credentials))",
            "The Hub denies access to {model}: accept its licence on its page there, and give a token by HF_TOKEN.",
        ),
        (
            Reason.MODEL_NOT_FOUND,
            r"(?:LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled"
            r"|cannot find the requested files in the (?:disk|local) cache)",
            "{model} is not in the local cache, and the Hub cannot be reached or HF_HUB_OFFLINE is set.",
        ),
        (
            Reason.DOWNLOAD_FAILED,
            r"No space left on device",
            "The disk is full.",
        ),
        (
            Reason.OUT_OF_MEMORY,
            r"Not enough memory to handle (\d+) prefill tokens",
            "The GPU has not enough memory to warm up with {0} tokens of prompt: set a smaller "
            "max_batch_prefill_tokens.",
        ),
        (
            Reason.OUT_OF_MEMORY,
            r"Not enough memory to handle (?:`?max_total_tokens`?)\s*=\s*(\d+)",
            "The GPU has not enough memory for max_total_tokens={0}: set a smaller one.",
        ),
        (
            Reason.OUT_OF_MEMORY,
            r"(?:^memory allocation of \d+ bytes failed|std::bad_alloc|Cannot allocate memory|DefaultCPUAllocator"
            r"|CPU out of memory|^MemoryError\b|failed to map memory|unable to mmap)",
            "This machine's main memory does not hold {model}: use a smaller model or smaller limits, or free memory "
            "(with Docker, a container's limit counts).",
        ),
        (
            Reason.OUT_OF_MEMORY,
            r"(?:OutOfMemoryError|(?:CUDA|HIP) out of memory|out of memory)",
            "The GPU's memory does not hold {model}: use more GPUs (num_shard), quantize, or smaller limits.",
        ),
        (
            Reason.NOT_ENOUGH_GPUS,
            r"(?:No module named '(?:flashinfer|flash_attn\w*)'|CUDA driver version is insufficient)",
            f"TGI found no GPU that it can use; {HINT}.",
        ),
        (
            Reason.NOT_ENOUGH_GPUS,
            r"(?:NotEnoughCUDADevices\(\"?([^\"]*)|invalid device ordinal|No CUDA GPUs are available"
            r"|Found no NVIDIA driver)",
            "There are fewer GPUs than asked for, or none: check num_shard, devices and nvidia-smi.",
        ),
        (
            Reason.INVALID_ARGUMENTS,
            r"ArgumentValidation\(\"(.*?)\"\)",
            "TGI refuses its options: {0}.",
        ),
        (
            Reason.INVALID_ARGUMENTS,
            r"^error: (?:invalid value|unexpected argument|the argument|a value is required)(.*)$",
            "The launcher does not take an option that it was given, so it may be of another version:{0}",
        ),
        (
            Reason.INCOMPLETE_INSTALLATION,
            r"(?:Exec format error|cannot execute binary file)",
            "A program of TGI cannot be run: it was built for another kind of processor or system.",
        ),
    )
)

# The launcher's own names for failures, for when no rule knows the cause.
_KINDS = {
    "DownloadError": (Reason.DOWNLOAD_FAILED, "The weights of {model} could not be downloaded or converted"),
    "ShardCannotStart": (Reason.SHARD_CANNOT_START, "The model could not be loaded (ShardCannotStart)"),
    "ShardDisconnected": (Reason.SHARD_CANNOT_START, "The model could not be loaded (ShardDisconnected)"),
    "ShardFailed": (Reason.SHARD_FAILED, "A shard died while serving (ShardFailed)"),
    "WebserverCannotStart": (Reason.WEBSERVER_FAILED, "The router could not be started (WebserverCannotStart)"),
    "WebserverFailed": (Reason.WEBSERVER_FAILED, "The router ended (WebserverFailed)"),
}
_UNREACHABLE = re.compile(
    r"Max retries exceeded|Failed to establish a new connection|Name or service not known|Connection refused"
    r"|Network is unreachable|name resolution|(?:Connect\w*|Timeout|Proxy|SSL)Error|(?:Connect|Read|Pool)Timeout"
)
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'.*")
# Those that a server can have which has served.
_KINDS_OF_SERVING = ("ShardFailed", "WebserverFailed")
_ERROR_LINE = re.compile(r"^Error: (\w+)", re.MULTILINE)
# The launcher's own words. It says the first of a shard right after that has ended, and then the second.
_SIGNALED = re.compile(r"(?:Shard|Download) process was signaled to shutdown with signal (\d{1,3})\b.*", re.DOTALL)
_CRASHED = re.compile(r"Shard (\d+) (?:crashed|failed to start)")
_CANNOT_BIND = re.compile(r"(?:\S+: )?Failed to bind to \S+: .*")
# Lines of a traceback that quote the program: it names errors that did not happen.
_CODE = re.compile(r"\s{2}|\s*[│╭╰❱]")
# The last line of a Python traceback, or a Rust panic's message.
_EXCEPTION = re.compile(r"^(?:[\w.]+(?:Error|Exception|Timeout)|(?:\w+\.)+[A-Z]\w*): .+$", re.MULTILINE)
_PANIC = re.compile(r"panicked at .*?(?:,\s*|:\n)(.+)")


def diagnose(evidence: Evidence) -> Diagnosis:
    """Say why a launcher ended, or failed to come up."""
    code = evidence.returncode
    if code is None or code <= 0:
        # The code alone is the cause: 0 is an end that was asked for, and below 0 it is a signal.
        return _by_exit_code(evidence, "")
    records = list(evidence.records)
    served = [record for record in records if record.while_serving]
    if evidence.was_ready or served:
        return _while_serving(evidence, served)
    text = plain_lines(records)
    for reason, pattern, tell in _RULES:
        if match := pattern.search(text):
            return Diagnosis(reason, tell(match, evidence))
    if killed := _killed_process(records):
        return killed
    kinds = _ERROR_LINE.findall(text)
    exceptions = _EXCEPTION.findall(text)
    if exceptions and (module := _MISSING_MODULE.fullmatch(exceptions[-1])):
        sentence = f"The installation of Text Generation Inference is incomplete: its Python has no module {module[1]}."
        return Diagnosis(Reason.INCOMPLETE_INSTALLATION, sentence)
    if kinds[-1:] == ["DownloadError"] and exceptions and _UNREACHABLE.search(exceptions[-1]):
        sentence = (
            f"The Hub cannot be reached, and {evidence.model_id} is not in the local cache: check the network, the "
            "proxies and HF_ENDPOINT, or give the folder of a model."
        )
        return Diagnosis(Reason.DOWNLOAD_FAILED, sentence)
    if kinds and kinds[-1] in _KINDS:
        reason, sentence = _KINDS[kinds[-1]]
        return Diagnosis(reason, sentence.format(model=evidence.model_id) + cause(text))
    return _by_exit_code(evidence, text)


def plain_lines(records: Iterable[LogRecord]) -> str:
    """The lines of a log that may tell why a start failed."""
    # Other records are left out: they may quote anything, and servers go on after a warning.
    messages = (record.message for record in records if record.level in ("ERROR", ""))
    # Some rules take time that grows with the square of a line's length.
    lines = (line[:_MAX_LINE] for message in messages for line in message.splitlines() if not _CODE.match(line))
    return shortened("\n".join(lines), _MAX_TEXT)


def _while_serving(evidence: Evidence, records: Sequence[LogRecord]) -> Diagnosis:
    """Why it ended after it had opened its port, from nothing that a client could have written."""
    of_router = (record for record in records if record.target.startswith("text_generation_router"))
    if not evidence.was_ready and (first := next(of_router, None)) and _CANNOT_BIND.fullmatch(first.message):
        # It did not get its port, so nobody was heard.
        return Diagnosis(Reason.PORT_TAKEN, _PORT_TAKEN.format(port=evidence.port))
    plain = (_ERROR_LINE.fullmatch(record.message) for record in records if not record.level)
    # The launcher's own is the last that is printed, whatever a router prints in its panic.
    kinds = [match[1] for match in plain if match and match[1] in _KINDS_OF_SERVING]
    if not kinds or evidence.returncode != 1:
        return _by_exit_code(evidence, "")
    if kinds[-1] == "ShardFailed" and (killed := _killed_process(records)):
        return killed
    reason, sentence = _KINDS[kinds[-1]]
    return Diagnosis(reason, f"{sentence}; the log says more.")


def _killed_process(records: Sequence[LogRecord]) -> Diagnosis | None:
    """Whether it was a signal that ended a process, which the launcher says last of it: what was before is gone by."""
    last: dict[int | None, LogRecord] = {}
    for record in records:
        if record.rank is None and (match := _CRASHED.fullmatch(record.message)):
            rank = int(match[1])
            signaled = _SIGNALED.fullmatch(last[rank].message) if rank in last else None
            return Diagnosis(Reason.KILLED, f"A shard {by_signal(int(signaled[1]))}") if signaled else None
        if record.level == "ERROR":
            last[record.rank] = record
    # A download has no rank.
    signaled = _SIGNALED.fullmatch(last[None].message) if None in last else None
    return Diagnosis(Reason.KILLED, f"The download {by_signal(int(signaled[1]))}") if signaled else None


def cause(text: str) -> str:
    """What a log says last of errors, as the end of a sentence."""
    causes = _EXCEPTION.findall(text)[-1:] or _PANIC.findall(text)[-1:]
    return f": {_whole_words(causes[0].strip().rstrip('.'))}." if causes else "; the log says more."


def _whole_words(text: str) -> str:
    return text if len(text) <= _MAX_CAUSE else f"{text[:_MAX_CAUSE].rsplit(None, 1)[0]} …"


def _by_exit_code(evidence: Evidence, text: str) -> Diagnosis:
    code = evidence.returncode
    if code is None:
        return Diagnosis(
            Reason.KILLED,
            "The process that watches over TGI was killed, by somebody or by the system if main memory ran out, so TGI "
            "was ended too.",
        )
    if code < 0:
        return Diagnosis(Reason.KILLED, f"TGI's launcher {by_signal(-code)}")
    if code == 0:
        guess = "somebody stopped it"
        if not evidence.was_ready:
            guess += ", or it is another program than text-generation-launcher"
        return Diagnosis(Reason.STOPPED, f"TGI's launcher ended without an error: {guess}.")
    if evidence.is_docker and (told := by_docker(code, text)):
        return told
    if code == _CLAP_USAGE:
        return Diagnosis(Reason.INVALID_ARGUMENTS, "The launcher does not understand its options (exit code 2).")
    if code == _RUST_PANIC:
        return Diagnosis(Reason.EXITED, f"TGI's launcher panicked{cause(text)}")
    return Diagnosis(Reason.EXITED, f"TGI's launcher ended with exit code {code}{cause(text)}")


def by_docker(code: int, text: str, title: str = "TGI") -> Diagnosis | None:
    """What an exit code of Docker's client means, where it is not that of what ran in the container."""
    if code == _DOCKER_ITSELF:
        return Diagnosis(Reason.DOCKER_FAILED, f"Docker could not run the container{cause(text)}")
    if code > 128:
        return Diagnosis(Reason.KILLED, f"The container {by_signal(code - 128, title)}")
    return None


def by_signal(number: int, title: str = "TGI") -> str:
    """What it means that a signal ended a process of an engine, as the end of a sentence."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"was ended by signal {number}."
    return _SIGNALS.get(name, f"was ended by {name}.").format(title=title)

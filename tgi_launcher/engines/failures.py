"""Why a server of another engine than TGI did not start or did not go on, in one sentence."""

from __future__ import annotations

import re

from tgi_launcher.diagnosis import DOCKER_RULES, Diagnosis, Evidence, by_docker, by_signal, cause, plain_lines
from tgi_launcher.engines.facts import EngineFacts, FailureRule
from tgi_launcher.errors import Reason

# What the libraries say that more than one engine stands on. The first that matches wins.
_SHARED = tuple(
    FailureRule(reason, re.compile(pattern, re.MULTILINE), text)
    for reason, pattern, text in (
        *((reason, f"(?i:{pattern})", text) for reason, pattern, text in DOCKER_RULES),
        (
            Reason.INCOMPLETE_INSTALLATION,
            r"^ModuleNotFoundError: No module named '([\w.]+)'",
            "The installation of {title} is incomplete: its Python has no module {0}.",
        ),
        (
            Reason.PORT_TAKEN,
            r"(?i:address already in use|EADDRINUSE|port is already allocated|Bind for \S+ failed)",
            "Port {port} is taken: somebody else bound it in the meantime.",
        ),
        (
            Reason.MODEL_ACCESS_DENIED,
            r"GatedRepoError|Access to model \S+ is restricted|401 Client Error|403 Client Error|gated repo",
            "The Hub denies access to {model}, or to its draft model: accept its licence on its page there, and give a "
            "token by HF_TOKEN.",
        ),
        (
            Reason.MODEL_NOT_FOUND,
            r"RepositoryNotFoundError|RevisionNotFoundError|404 Client Error"
            r"|is not a local folder and is not a valid model identifier",
            "There is no model {model}, or no such draft model, on the Hub, no such revision, or it is private.",
        ),
        (
            Reason.MODEL_NOT_FOUND,
            r"LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled",
            "{model} or its draft model is not in the local cache, and the Hub cannot be reached or HF_HUB_OFFLINE is "
            "set.",
        ),
        (Reason.DOWNLOAD_FAILED, r"No space left on device", "The disk is full."),
        (
            Reason.OUT_OF_MEMORY,
            r"OutOfMemoryError|(?i:out of memory)|std::bad_alloc|Cannot allocate memory",
            "The memory does not hold {model}: use more GPUs, a quantized model, or a smaller max_total_tokens.",
        ),
        (
            Reason.NOT_ENOUGH_GPUS,
            r"No CUDA GPUs are available|Found no NVIDIA driver|Failed to infer device type|invalid device ordinal",
            "{title} finds fewer GPUs than it needs, or none: check num_shard, devices and nvidia-smi.",
        ),
        (
            Reason.INVALID_ARGUMENTS,
            r"error: (unrecognized arguments: .*|argument .*)$",
            "{title} does not take an option that it was given, so it may be of another version: {0}.",
        ),
    )
)
_USAGE = 2


def diagnose(facts: EngineFacts, evidence: Evidence) -> Diagnosis:
    """Say why a server of an engine ended, or failed to come up.

    Args:
        facts: The engine.
        evidence: What to go by. Once it serves, its log may hold what clients sent, so only its exit code counts.
    """
    code = evidence.returncode
    if code is None:
        sentence = (
            f"The process that watches over {facts.title} was killed, by somebody or by the system if main memory ran "
            f"out, so {facts.title} was ended too."
        )
        return Diagnosis(Reason.KILLED, sentence)
    if code < 0:
        return Diagnosis(Reason.KILLED, f"{facts.title} {by_signal(-code, facts.title)}")
    if code == 0:
        return Diagnosis(Reason.STOPPED, f"{facts.title} ended without an error: somebody stopped it.")
    records = list(evidence.records)
    has_served = evidence.was_ready or any(record.while_serving for record in records)
    text = "" if has_served else plain_lines(records)
    for rule in (*facts.failures, *_SHARED):
        if match := rule.pattern.search(text):
            groups = ((group or "").strip().rstrip(".") for group in match.groups())
            sentence = rule.text.format(*groups, title=facts.title, model=evidence.model_id, port=evidence.port)
            return Diagnosis(rule.reason, sentence.replace("?.", "?"))
    if evidence.is_docker and (told := by_docker(code, text, facts.title)):
        return told
    reason = Reason.INVALID_ARGUMENTS if code == _USAGE and not has_served else Reason.EXITED
    return Diagnosis(reason, f"{facts.title} ended with exit code {code}{cause(text)}")

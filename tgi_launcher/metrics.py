"""Reads /metrics, and from it what speculation is worth: `/info` does not even say whether it is on.

TGI records `tgi_request_skipped_tokens` once per request and forward pass that yielded tokens: the tokens that the pass
yielded beyond one (backends/v3/src/backend.rs). Over a window, with S the growth of its sum and C that of its count,
S + C tokens were delivered by C passes. A request's first pass reads the prompt and never speculates, so with P
requests the tokens of a decode pass are 1 + S / (C - P) on average.

Other engines count the tokens that they accept, or the passes that verify; S and C follow from either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tgi_launcher.engines.facts import Method, MetricNames
from tgi_launcher.errors import NotRunningError
from tgi_launcher.model_info import ModelInfo

# So many decode passes of one token each are no bad luck: speculation is off, or useless.
_MIN_PASSES_TO_JUDGE = 64
# Values of the label `err` of requests that never reach the model. TGI counts them as requests and as failures.
_REFUSED = ("overloaded", "validation", "template")
# Counters that are computed with: neither NaN nor infinite, nor more than a float counts exactly.
_COUNTERS = (
    "tgi_request_skipped_tokens_sum",
    "tgi_request_skipped_tokens_count",
    "tgi_request_count",
    "tgi_request_success",
    "tgi_request_failure",
    "tgi_request_generated_tokens_sum",
    "tgi_queue_size",
    "tgi_batch_current_size",
)
_LARGEST = 2.0**53
_UNKNOWN = ModelInfo()


@dataclass(frozen=True)
class SpeculationReport:
    """What speculation did over a window, for all clients of the server together.

    Attributes:
        num_speculative_tokens: Tokens that the server was asked to draft per step; 0 is none.
        num_tokens: Tokens delivered.
        num_passes: Forward passes, counted once for each request in the batch.
        num_requests: Requests that began.
        num_skipped: Tokens that needed no pass of their own.
        seconds: Length of the window.
        model: What is known of the model, so of what it drafts with.
        num_drafted: Tokens drafted; None where the engine does not count them, as TGI.
        method: What drafts come from, where the config says it; None leaves it to `model`.
    """

    num_speculative_tokens: int
    num_tokens: int
    num_passes: int
    num_requests: int
    num_skipped: int
    seconds: float
    model: ModelInfo = _UNKNOWN
    num_drafted: int | None = None
    method: Method | None = None

    @property
    def num_decode_passes(self) -> int:
        """Passes but those that read prompts. An answer of over 1024 tokens is read anew, which counts as decoding."""
        return max(0, self.num_passes - self.num_requests)

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a decode pass and request, on average: 1 without speculation. 0 if nothing was decoded."""
        passes = self.num_decode_passes
        return 1.0 + self.num_skipped / passes if passes else 0.0

    @property
    def min_acceptance_rate(self) -> float:
        """Accepted / drafted tokens, at least: what is drafted past the end of an answer counts as refused."""
        drafted = self.num_speculative_tokens * self.num_decode_passes
        return self.num_skipped / drafted if drafted else 0.0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted tokens; None where the engine does not count what it drafts, or has drafted nothing."""
        return min(1.0, self.num_skipped / self.num_drafted) if self.num_drafted else None

    @property
    def tokens_per_second(self) -> float:
        """Tokens delivered per second of the window, idle time included."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def is_active(self) -> bool | None:
        """Whether speculation skips passes; None as long as too few were seen to tell."""
        if self.num_skipped:
            return True
        return False if self.num_decode_passes >= _MIN_PASSES_TO_JUDGE else None

    @property
    def warning(self) -> str | None:
        """What to say if the server was asked to speculate and does not; else None."""
        if not self.num_speculative_tokens or self.is_active is not False:
            return None
        if self.method is not None:
            return (
                f"{self.num_speculative_tokens} tokens are to be drafted per step by {self.method.words}, but none of "
                f"{self.num_decode_passes} decode steps yielded more than one token. Without speculation nothing would "
                "be lost."
            )
        kind = self.model.speculator
        by = f" by {kind} heads" if kind else " by n-grams" if self.model.is_known else ""
        return (
            f"{self.num_speculative_tokens} tokens are to be drafted per step{by}, but none of "
            f"{self.num_decode_passes} decode steps yielded more than one token. {self._why_inactive()} With "
            "speculate=0 nothing would be lost."
        )

    def _why_inactive(self) -> str:
        if self.model.speculator:
            base = f"{self.model.base_model}" if self.model.base_model else "the model that they are used with"
            return f"The heads may not have been trained for {base}, or not enough: check where they come from."
        return (
            "TGI ignores n-grams, without a word, on models that it runs without flash attention: its log of the start "
            "tells whether that could be loaded. Or the texts hold nothing that repeats itself."
        )


@dataclass(frozen=True)
class Metrics:
    """Counters of a server, since it started. Those that never counted are 0.

    Attributes:
        time: When they were read, in seconds of `time.monotonic`.
        skipped_sum: Sum of `tgi_request_skipped_tokens`.
        skipped_count: Count of `tgi_request_skipped_tokens`.
        num_requests: Requests that were not refused at the door.
        num_succeeded: Requests that ended well.
        num_failed: Requests that failed.
        generated_tokens: Tokens of the requests that ended well.
        queue_size: Requests that wait now.
        batch_size: Requests that are decoded now.
        drafted: Tokens drafted; None where the engine does not count them.
        values: Every sample, by its name and labels as Prometheus writes them.
    """

    time: float
    skipped_sum: float = 0.0
    skipped_count: float = 0.0
    num_requests: float = 0.0
    num_succeeded: float = 0.0
    num_failed: float = 0.0
    generated_tokens: float = 0.0
    queue_size: float = 0.0
    batch_size: float = 0.0
    drafted: float | None = None
    values: dict[str, float] = field(default_factory=dict, repr=False)

    def report(
        self,
        since: Metrics,
        num_speculative_tokens: int,
        model: ModelInfo = _UNKNOWN,
        method: Method | None = None,
    ) -> SpeculationReport:
        """What speculation did since an earlier reading.

        Args:
            since: The earlier reading. If the server was restarted in between, the window is its life so far.
            num_speculative_tokens: Tokens that it was asked to draft per step.
            model: What is known of the model.
            method: What drafts come from, where the config says it.
        """
        if self.skipped_count < since.skipped_count or self.num_requests < since.num_requests:
            since = Metrics(time=since.time)
        skipped = self.skipped_sum - since.skipped_sum
        passes = self.skipped_count - since.skipped_count
        return SpeculationReport(
            num_speculative_tokens=num_speculative_tokens,
            num_tokens=round(skipped + passes),
            num_passes=round(passes),
            num_requests=round(self.num_requests - since.num_requests),
            num_skipped=round(skipped),
            seconds=self.time - since.time,
            model=model,
            num_drafted=None if self.drafted is None else round(self.drafted - (since.drafted or 0.0)),
            method=method,
        )


@dataclass(frozen=True)
class _Samples:
    """Each sample, the sums over their labels, and of TGI's requests those that were refused."""

    values: dict[str, float]
    sums: dict[str, float]
    refused: float


def parse_metrics(text: str, *, time: float) -> Metrics:
    """Read what TGI's `/metrics` answers.

    Args:
        text: In Prometheus' text format.
        time: When it was read, in seconds of `time.monotonic`.

    Raises:
        NotRunningError: It is not in that format.
    """
    samples = _read(text)
    sums = samples.sums
    _check(sums, _COUNTERS, "TGI")
    return Metrics(
        time=time,
        skipped_sum=sums.get("tgi_request_skipped_tokens_sum", 0.0),
        skipped_count=sums.get("tgi_request_skipped_tokens_count", 0.0),
        num_requests=max(0.0, sums.get("tgi_request_count", 0.0) - samples.refused),
        num_succeeded=sums.get("tgi_request_success", 0.0),
        num_failed=sums.get("tgi_request_failure", 0.0),
        generated_tokens=sums.get("tgi_request_generated_tokens_sum", 0.0),
        queue_size=sums.get("tgi_queue_size", 0.0),
        batch_size=sums.get("tgi_batch_current_size", 0.0),
        values=samples.values,
    )


def parse_metrics_of(names: MetricNames, title: str, text: str, *, time: float) -> Metrics:
    """Read what another engine's `/metrics` answers.

    Args:
        names: What it counts.
        title: What it is called.
        text: In Prometheus' text format.
        time: When it was read, in seconds of `time.monotonic`.

    Raises:
        NotRunningError: It is not in that format.
    """
    samples = _read(text)
    sums = samples.sums
    _check(sums, [name for name in vars(names).values() if name], title)
    generated = sums.get(names.generated, 0.0)
    requests = sums.get(names.requests, 0.0)
    skipped = sums.get(names.accepted, 0.0)
    if verified := sums.get(names.verified, 0.0):
        # The pass that reads a prompt yields a token, and verifies nothing.
        skipped = generated - verified - requests
    # What was accepted past the end of an answer is not generated.
    skipped = min(max(0.0, skipped), generated)
    return Metrics(
        time=time,
        skipped_sum=skipped,
        skipped_count=generated - skipped,
        num_requests=requests,
        num_succeeded=requests,
        generated_tokens=generated,
        queue_size=sums.get(names.waiting, 0.0),
        batch_size=sums.get(names.running, 0.0),
        drafted=sums.get(names.drafted, 0.0) if names.drafted else None,
        values=samples.values,
    )


def _check(sums: Mapping[str, float], names: Sequence[str], title: str) -> None:
    if wrong := [name for name in names if not 0 <= sums.get(name, 0.0) < _LARGEST]:
        msg = f"/metrics is not {title}'s: {wrong[0]} is {sums[wrong[0]]}."
        raise NotRunningError(msg)


def _read(text: str) -> _Samples:
    # The import takes a tenth of a second, which not every user of the package needs.
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = {}
    sums: dict[str, float] = {}
    refused = 0.0
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
                # Versions of the parser differ in whether the name of a counter ends so.
                name = sample.name.removesuffix("_total")
                sums[name] = sums.get(name, 0.0) + sample.value
                if name == "tgi_request_failure" and sample.labels.get("err") in _REFUSED:
                    refused += sample.value
    except Exception as error:  # the parser stumbles over other texts in many ways
        msg = f"/metrics is not in Prometheus' text format: {str(error)[:200]}."
        raise NotRunningError(msg) from error
    return _Samples(values, sums, refused)

"""What a server counts, for Prometheus: under the names of TGI, and of vLLM where TGI has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from langchain_specdec.completions.events import Event, FinishEvent, TokenEvent
from langchain_specdec.completions.stats import SpeculationStats
from langchain_specdec.completions.stream import CompletionStream
from langchain_specdec.errors import CompletionTimeoutError

# Upper ends of buckets, in tokens and in seconds.
_TOKENS = tuple(float(2**power) for power in range(1, 17))
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class _Histogram:
    """Counts of values by bucket."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[next((i for i, bound in enumerate(self._bounds) if value <= bound), -1)] += 1
        self._sum += value

    def family(self, name: str, text: str, labels: dict[str, str]) -> Metric:
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(name, text, labels=list(labels))
        family.add_metric(list(labels.values()), buckets, self._sum)
        return family


class ServerMetrics(Collector):
    """Counts what happens to requests. Everything but `text` is for the server's event loop.

    Args:
        model_name: The model, which vLLM's series name.
        num_running: Tells how many requests hold a slot.
        num_waiting: Tells how many wait for one.
    """

    def __init__(self, model_name: str, num_running: Callable[[], int], num_waiting: Callable[[], int]) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._num_running = num_running
        self._num_waiting = num_waiting
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._speculation = SpeculationStats()
        self._num_drafts = 0
        self._generated = _Histogram(_TOKENS)
        self._prompt = _Histogram(_TOKENS)
        self._first_token = _Histogram(_SECONDS)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def asked(self) -> None:
        """Count a request, whatever becomes of it."""
        self._counts["asked"] += 1

    def failed(self, kind: str) -> None:
        """Count one that failed, by TGI's name for the kind of error."""
        self._failures[kind] += 1

    async def counted(self, stream: CompletionStream) -> AsyncIterator[Event]:
        """The events of a completion, counted as they pass."""
        num_read = 0
        try:
            async for event in stream:
                if isinstance(event, TokenEvent):
                    num_read += len(event.tokens)
                    self._counts["passes"] += 1
                    self._counts["skipped"] += len(event.tokens) - 1
                    self._num_drafts += event.drafted_tokens > 0
                else:
                    self._ended(event)
                yield event
        except CompletionTimeoutError:
            self.failed("timeout")
            raise
        except Exception:
            self.failed("generation")
            raise

    def _ended(self, finish: FinishEvent) -> None:
        self._counts["success"] += 1
        self._finished[finish.finish_reason] += 1
        self._counts["prompt_tokens"] += finish.prompt_tokens
        self._counts["cached_tokens"] += finish.cached_tokens or 0
        self._speculation += finish.speculation
        self._generated.observe(finish.completion_tokens)
        self._prompt.observe(finish.prompt_tokens)
        if finish.time_to_first_token is not None:
            self._first_token.observe(finish.time_to_first_token)

    def collect(self) -> Iterator[Metric]:
        """The series."""
        yield from self._of_tgi()
        yield from self._of_vllm()
        yield from self._by_source()

    def _of_tgi(self) -> Iterator[Metric]:
        # TGI's counters lack the ending that Prometheus asks for, so that they count as of no type here.
        counters = {
            "tgi_request_count": ("Requests.", self._counts["asked"]),
            "tgi_request_success": ("Requests that were answered to their end.", self._counts["success"]),
        }
        for name, (text, value) in counters.items():
            metric = Metric(name, text, "unknown")
            metric.add_sample(name, {}, value)
            yield metric
        failures = Metric("tgi_request_failure", "Requests that failed, by kind.", "unknown")
        for kind, count in self._failures.items():
            failures.add_sample("tgi_request_failure", {"err": kind}, count)
        yield failures
        skipped = Metric(
            "tgi_request_skipped_tokens", "Tokens of a forward pass beyond its first, for each request.", "summary"
        )
        skipped.add_sample("tgi_request_skipped_tokens_sum", {}, self._counts["skipped"])
        skipped.add_sample("tgi_request_skipped_tokens_count", {}, self._counts["passes"])
        yield skipped
        yield self._generated.family("tgi_request_generated_tokens", "Tokens generated for a request.", {})
        yield self._prompt.family("tgi_request_input_length", "Prompt tokens of a request.", {})
        yield GaugeMetricFamily("tgi_queue_size", "Requests that wait for a slot.", self._num_waiting())
        yield GaugeMetricFamily("tgi_batch_current_size", "Requests that hold a slot.", self._num_running())

    def _of_vllm(self) -> Iterator[Metric]:
        stats = self._speculation
        gauges = {
            "num_requests_running": ("Requests that hold a slot.", self._num_running()),
            "num_requests_waiting": ("Requests that wait for a slot.", self._num_waiting()),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge
        counters = {
            "prompt_tokens": ("Prompt tokens of answered requests.", self._counts["prompt_tokens"]),
            "prefix_cache_hits": ("Prompt tokens that needed no prefill.", self._counts["cached_tokens"]),
            "generation_tokens": ("Tokens generated for answered requests.", stats.emitted_tokens),
            "spec_decode_num_drafts": ("Steps that had a draft.", self._num_drafts),
            "spec_decode_num_draft_tokens": ("Tokens drafted for answered requests.", stats.drafted_tokens),
            "spec_decode_num_accepted_tokens": ("Drafted tokens that were accepted.", stats.accepted_tokens),
        }
        for name, (text, value) in counters.items():
            yield self._counter(f"vllm:{name}", text, {}, [((), value)])
        places = [((str(place),), count) for place, count in enumerate(stats.accepted_per_position)]
        text = "Drafted tokens that were accepted, by their place in the draft."
        yield self._counter("vllm:spec_decode_num_accepted_tokens_per_pos", text, {"position": ""}, places)
        reasons = [((reason,), count) for reason, count in self._finished.items()]
        yield self._counter(
            "vllm:request_success", "Answered requests, by their end.", {"finished_reason": ""}, reasons
        )
        text = "Seconds from a request to its first token."
        yield self._first_token.family("vllm:time_to_first_token_seconds", text, self._labels)

    def _by_source(self) -> Iterator[Metric]:
        """What neither TGI nor vLLM tells: where drafts came from."""
        drafted, accepted = self._speculation.drafted_by_source, self._speculation.accepted_by_source
        for what, text, counts in ("drafted", "Drafted tokens", drafted), ("accepted", "Accepted tokens", accepted):
            values = [((source,), count) for source, count in counts.items()]
            yield self._counter(f"specdec:{what}_tokens_by_source", f"{text}, by origin.", {"source": ""}, values)

    def _counter(
        self, name: str, text: str, further: dict[str, str], values: Sequence[tuple[tuple[str, ...], int]]
    ) -> Metric:
        family = CounterMetricFamily(name, text, labels=[*self._labels, *further])
        for labels, value in values:
            family.add_metric([*self._labels.values(), *labels], value)
        return family

"""Prometheus metrics under vLLM's names, and Janus's own, in a registry of their own.

Counts of the engine come from its snapshot at the time of the scrape; times of requests are
recorded by the routes as chunks arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from janus_moe.server.backend import EngineBackend, EngineSnapshot, TokenChunk

_TOKEN_BUCKETS_S = tuple(
    float(bound)
    for bound in (
        *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
        *(1, 2.5, 5, 10, 20, 40, 80),
    )
)
_REQUEST_BUCKETS_S = tuple(
    float(bound)
    for bound in (
        *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40),
        *(80, 160, 320, 640, 1280),
    )
)


class Metrics:
    """All metrics of one server."""

    def __init__(self, backend: EngineBackend, model_name: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(EngineCollector(backend, model_name))
        self._label = model_name
        self.time_to_first_token = self._times("time_to_first_token", _REQUEST_BUCKETS_S)
        self.inter_token_latency = self._times("inter_token_latency", _TOKEN_BUCKETS_S)
        self.time_per_output_token = self._times("request_time_per_output_token", _TOKEN_BUCKETS_S)
        self.e2e_latency = self._times("e2e_request_latency", _REQUEST_BUCKETS_S)
        self.queue_time = self._times("request_queue_time", _REQUEST_BUCKETS_S)
        self._successes = Counter(
            "vllm:request_success",
            "Finished requests by reason",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort"):
            self._successes.labels(model_name, reason)

    def finished(self, reason: str) -> None:
        self._successes.labels(self._label, reason).inc()

    def render(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)

    def _times(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            f"vllm:{name}_seconds",
            f"{name.replace('_', ' ')} in seconds",
            ["model_name"],
            buckets=buckets,
            registry=self._registry,
        )
        return family.labels(self._label)


class RequestTimer:
    """Times of one engine request, from its arrival at the server on."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], arrival_s: float) -> None:
        self._metrics = metrics
        self._clock = clock
        self._arrival_s = arrival_s
        self._first_s: float | None = None
        self._last_s = arrival_s
        self._num_tokens = 0
        self._finished = False

    def chunk(self, chunk: TokenChunk) -> None:
        """Records the arrival of a chunk."""
        now = self._clock()
        if chunk.queued_s is not None:
            self._metrics.queue_time.observe(chunk.queued_s)
        if chunk.token_ids:
            self._tokens(len(chunk.token_ids), now)
        if chunk.finish_reason is not None:
            self._finish(chunk.finish_reason, now)

    def refused(self) -> None:
        """The engine has refused the request, or one beside it: what never ran is not counted."""
        self._finished |= self._first_s is None

    def close(self) -> None:
        """Nothing more will come; without a finish reason the request counts as aborted."""
        if not self._finished:
            self._finished = True
            self._metrics.finished("abort")

    def _tokens(self, count: int, now: float) -> None:
        if self._first_s is None:
            self._first_s = now
            self._metrics.time_to_first_token.observe(now - self._arrival_s)
        else:
            for _ in range(count):
                self._metrics.inter_token_latency.observe((now - self._last_s) / count)
        self._last_s = now
        self._num_tokens += count

    def _finish(self, reason: str, now: float) -> None:
        self._finished = True
        self._metrics.finished(reason)
        self._metrics.e2e_latency.observe(now - self._arrival_s)
        if self._first_s is not None and self._num_tokens > 1:
            per_token = (self._last_s - self._first_s) / (self._num_tokens - 1)
            self._metrics.time_per_output_token.observe(per_token)


class EngineCollector:
    """Turns the engine's snapshot into metric families at the time of the scrape."""

    def __init__(self, backend: EngineBackend, model_name: str) -> None:
        self._backend = backend
        self._labels = {"model_name": model_name}

    def collect(self) -> Iterator[Metric]:
        if self._backend.status == "loading":
            return
        snapshot = self._backend.snapshot()
        yield from self._gauges(snapshot)
        yield from self._counters(snapshot)
        yield from self._expert_gauges(snapshot)
        yield from self._summaries(snapshot)
        yield from self._exchange(snapshot)

    def _gauges(self, snapshot: EngineSnapshot) -> Iterator[Metric]:
        yield self._gauge("vllm:num_requests_running", "Requests in a batch", snapshot.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests queued", snapshot.waiting)
        yield self._gauge(
            "vllm:kv_cache_usage_perc", "Used share of the KV cache", snapshot.kv_usage
        )
        yield self._gauge("janus:placement_epoch", "Current placement", snapshot.placement_epoch)
        sizes = GaugeMetricFamily(
            "janus:pool_size", "Instances of a pool", labels=[*self._labels, "pool"]
        )
        for pool, size in snapshot.pool_sizes.items():
            sizes.add_metric([*self._labels.values(), pool], size)
        yield sizes

    def _counters(self, snapshot: EngineSnapshot) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:prompt_tokens", "Prompt tokens processed", snapshot.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated", snapshot.generation_tokens),
            ("vllm:num_preemptions", "Requests preempted", snapshot.preemptions),
            ("janus:requests_readmitted", "Requests given to others", snapshot.readmissions),
        ):
            family = CounterMetricFamily(name, text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), value)
            yield family

    def _expert_gauges(self, snapshot: EngineSnapshot) -> Iterator[Metric]:
        activated = GaugeMetricFamily(
            "janus:activated_experts_per_instance",
            "Mean distinct experts activated per MoE layer pass",
            labels=[*self._labels, "instance"],
        )
        for instance, mean in snapshot.activated_experts.items():
            activated.add_metric([*self._labels.values(), str(instance.number)], mean)
        yield activated
        yield self._gauge(
            "janus:expert_load_imbalance",
            "Activated experts of the busiest expert instance over the mean",
            snapshot.expert_load_imbalance,
        )

    def _exchange(self, snapshot: EngineSnapshot) -> Iterator[Metric]:
        """Nothing where no messages cross a network."""
        if not snapshot.exchange_steps:
            return
        labels = [*self._labels, "plan"]
        latest = GaugeMetricFamily("janus:exchange_plan", "1 for the latest step's", labels=labels)
        steps = CounterMetricFamily("janus:exchange_steps", "Steps by plan", labels=labels)
        for plan, count in snapshot.exchange_steps.items():
            values = [*self._labels.values(), plan]
            latest.add_metric(values, plan == snapshot.exchange_plan)
            steps.add_metric(values, count)
        yield latest
        yield steps

    def _summaries(self, snapshot: EngineSnapshot) -> Iterator[Metric]:
        for name, text, timing in (
            ("dispatch", "Waiting for dispatch per step", snapshot.dispatch),
            ("combine", "Waiting for combine per step", snapshot.combine),
            ("scheduler", "Scheduling of activated experts per step", snapshot.scheduler),
        ):
            family = SummaryMetricFamily(f"janus:{name}_seconds", text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), timing.count, timing.total_s)
            yield family

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

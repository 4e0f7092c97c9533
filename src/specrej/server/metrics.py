"""What Prometheus reads at /metrics: requests, memory, tokens, decisions, seconds. A registry of
its own.

meters = Meters(service)
meters.count_request("/v1/completions", 200, seconds=1.5)
meters.render()
"""

from collections import Counter as Tally

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from specrej.server.service import Service
from specrej.types import Result

CONTENT_TYPE = CONTENT_TYPE_LATEST

_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)


class Meters:
    """Counts what the server does; reads the rest from the service when asked."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()
        gauges = {
            "requests_in_flight": (
                "Requests whose candidates are decoded or scored",
                lambda: service.num_active,
            ),
            "requests_queued": ("Requests that wait", lambda: service.num_waiting),
            "kv_bytes": ("KV in use", lambda: service.kv_bytes),
            "kv_total_bytes": ("KV that requests share", lambda: service.total_bytes),
        }
        for name, (words, read) in gauges.items():
            Gauge(f"specrej_{name}", words, registry=registry).set_function(read)

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"specrej_{name}", words, labels, registry=registry)

        def seconds(name: str, words: str, *labels: str) -> Histogram:
            return Histogram(
                f"specrej_{name}_seconds", words, labels, registry=registry, buckets=_BUCKETS_S
            )

        self._requests = counter(
            "requests", "Requests, by path and status; 499: the client had gone", "path", "status"
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self._generated_tokens = counter(
            "generated_tokens", "Tokens decoded, those of rejected candidates included"
        )
        self._answer_tokens = counter("answer_tokens", "Tokens of the answers returned")
        self._reward_tokens = counter("reward_tokens", "Tokens that the reward read")
        self._decisions = counter("decisions", "Decisions, by what caused them", "cause")
        self._rejected = counter("rejected_candidates", "Candidates rejected")
        self._late = counter("late_answers", "Answers that a deadline cut short")
        self._request_s = seconds(
            "request", "From a request's first byte to its answer's last", "path"
        )
        self._first_text_s = seconds(
            "first_text", "From a streamed request's first byte to the answer's first text"
        )

    def count_request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._request_s.labels(path).observe(seconds)

    def count_reading(self, num_tokens: int) -> None:
        """Count tokens of prompts that were read for how likely they are."""
        self._prompt_tokens.inc(num_tokens)

    def count_first_text(self, seconds: float) -> None:
        self._first_text_s.observe(seconds)

    def count_answer(self, result: Result, answer_tokens: int, *, is_late: bool) -> None:
        """Count what a result took."""
        self._prompt_tokens.inc(result.usage.prompt_tokens)
        self._generated_tokens.inc(result.usage.generated_tokens)
        self._answer_tokens.inc(answer_tokens)
        self._reward_tokens.inc(result.usage.reward_tokens)
        for cause, number in Tally(decision.cause for decision in result.decisions).items():
            self._decisions.labels(cause).inc(number)
        self._rejected.inc(sum(len(decision.rejected) for decision in result.decisions))
        self._late.inc(is_late)

    def count_reward_tokens(self, number: int) -> None:
        """Those that the reward read of answers that were given."""
        self._reward_tokens.inc(number)

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

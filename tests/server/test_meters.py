"""What Prometheus reads is what happened."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import specrej
from endpoint import DEFAULTS, Scripted, fake_service, live, until
from fakes import FakeEngine, FakeReward

TEXT = {"model": "bytes", "prompt": "Why?", "seed": 3}


def read(url: str) -> dict[str, float]:
    """The samples by name, labels behind it."""
    response = httpx.get(f"{url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    samples = [
        sample
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    return {
        " ".join([sample.name, *map(str, sample.labels.values())]): sample.value
        for sample in samples
    }


def test_gauges_are_what_the_service_says() -> None:
    scripted = Scripted()
    with live(scripted) as url:
        gauges = read(url)
        assert gauges["specrej_requests_in_flight"] == 2
        assert gauges["specrej_requests_queued"] == 3
        assert (gauges["specrej_kv_bytes"], gauges["specrej_kv_total_bytes"]) == (100, 30_000)
        scripted.num_active = 0
        assert read(url)["specrej_requests_in_flight"] == 0


def test_a_request_is_counted_with_all_it_took() -> None:
    with live(fake_service()) as url:
        body = httpx.post(
            f"{url}/v1/completions", json={**TEXT, "n": 2, "specrej": {"decide": "every:4"}}
        ).json()
        until(lambda: "specrej_requests_total /v1/completions 200" in read(url))
        counts = read(url)
    options = {**DEFAULTS.to_dict(), "seed": 3, "decide": "every:4"}
    result = specrej.generate("Why?", model=FakeEngine(), reward=FakeReward(), **options)
    assert counts["specrej_requests_total /v1/completions 200"] == 1
    assert counts["specrej_generated_tokens_total"] == result.usage.generated_tokens
    assert counts["specrej_reward_tokens_total"] == result.usage.reward_tokens
    assert counts["specrej_prompt_tokens_total"] == result.usage.prompt_tokens
    assert counts["specrej_answer_tokens_total"] == body["usage"]["completion_tokens"]
    assert (
        counts["specrej_rejected_candidates_total"]
        == sum(len(one.rejected) for one in result.decisions)
        > 0
    )
    assert sum(bool(one.rejected) for one in result.decisions) > 1
    decisions = {
        name: count for name, count in counts.items() if name.startswith("specrej_decisions_total")
    }
    assert sum(decisions.values()) == len(result.decisions)
    assert counts["specrej_request_seconds_count /v1/completions"] == 1
    assert counts["specrej_first_text_seconds_count"] == 0


@pytest.mark.parametrize("eos", [0.0, 0.5])
def test_the_first_text_of_a_stream_is_timed_once(eos: float) -> None:
    with live(fake_service(FakeEngine(eos=eos))) as url:
        httpx.post(f"{url}/v1/completions", json={**TEXT, "stream": True})
        until(lambda: read(url).get("specrej_requests_total /v1/completions 200") == 1)
        counts = read(url)
    assert counts["specrej_first_text_seconds_count"] == 1
    assert (
        counts["specrej_first_text_seconds_sum"]
        <= counts["specrej_request_seconds_sum /v1/completions"]
    )


def test_paths_that_nobody_knows_are_counted_together() -> None:
    with live(Scripted()) as url:
        for path in ("/a", "/b", "/v1/models/x"):
            httpx.get(url + path)
        httpx.post(f"{url}/v1/completions", json={"model": "bytes"})
        counts = read(url)
    assert counts["specrej_requests_total other 404"] == 3
    assert counts["specrej_requests_total /v1/completions 400"] == 1
    assert not [name for name in counts if "/a" in name or "models/x" in name]


def test_two_servers_count_for_themselves() -> None:
    with live(Scripted()) as one, live(Scripted()) as other:
        httpx.get(f"{one}/nowhere")
        assert read(one)["specrej_requests_total other 404"] == 1
        assert "specrej_requests_total other 404" not in read(other)

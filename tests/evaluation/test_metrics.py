"""The paper's figures: by hand on small benches, against numpy and scipy, and what must hold for
all benches."""

import json
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specrej.errors import UnknownNameError
from specrej.evaluation.comparison import align, improvements, rewards
from specrej.evaluation.intervals import Estimate, estimate, mean_of
from specrej.evaluation.judge import VerdictRow
from specrej.evaluation.metrics import COMPUTES, SCORES, Summary, summarize
from specrej.evaluation.rows import BenchRow, CandidateRow, TurnRow
from specrej.evaluation.speedup import needed_compute

BASE, OTHER = "best_of_n:8", "speculative_rejection:0.5"

hundredths = st.integers(-300, 300).map(lambda number: number / 100)
benches = st.integers(1, 6).flatmap(
    lambda num_prompts: st.lists(
        st.lists(hundredths, min_size=8, max_size=8), min_size=num_prompts, max_size=num_prompts
    )
)
"""The rewards of eight candidates of each prompt."""


def turn(final: Sequence[float], **given: Any) -> TurnRow:
    """A question whose candidates all came to their end with these rewards; the best was chosen."""
    tokens, perplexities = given.get("tokens", 100), given.get("perplexities", [2.0] * len(final))
    best = int(np.argmax(final))
    candidates: list[CandidateRow] = [
        {
            "index": index,
            "num_tokens": 10,
            "state": "complete",
            "finish_reason": "eos",
            "perplexity": perplexity,
            "rewards": {"0": 0.123 * index, "1": reward},
        }
        for index, (reward, perplexity) in enumerate(zip(final, perplexities, strict=True))
    ]
    # Nobody's answer: what it said before it was rejected must count nowhere.
    lost: CandidateRow = {
        **candidates[0],
        "state": "rejected",
        "perplexity": 99.0,
        "rewards": {"0": 50.0},
    }
    parts = {
        "prefill_s": 0.5,
        "decode_s": given.get("seconds", 1.0),
        "reward_s": 0.25,
        "other_s": 0.25,
    }
    return {
        "messages": [{"role": "user", "content": "Hello"}],
        "text": given.get("text", f"answer {final[best]} of {len(final)}"),
        "reward": final[best],
        "perplexity": perplexities[best],
        "lowest_text": "worst",
        "lowest_reward": min(final),
        "candidates": [*candidates, lost],
        "decisions": [],
        "usage": {
            "prompt_tokens": 7,
            "generated_tokens": tokens,
            "reward_tokens": 3 * tokens,
            **parts,  # type: ignore[typeddict-item]
            "total_s": sum(parts.values()),
            "peak_kv_bytes": 5 * tokens,
            "num_steps": 10,
        },
        "flops": {"prefill": 1.0, "decode": 2.0 * tokens, "reward": given.get("reward_flops", 3.0)},
        "memory_bytes": 1000,
    }


def row(prompt_id: str, method: str, *turns: TurnRow) -> BenchRow:
    """A method on a prompt; it failed if there are no turns."""
    error = None if turns else {"kind": "RewardError", "message": "as asked for"}
    return {
        "prompt_id": prompt_id,
        "category": None,
        "method": method,
        "place": 0,
        "turns": list(turns),
        "error": error,  # type: ignore[typeddict-item]
    }


def bench(finals: Sequence[Sequence[float]], sizes: Sequence[int] = (1, 2, 4, 8)) -> list[BenchRow]:
    """Best-of-N on nested candidates: 100 tokens and a second of decoding a candidate."""
    return [
        row(f"p{number}", f"best_of_n:{n}", turn(final[:n], tokens=100 * n, seconds=n - 1.0))
        for number, final in enumerate(finals)
        for n in sizes
    ]


def pair(base: Sequence[Sequence[float]], other: Sequence[Sequence[float] | None]) -> Summary:
    """A baseline and another method, prompt by prompt; None where the other failed."""
    rows = [row(f"p{number}", BASE, turn(final)) for number, final in enumerate(base)]
    rows += [
        row(f"p{number}", OTHER, *([turn(f, tokens=50)] if f else []))
        for number, f in enumerate(other)
    ]
    return summarize(rows, BASE)


def ends(figure: Estimate) -> list[float | None]:
    return [figure["value"], figure["low"], figure["high"]]


# Improvement


def test_improvement_by_hand() -> None:
    # The baseline's range is 1 to 3. The other's best is half a range above, at the top, a whole
    # range below.
    summary = pair([[1, 3], [1, 2, 3], [3, 1]], [[4, -9], [3], [1, 1]])
    assert summary["methods"][OTHER]["improvement"]["value"] == pytest.approx((150 + 100 + 0) / 3)


def test_improvement_of_several_turns_is_their_mean() -> None:
    rows = [
        row("p", BASE, turn([0, 1]), turn([0, 10]), turn([5, 5])),
        row("p", OTHER, turn([2]), turn([5]), turn([9])),
    ]
    # Turn by turn 200 and 50; the third turn has no scale.
    assert improvements(align(rows, BASE), OTHER).tolist() == [125]
    assert rewards(align(rows, BASE), OTHER).tolist() == [pytest.approx(16 / 3)]


def test_prompts_without_a_scale_are_left_out_of_improvement_and_counted() -> None:
    summary = pair([[2, 2], [1, 3]], [[9], [4]])
    assert summary["num_flat"] == 1
    assert summary["num_prompts"] == 2
    assert summary["methods"][OTHER]["improvement"]["value"] == 150
    nowhere = pair([[2, 2]], [[9]])
    assert nowhere["methods"][OTHER]["improvement"] == {"value": None, "low": None, "high": None}
    assert nowhere["methods"][OTHER]["speedup"]["improvement"]["tokens"] is None


def test_a_prompt_on_which_the_baseline_hardly_differs_is_named_and_the_median_stands() -> None:
    summary = pair([[1.0, 1.0 + 1e-4], [1, 3], [1, 3], [2, 2]], [[2], [3], [3], [9]])
    assert summary["narrow_prompts"] == ["p0"]
    figures = summary["methods"][OTHER]
    assert (figures["improvement"]["value"] or 0) > 100_000
    assert figures["improvement_median"]["value"] == 100
    assert pair([[1, 3], [1, 2]], [[2], [2]])["narrow_prompts"] == []
    assert pair([[1, 1]], [[2]])["narrow_prompts"] == []
    assert pair([[1, 1 + 1e-12]], [[2]])["narrow_prompts"] == ["p0"]


@given(benches)
@settings(max_examples=20, deadline=None)
def test_the_baseline_against_itself(finals: list[list[float]]) -> None:
    summary = summarize(bench(finals), BASE)
    own = summary["methods"][BASE]
    if summary["num_flat"] < len(finals):
        assert own["improvement"]["value"] == 100
    assert own["difference"]["value"] == 0
    assert all(own["relative"][measure]["value"] == 1 for measure in COMPUTES)
    assert own["by_reward"]["tie"]["value"] == 1


@given(benches, benches, st.floats(0.01, 100), st.floats(-100, 100))
def test_improvement_does_not_depend_on_the_scale_of_rewards(
    base: list[list[float]], other: list[list[float]], scale: float, shift: float
) -> None:
    def scores(a: float, b: float) -> Any:
        rows = [
            row(f"p{n}", BASE, turn([a * x + b for x in final])) for n, final in enumerate(base)
        ]
        rows += [
            row(f"p{n}", OTHER, turn([a * x + b for x in final])) for n, final in enumerate(other)
        ]
        return improvements(align(rows, BASE), OTHER)

    assert scores(scale, shift).tolist() == pytest.approx(
        scores(1, 0).tolist(), rel=1e-4, abs=1e-4, nan_ok=True
    )


# Compute and speedup


def test_relative_compute_is_sum_by_sum() -> None:
    rows = [
        row(p, BASE, turn([0, 1], tokens=t, seconds=s))
        for p, t, s in (("a", 100, 3.0), ("b", 500, 9.0))
    ]
    rows += [
        row(p, OTHER, turn([1], tokens=t, seconds=s))
        for p, t, s in (("a", 50, 1.0), ("b", 100, 0.0))
    ]
    relative = summarize(rows, BASE)["methods"][OTHER]["relative"]
    assert relative["tokens"]["value"] == pytest.approx(150 / 600)
    assert relative["seconds"]["value"] == pytest.approx((2 + 1) / (4 + 10))
    assert relative["flops"]["value"] == pytest.approx((2 * 4 + 2 * 150) / (2 * 4 + 2 * 600))


def test_the_midpoint_is_the_one_of_logarithms() -> None:
    points, scores = np.array([[1.0], [100.0]]), np.array([[0.0], [1.0]])
    assert needed_compute(points, scores, np.array([0.5])) == pytest.approx(10)


def test_a_rise_that_is_only_rounding_overflows_nowhere() -> None:
    points, scores = np.array([[1.0], [10.0], [100.0]]), np.array([[0.0], [100.0], [100.0 + 1e-13]])
    assert needed_compute(points, scores, np.array([50.0])) == pytest.approx(10**0.5)
    assert needed_compute(points, scores, np.array([101.0])) == [np.inf]


@pytest.mark.parametrize("noise", [-8e-8, 8e-8])
def test_the_last_digits_of_a_reward_decide_nothing(noise: float) -> None:
    """The same answers, scored in another batch, are neither below Best-of-N nor above it."""
    points, scores = np.array([[1.0], [4.0]]), np.array([[-0.8096], [-0.5]])
    assert needed_compute(points, scores, np.array([-0.8096 + noise])) == pytest.approx(1)
    assert needed_compute(points, scores, np.array([-0.5 + noise])) == pytest.approx(4)


@given(
    st.lists(st.floats(0.01, 100), min_size=2, max_size=6, unique=True),
    st.lists(st.integers(-50, 50), min_size=6, max_size=6, unique=True),
    st.floats(-60, 60),
)
def test_needed_compute_is_an_interpolation_of_rising_points(
    computes: list[float], heights: list[int], target: float
) -> None:
    assume(min(np.diff(np.log(sorted(computes)))) > 1e-6)
    compute, score = sorted(computes), sorted(heights)[: len(computes)]
    shuffled = random.Random(0).sample(range(len(compute)), len(compute))
    given_points = (
        np.array([[compute[i]] for i in shuffled]),
        np.array([[float(score[i])] for i in shuffled]),
    )
    if near := [height for height in score if math.isclose(target, height, rel_tol=1e-5)]:
        target = float(near[0])  # what is so near is the height, for rounding's sake
    if abs(target) < 1e-5:
        target = 0.0
    needed = needed_compute(*given_points, np.array([target]))[0]
    if target < score[0]:
        assert needed == 0
    elif target > score[-1]:
        assert needed == math.inf
    else:
        assert needed == pytest.approx(np.exp(np.interp(target, score, np.log(compute))))
    for cost, height in zip(compute, score, strict=True):
        assert needed_compute(*given_points, np.array([float(height)]))[0] == pytest.approx(cost)


def test_where_the_curve_falls_and_rises_the_least_compute_counts() -> None:
    points, scores = (
        np.array([[1.0], [4.0], [16.0], [64.0]]),
        np.array([[0.0], [2.0], [1.0], [3.0]]),
    )
    assert needed_compute(points, scores, np.array([1.0])) == pytest.approx(2)
    assert needed_compute(points, scores, np.array([2.0])) == pytest.approx(4)
    assert needed_compute(points, scores, np.array([2.5])) == pytest.approx(16 * 4**0.75)


@given(benches, st.sampled_from([1, 2, 4, 8]), st.integers(10, 1000))
@settings(max_examples=20, deadline=None)
def test_a_method_as_good_as_a_point_is_worth_its_compute(
    finals: list[list[float]], n: int, tokens: int
) -> None:
    means = [np.mean([max(final[:size]) for final in finals]) for size in (1, 2, 4, 8)]
    assume(min(np.diff(means)) > 1e-9)
    rows = bench(finals)
    rows += [
        row(f"p{number}", OTHER, turn(final[:n], tokens=tokens))
        for number, final in enumerate(finals)
    ]
    methods = summarize(rows, BASE)["methods"]
    found = methods[OTHER]["speedup"]["reward"]["tokens"]
    assert found is not None
    assert found["outcome"] == "reached"
    assert found["value"] == pytest.approx(100 * n / tokens)
    own = methods[f"best_of_n:{n}"]["speedup"]["reward"]["tokens"]
    assert own is not None
    assert own["value"] == pytest.approx(1)


def test_nothing_is_extrapolated() -> None:
    rows = bench([[0, 1, 2, 3, 4, 5, 6, 7.0]] * 3, sizes=(2, 8))
    rows += [row(f"p{n}", "better", turn([8.0], tokens=100)) for n in range(3)]
    rows += [row(f"p{n}", "worse", turn([0.5], tokens=100)) for n in range(3)]
    methods = summarize(rows, BASE)["methods"]
    for score in SCORES:
        beyond, below = (methods[name]["speedup"][score]["tokens"] for name in ("better", "worse"))
        assert beyond == {
            "outcome": "not_reached",
            "value": pytest.approx(8),
            "low": None,
            "high": None,
        }
        assert below == {"outcome": "below", "value": pytest.approx(2), "low": None, "high": None}


def test_an_interval_may_end_beyond_the_points() -> None:
    """On half of the prompts the method is below Best-of-8, on the others above: its mean is
    between the points."""
    rows = bench([[0, 1, 2, 3, 4, 5, 6, 7.0]] * 8, sizes=(2, 8))
    rows += [row(f"p{n}", OTHER, turn([3.0 if n % 2 else 9.5], tokens=100)) for n in range(8)]
    found = summarize(rows, BASE)["methods"][OTHER]["speedup"]["reward"]["tokens"]
    assert found is not None
    assert found["outcome"] == "reached"
    assert found["value"] == pytest.approx(2 * 4 ** ((6.25 - 1) / 6))
    assert found["high"] is None
    assert found["low"] is not None
    assert 2 < found["low"] < found["value"]


def test_compute_that_is_not_known_is_none() -> None:
    rows = [
        row(f"p{n}", m, turn([0, n + 1.0], reward_flops=None))
        for n in range(3)
        for m in (BASE, OTHER)
    ]
    method = summarize(rows, BASE)["methods"][OTHER]
    assert method["relative"]["flops"]["value"] is None
    assert method["speedup"]["reward"]["flops"] is None
    assert method["relative"]["tokens"]["value"] == 1
    assert method["cost"]["flops"] == {
        "prefill": 3.0,
        "decode": 600.0,
        "reward": None,
        "total": None,
    }


def test_a_run_without_best_of_n_has_no_speedup() -> None:
    rows = [row(f"p{n}", OTHER, turn([0, n + 1.0])) for n in range(3)]
    method = summarize(rows, OTHER)["methods"][OTHER]
    assert method["speedup"]["reward"]["tokens"] is None
    assert method["speedup_to_largest"] is None
    assert method["improvement"]["value"] == 100


# Perplexity


def test_perplexity_table() -> None:
    rows = bench([[0, 1, 2, 3, 4, 5, 6, 7]] * 2)
    rows += [
        row(
            "p0",
            OTHER,
            turn([5, 4], perplexities=[3.0, 9.0]),
            turn([4, 5], perplexities=[9.0, 4.0], tokens=60),
        ),
        row("p1", OTHER, turn([5], perplexities=[1.5], tokens=40)),
    ]
    rows = [
        r if r["method"] == OTHER or r["prompt_id"] == "p1" else {**r, "turns": r["turns"] * 2}
        for r in rows
    ]
    method = summarize(rows, "best_of_n:1")["methods"][OTHER]
    assert method["perplexity"]["value"] == pytest.approx((3.5 + 1.5) / 2)
    assert method["speedup_to_largest"] is not None
    assert method["speedup_to_largest"]["tokens"]["value"] == pytest.approx(
        (2 * 800 + 800) / (100 + 60 + 40)
    )


# Wins


def test_wins_ties_and_losses() -> None:
    base = [[0, 1.0]] * 5
    rows = [
        row(f"p{n}", BASE, turn(final, text="same" if n == 3 else "base"))
        for n, final in enumerate(base)
    ]
    ends = [[2.0], [1.0 + 1e-12], [0.5], [0.9]]
    rows += [
        row(f"p{n}", OTHER, turn(final, text="same" if n == 3 else "other"))
        for n, final in enumerate(ends)
    ]
    rows += [row("p4", OTHER)]
    rates = summarize(rows, BASE)["methods"][OTHER]["by_reward"]
    # Better, equal, worse, the same text on another reward, failed.
    assert [rates[end]["value"] for end in ("win", "tie", "loss")] == [0.2, 0.4, 0.4]
    assert rates["num_prompts"] == 5
    assert rates["num_unclear"] == 0


def test_a_judge_decides_over_what_it_saw_and_failures_are_losses() -> None:
    names = "win", "tie", "loss", "failed", None, None
    rows = [row(f"p{n}", BASE, turn([0, 1.0])) for n in range(6)]
    rows += [row(f"p{n}", OTHER, *([turn([1.0])] if n < 5 else [])) for n in range(6)]

    def verdict(number: int, word: Any, method: str = OTHER, baseline: str = BASE) -> VerdictRow:
        return {
            "prompt_id": f"p{number}",
            "method": method,
            "baseline": baseline,
            "judge": "j",
            "verdict": word,
            "first": None,
            "second": None,
            "error": None,
            "calls": {"requests": 2, "cached": 0, "prompt_tokens": 0, "completion_tokens": 0},
        }

    verdicts = [verdict(n, name) for n, name in enumerate(names) if name]
    verdicts += [verdict(0, "loss", baseline="best_of_n:2"), verdict(0, "loss", method="gone")]
    methods = summarize(rows, BASE, verdicts)["methods"]
    assert list(methods[OTHER]["by_judge"]) == ["j"]
    rates = methods[OTHER]["by_judge"]["j"]
    assert [rates[word]["value"] for word in ("win", "tie", "loss", "unclear")] == [
        0.2,
        0.2,
        0.4,
        0.2,
    ]
    assert (rates["num_prompts"], rates["num_unclear"]) == (5, 1)
    assert methods[BASE]["by_judge"] == {}

    others = [{**verdict(n, "loss"), "judge": "k"} for n in range(2)]
    mixed: list[Any] = [*others[:1], *verdicts, *others[1:]]
    both = summarize(rows, BASE, mixed)["methods"][OTHER]["by_judge"]
    assert both["j"] == rates
    assert (both["k"]["loss"]["value"], both["k"]["num_prompts"]) == (1.0, 3)


# Failures and stopped runs


def test_a_failure_scores_like_the_worst_that_the_baseline_could_have_chosen() -> None:
    rows = [row(f"p{n}", BASE, turn([n, n + 2.0], perplexities=[4.0, 3.0])) for n in range(2)]
    rows += [row("p0", OTHER, turn([3.0], tokens=50, perplexities=[1.0])), row("p1", OTHER)]
    summary = summarize(rows, BASE)
    method = summary["methods"][OTHER]
    assert (summary["num_prompts"], method["num_failed"]) == (2, 1)
    assert method["reward"]["value"] == (3 + 1) / 2
    assert method["improvement"]["value"] == (150 + 0) / 2
    assert method["perplexity"]["value"] == (1 + 4) / 2
    assert (
        method["relative"]["tokens"]["value"] == 0.5
    )  # of the prompt that both came to the end of
    assert method["cost"]["num_prompts"] == 1


def test_where_the_baseline_failed_nothing_is_compared() -> None:
    rows = [
        row("p0", BASE),
        row("p0", OTHER, turn([9.0])),
        row("p1", BASE, turn([0, 1])),
        row("p1", OTHER, turn([2])),
    ]
    summary = summarize(rows, BASE)
    assert (summary["num_prompts"], summary["num_without_baseline"]) == (1, 1)
    assert summary["methods"][OTHER]["reward"] == {"value": 2.0, "low": None, "high": None}


def test_a_stopped_run_is_compared_on_what_all_have_ended() -> None:
    finals = [[float(n), n + 1.0] for n in range(4)]
    rows = [row(f"p{n}", m, turn(final)) for n, final in enumerate(finals) for m in (BASE, OTHER)]
    assert summarize(rows[:-1], BASE)["num_unfinished"] == 1
    assert summarize(rows[:-1], BASE)["methods"] == summarize(rows[:-2], BASE)["methods"]


def test_nothing_to_compare_is_no_error() -> None:
    summary = summarize([row("p0", BASE), row("p0", OTHER, turn([1.0]))], BASE)
    assert summary["num_prompts"] == 0
    assert summary["methods"][OTHER]["reward"]["value"] is None
    assert summary["methods"][OTHER]["speedup"]["reward"]["tokens"] is None
    json.dumps(summary, allow_nan=False)


def test_an_unknown_baseline_is_told_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="best_of_n:3") as caught:
        summarize(bench([[0.0] * 8]), "best_of_n:3")
    assert caught.value.hint is not None
    assert "best_of_n:8" in caught.value.hint


@given(benches, st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_every_bench_has_a_summary_in_json(
    finals: list[list[float]], chance: random.Random
) -> None:
    """Whatever failed or is missing, in any order; no figure is NaN, and each lies in its
    interval."""
    rows = [r if chance.random() < 0.8 else row(r["prompt_id"], r["method"]) for r in bench(finals)]
    rows = [r for r in rows if chance.random() < 0.95 or r["method"] == BASE]
    chance.shuffle(rows)
    summary = summarize(rows, BASE)
    json.dumps(summary, allow_nan=False)
    known = len({r["prompt_id"] for r in rows})
    assert (
        summary["num_prompts"] + summary["num_unfinished"] + summary["num_without_baseline"]
        == known
    )
    for method in summary["methods"].values():
        rates = [method["by_reward"][end]["value"] for end in ("win", "tie", "loss")]
        assert sum(filter(None, rates)) == pytest.approx(1 if summary["num_prompts"] else 0)
        for figure in (
            method["reward"],
            method["improvement"],
            method["relative"]["tokens"],
            method["risk"]["cvar"],
        ):
            if (
                figure["low"] is not None
                and figure["high"] is not None
                and figure["value"] is not None
            ):
                assert figure["low"] - 1e-9 <= figure["value"] <= figure["high"] + 1e-9


# Risk and cost


def test_risk_against_numpy() -> None:
    generator = np.random.default_rng(1)
    finals = generator.normal(size=(25, 8)).tolist()
    summary = summarize(bench(finals), BASE)
    best = np.max(finals, axis=1)
    risk = summary["methods"][BASE]["risk"]
    assert risk["mean_minus_sigma"]["value"] == pytest.approx(best.mean() - best.std())
    assert risk["cvar"]["value"] == pytest.approx(np.sort(best)[:2].mean())
    widest = np.argsort(np.var(finals, axis=1))[::-1][:5]
    assert summary["high_variance_prompts"] == [f"p{number}" for number in widest]
    assert risk["high_variance"]["value"] == pytest.approx(best[widest].mean())
    single = summary["methods"]["best_of_n:1"]["risk"]["high_variance"]["value"]
    assert single == pytest.approx(np.array(finals)[widest, 0].mean())


def test_few_prompts_have_one_worst() -> None:
    summary = pair([[0, 1], [0, 2], [0, 3]], [[1], [2], [3]])
    assert summary["methods"][OTHER]["risk"]["cvar"]["value"] == 1
    assert summary["high_variance_prompts"] == ["p2"]


def test_without_variance_no_prompt_stands_out() -> None:
    summary = pair([[0.1, 0.1, 0.1], [2, 2]], [[1], [2]])
    assert summary["high_variance_prompts"] == []
    assert summary["methods"][OTHER]["risk"]["high_variance"]["value"] is None


def test_cost_adds_up() -> None:
    rows = [
        row("a", BASE, turn([0, 1], tokens=10, seconds=2.0), turn([1], tokens=30)),
        row("b", BASE, turn([3])),
    ]
    cost = summarize(rows, BASE)["methods"][BASE]["cost"]
    assert cost == {
        "num_prompts": 2,
        "prompt_tokens": 21,
        "generated_tokens": 140,
        "reward_tokens": 420,
        "seconds": {"prefill": 1.5, "decode": 4.0, "reward": 0.75, "other": 0.75, "total": 7.0},
        "flops": {"prefill": 3.0, "decode": 280.0, "reward": 9.0, "total": 292.0},
        "peak_kv_bytes": 500,
    }


# Intervals


@pytest.mark.parametrize("size", [2, 5, 40])
def test_an_interval_is_scipys(size: int) -> None:
    values = np.random.default_rng(size).exponential(size=size)
    found = mean_of(values)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(expected.low, abs=0.1 * values.std())
    assert found["high"] == pytest.approx(expected.high, abs=0.1 * values.std())
    assert mean_of(values) == found


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """200 samples of 40 normal numbers: 95%, less what percentiles lose at 40, within three
    standard errors."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = mean_of(generator.normal(size=40))
        assert found["low"] is not None
        assert found["high"] is not None
        covered += found["low"] <= 0 <= found["high"]
    assert 0.88 < covered / 200 < 0.99


def test_what_has_no_spread_has_an_interval_of_no_width() -> None:
    assert ends(mean_of(np.full(7, 0.1))) == pytest.approx([0.1, 0.1, 0.1])
    assert mean_of(np.array([3.0])) == {"value": 3.0, "low": None, "high": None}
    assert mean_of(np.array([np.nan, 3.0])) == {"value": 3.0, "low": None, "high": None}
    assert mean_of(np.array([])) == {"value": None, "low": None, "high": None}


def test_resamples_without_a_figure_are_left_out() -> None:
    values = np.array([np.nan, 1.0, 2.0])
    with np.errstate(invalid="ignore"):
        found = estimate(
            lambda drawn: np.nansum(values[drawn], -1) / (~np.isnan(values[drawn])).sum(-1), 3
        )
    assert found == {"value": 1.5, "low": 1.0, "high": 2.0}


def test_methods_are_paired_by_prompt() -> None:
    finals = [[float(10 * n), 10.0 * n + 1] for n in range(9)]
    difference = pair(finals, [[final[1] + 0.5] for final in finals])["methods"][OTHER][
        "difference"
    ]
    assert ends(difference) == pytest.approx([0.5, 0.5, 0.5])

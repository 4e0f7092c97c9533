"""A bench runs every method on every prompt once, the same way each time, whatever fails or stops
in between.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from older import make_older
from specrej.errors import UsageError
from specrej.evaluation.bench import parse_methods, run_bench
from specrej.evaluation.folder import RESULTS, RUN, read_bench, read_info
from specrej.evaluation.policy_grid import ReplayPolicy
from specrej.evaluation.prompts import Loaded, load_prompts
from specrej.evaluation.recording import record
from specrej.evaluation.replay import Replayer, Rescorer
from specrej.evaluation.report import write_report
from specrej.evaluation.rows import BenchRow
from specrej.evaluation.trace import load
from specrej.messages import as_messages
from specrej.rewards import as_reward
from specrej.rewards.base import Reward
from specrej.search.events import Event, Observer
from specrej.settings import Settings

OPTIONS: dict[str, Any] = {"max_new_tokens": 40, "min_tokens": 6, "seed": 5, "memory": "4KiB"}
SETTINGS = Settings(**OPTIONS)
WORDS = ["best_of_n:3", "best_of_n:9", "speculative_rejection:0.5", "speculative_rejection:0.25:12"]
PROMPTS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "Why?"},
    {"id": "b", "turns": ["How?", "And then?"], "category": "writing"},
    {
        "id": "c",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who?"},
        ],
    },
]


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return load_prompts(str(path))


def bench(
    loaded: Loaded,
    directory: Path,
    *,
    reward: Reward | None = None,
    settings: Settings = SETTINGS,
    resume: bool = False,
    observe: Observer | None = None,
) -> list[BenchRow]:
    engine = FakeEngine()
    methods = parse_methods(WORDS, settings)
    rows = run_bench(
        loaded,
        methods,
        engine,
        reward or FakeReward(),
        directory,
        settings=settings,
        resume=resume,
        observe=observe,
    )
    try:
        return list(rows)
    finally:
        rows.close()
        assert not engine.groups


def without_seconds(rows: Sequence[BenchRow]) -> list[Any]:
    """Rows as JSON gives them back, sorted, but for what a clock has measured."""
    plain = json.loads(json.dumps(sorted(rows, key=lambda row: (row["prompt_id"], row["method"]))))
    for row in plain:
        for turn in row["turns"]:
            turn["usage"] = {
                name: value for name, value in turn["usage"].items() if not name.endswith("_s")
            }
    return list(plain)


def test_each_row_is_what_generate_gives(loaded: Loaded, tmp_path: Path) -> None:
    rows = bench(loaded, tmp_path / "out")
    assert sorted((row["prompt_id"], row["method"]) for row in rows) == sorted(
        (str(prompt["id"]), word) for prompt in PROMPTS for word in WORDS
    )
    options: dict[str, dict[str, Any]] = {
        "best_of_n:3": {"algorithm": "best_of_n", "n": 3},
        "best_of_n:9": {"algorithm": "best_of_n", "n": 9},
        "speculative_rejection:0.5": {"alpha": 0.5},
        "speculative_rejection:0.25:12": {"alpha": 0.25, "n": 12},
    }
    for row in rows:
        assert row["error"] is None
        for turn in row["turns"]:
            own = {**OPTIONS, **options[row["method"]], "seed": row["seed"]}
            result = specrej.generate(
                turn["messages"], model=FakeEngine(), reward=FakeReward(), **own
            )
            assert (turn["text"], turn["reward"]) == (result.text, result.reward)
            assert turn["usage"]["generated_tokens"] == result.usage.generated_tokens
            assert [c["num_tokens"] for c in turn["candidates"]] == [
                len(c.token_ids) for c in result.candidates
            ]
            assert [c["state"] for c in turn["candidates"]] == [c.state for c in result.candidates]
            assert [d["rejected"] for d in turn["decisions"]] == [
                list(d.rejected) for d in result.decisions
            ]
            complete = [c for c in result.candidates if c.state == "complete"]
            assert turn["lowest_reward"] == min(c.reward for c in complete if c.reward is not None)
            assert turn["lowest_text"] in {
                c.text for c in complete if c.reward == turn["lowest_reward"]
            }


def test_a_prompts_seed_is_its_own_and_all_methods(loaded: Loaded, tmp_path: Path) -> None:
    rows = bench(loaded, tmp_path / "out")
    seeds = {(row["prompt_id"], row["seed"]) for row in rows}
    assert dict(seeds) == loaded.seeds(OPTIONS["seed"])
    assert len(seeds) == len({seed for _, seed in seeds}) == len(PROMPTS)


def test_a_bench_has_the_candidates_of_a_trace_with_its_seed(
    loaded: Loaded, tmp_path: Path
) -> None:
    """The first turn of each prompt: a bench's Best-of-N is a trace's, and so is its replay."""
    rows = bench(loaded, tmp_path / "out")
    settings = replace(SETTINGS, n=12, memory="1MiB")
    engine, traced = FakeEngine(), tmp_path / "traces"
    steps = record(loaded, engine, FakeReward(), traced, settings=settings, checkpoints=[8])
    assert not [step for step in steps if step.error]
    for trace in load(traced):
        replayer = Replayer(trace, Rescorer(FakeReward(), engine.decode))
        live = {row["method"]: row for row in rows if row["prompt_id"] == trace.prompt_id}
        best = live["best_of_n:9"]
        assert best["seed"] == trace.settings["seed"]
        assert best["turns"][0]["reward"] == trace.final_rewards[:9].max()
        policy = ReplayPolicy(alpha=0.25, n=12, min_tokens=6, memory="4KiB")
        outcome, turn = replayer.run(policy), live["speculative_rejection:0.25:12"]["turns"][0]
        assert (outcome.best, outcome.reward) == (turn["best"], turn["reward"])
        assert [d.rejected for d in outcome.decisions] == [
            tuple(d["rejected"]) for d in turn["decisions"]
        ]


def test_a_bench_of_one_seed_for_all_prompts_is_read_and_not_gone_on_with(
    loaded: Loaded, tmp_path: Path
) -> None:
    bench(loaded, tmp_path / "out")
    info = {name: it for name, it in read_info(tmp_path / "out").items() if name != "seeds"}
    (tmp_path / "out" / RUN).write_text(json.dumps(info))
    path = tmp_path / "out" / RESULTS
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    older = [{name: it for name, it in row.items() if name != "seed"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in older))
    assert write_report(tmp_path / "out").exists()
    with pytest.raises(UsageError, match='its seeds was missing, now it is "one for each prompt"'):
        bench(loaded, tmp_path / "out", resume=True)


def test_what_is_yielded_is_on_the_disk(loaded: Loaded, tmp_path: Path) -> None:
    engine = FakeEngine()
    methods = parse_methods(WORDS, SETTINGS)
    for count, row in enumerate(
        run_bench(loaded, methods, engine, FakeReward(), tmp_path / "out", settings=SETTINGS), 1
    ):
        info, rows = read_bench(tmp_path / "out")
        assert rows[-1] == json.loads(json.dumps(row))
        assert len(rows) == count
    assert info["methods"] == WORDS
    assert info["prompts"]["num_prompts"] == 3
    assert info["settings"]["seed"] == 5
    assert not {"n", "alpha", "algorithm"} & info["settings"].keys()


def test_the_order_of_the_methods_rotates(loaded: Loaded, tmp_path: Path) -> None:
    rows = bench(loaded, tmp_path / "out")
    for number, prompt in enumerate("abc"):
        in_order = [row["method"] for row in rows if row["prompt_id"] == prompt]
        assert in_order == [*WORDS[number:], *WORDS[:number]]
        assert [row["place"] for row in rows if row["prompt_id"] == prompt] == [0, 1, 2, 3]


def test_turns_follow_on_the_chosen_answers(loaded: Loaded, tmp_path: Path) -> None:
    for row in bench(loaded, tmp_path / "out"):
        if row["prompt_id"] == "b":
            first, second = row["turns"]
            assert first["messages"] == as_messages("How?")
            answer = {"role": "assistant", "content": first["text"]}
            assert second["messages"] == [*as_messages("How?"), answer, *as_messages("And then?")]
            assert row["category"] == "writing"
        else:
            assert len(row["turns"]) == 1
            assert row["category"] is None


def test_a_default_budget_is_the_same_for_all_methods(loaded: Loaded, tmp_path: Path) -> None:
    rows = bench(loaded, tmp_path / "out", settings=Settings(max_new_tokens=40, seed=5))
    for prompt in "abc":
        budgets = {
            turn["memory_bytes"]
            for row in rows
            if row["prompt_id"] == prompt
            for turn in row["turns"]
        }
        assert len(budgets) == 1
    assert not [row for row in rows if row["error"]]


@pytest.mark.parametrize("after", [1, 60, 150, 290])
def test_a_run_that_was_stopped_goes_on_to_the_same_rows(
    loaded: Loaded, tmp_path: Path, after: int
) -> None:
    whole = bench(loaded, tmp_path / "whole")
    num_seen = 0

    def interrupt(_: Event) -> None:
        nonlocal num_seen
        num_seen += 1
        if num_seen == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench(loaded, tmp_path / "out", observe=interrupt)
    _, before = read_bench(tmp_path / "out")
    with (tmp_path / "out" / RESULTS).open("ab") as file:
        file.write(b'{"prompt_id": "c", "met')  # as a kill amid writing leaves it
    rest = bench(loaded, tmp_path / "out", resume=True)
    _, rows = read_bench(tmp_path / "out")
    assert rows[: len(before)] == before
    assert len(before) + len(rest) == len(rows) == len(PROMPTS) * len(WORDS)
    assert without_seconds(rows) == without_seconds(whole)
    assert bench(loaded, tmp_path / "out", resume=True) == []


def test_a_trial_goes_on_with_more_prompts(loaded: Loaded, tmp_path: Path) -> None:
    whole = bench(loaded, tmp_path / "whole")
    trial, fewest = (load_prompts(loaded.source, limit) for limit in (2, 1))
    first = bench(trial, tmp_path / "out")
    rest = bench(loaded, tmp_path / "out", resume=True)
    assert without_seconds([*first, *rest]) == without_seconds(whole)
    assert read_info(tmp_path / "out")["prompts"] == read_info(tmp_path / "whole")["prompts"]
    with pytest.raises(UsageError, match=r"its prompts\.sha256 was"):
        bench(fewest, tmp_path / "out", resume=True)
    path = Path(loaded.source)
    path.write_text(path.read_text().replace(PROMPTS[0]["id"], "z", 1))
    bench(load_prompts(path, 1), tmp_path / "other")
    path.write_text(path.read_text().replace('"z"', f'"{PROMPTS[0]["id"]}"', 1))
    with pytest.raises(UsageError, match=r"its prompts\.sha256 was"):
        bench(loaded, tmp_path / "other", resume=True)
    assert read_info(tmp_path / "other")["prompts"]["num_prompts"] == 1


def test_a_bench_begun_before_settings_were_added_goes_on(loaded: Loaded, tmp_path: Path) -> None:
    whole = bench(loaded, tmp_path / "out")
    make_older(tmp_path / "out" / RUN)
    path = tmp_path / "out" / RESULTS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    rest = bench(loaded, tmp_path / "out", resume=True)
    assert len(rest) == len(whole) - 5
    info, rows = read_bench(tmp_path / "out")
    assert without_seconds(rows) == without_seconds(whole)
    assert info["settings"]["policy"] is None
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "continue final message" in page
    other = Settings(**OPTIONS, continue_final_message=True)
    with pytest.raises(
        UsageError,
        match=r"its settings\.continue_final_message was false, now it is true",
    ):
        bench(loaded, tmp_path / "out", settings=other, resume=True)


def test_a_failure_is_a_row_and_the_rest_runs(loaded: Loaded, tmp_path: Path) -> None:
    def failing(prompt: str, texts: list[str]) -> list[float]:
        if "then" in prompt:
            raise ValueError("no score today")
        return [float(len(text)) for text in texts]

    rows = bench(loaded, tmp_path / "out", reward=as_reward(failing))
    failed = [row for row in rows if row["error"]]
    assert {row["prompt_id"] for row in failed} == {"b"}
    assert len(failed) == len(WORDS)
    for row in failed:
        assert row["error"] is not None
        assert row["error"]["kind"] == "RewardError"
        assert "no score today" in row["error"]["message"]
        assert len(row["turns"]) == 1  # the first one had come to its end
    assert bench(loaded, tmp_path / "out", reward=as_reward(failing), resume=True) == []


def test_a_prompt_that_does_not_fit_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        json.dumps({"prompt": "x" * 380}) + "\n" + json.dumps({"prompt": "Why?"}) + "\n"
    )
    rows = bench(load_prompts(str(path)), tmp_path / "out")
    assert [row["error"] is not None for row in rows] == [True] * 4 + [False] * 4


def test_figures_carry_their_cost(loaded: Loaded, tmp_path: Path) -> None:
    for row in bench(loaded, tmp_path / "out"):
        for turn in row["turns"]:
            usage, flops = turn["usage"], turn["flops"]
            assert usage["generated_tokens"] == sum(c["num_tokens"] for c in turn["candidates"])
            assert usage["peak_kv_bytes"] <= turn["memory_bytes"]
            assert (flops["prefill"] or 0) > 0
            assert (flops["decode"] or 0) > 0


class _Unmeasured:
    """A reward of somebody else, who knows of no FLOPs."""

    name = "foreign"
    flops_per_token: float | None = None

    def open(self, messages: Sequence[Mapping[str, str]]) -> Any:
        return FakeReward().open(messages)

    def close(self) -> None:
        """Nothing is held."""


def test_a_reward_that_says_no_flops_has_none(loaded: Loaded, tmp_path: Path) -> None:
    rows = bench(loaded, tmp_path / "out", reward=as_reward(_Unmeasured()))
    assert {turn["flops"]["reward"] for row in rows for turn in row["turns"]} == {None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a method"),
        (["tabu_search:4"], "unknown method 'tabu_search'"),
        (["tabu:search:4"], "unknown algorithm or module 'tabu'"),
        (["specrej.search.voted:majority_vote"], "unknown method"),
        (["specrej.search.voted:majority_vote:4:4"], "is no method"),
        (["best_of_n"], "'best_of_n' is no method"),
        (["best_of_n:0.5"], "'best_of_n:0.5' is no method"),
        (["best_of_n:4:2"], "is no method"),
        (["best_of_n:0"], "n must be"),
        (["speculative_rejection"], "is no method"),
        (["majority_vote"], "is no method"),
        (["deepconf:high:4"], "is no method"),
        (["threshold:nan:4"], "threshold must be"),
        (["speculative_rejection:half"], "is no method"),
        (["speculative_rejection:1"], "alpha must be in"),
        (["speculative_rejection:0.5:4:4"], "is no method"),
        (["best_of_n:4", "best_of_n:8", "best_of_n:4"], "given twice"),
    ],
)
def test_words_that_mean_no_method(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_methods(words, SETTINGS)


def test_an_algorithm_of_a_module_is_a_method() -> None:
    (method,) = parse_methods(["specrej.search.voted:majority_vote:9"], SETTINGS)
    assert method.settings == replace(SETTINGS, n=9, algorithm="specrej.search.voted:majority_vote")


def test_words_of_all_algorithms() -> None:
    """But for an N that stands alone, the first number is alpha or the threshold."""
    words = ["majority_vote:9", "voted_rejection:0.25", "deepconf:0.9:8", "threshold:-1.5:4"]
    methods = parse_methods(words, SETTINGS)
    assert [replace(SETTINGS, n=9, algorithm="majority_vote")] == [methods[0].settings]
    assert [(one.settings.algorithm, one.settings.n) for one in methods[1:]] == [
        ("voted_rejection", "auto"),
        ("deepconf", 8),
        ("threshold", 4),
    ]
    assert [one.settings.alpha for one in methods[1:3]] == [0.25, 0.9]
    assert methods[3].settings.threshold == -1.5


def test_candidates_of_the_fake_are_many_enough(loaded: Loaded, tmp_path: Path) -> None:
    """The tests above see waves, rejections and several decisions."""
    rows = bench(loaded, tmp_path / "out")
    turns = [
        turn
        for row in rows
        for turn in row["turns"]
        if row["method"] == "speculative_rejection:0.5"
    ]
    assert any(len(turn["decisions"]) >= 2 for turn in turns)
    assert all(any(c["state"] == "rejected" for c in turn["candidates"]) for turn in turns)


def test_a_category_may_have_a_temperature_of_its_own(loaded: Loaded, tmp_path: Path) -> None:
    """A greedy one shows by its single candidate; a run of other temperatures is another run."""
    how: dict[str, Any] = {"settings": SETTINGS, "temperatures": {"writing": 0.0}}
    methods = parse_methods(["best_of_n:3"], SETTINGS)
    reward = FakeReward()
    rows = list(run_bench(loaded, methods, FakeEngine(), reward, tmp_path / "out", **how))
    counts = {row["prompt_id"]: len(row["turns"][0]["candidates"]) for row in rows}
    assert counts == {"a": 3, "b": 1, "c": 3}
    how |= {"temperatures": {}, "resume": True}
    with pytest.raises(UsageError, match="temperatures was"):
        list(run_bench(loaded, methods, FakeEngine(), reward, tmp_path / "out", **how))


@pytest.mark.parametrize("refill", ["forks", "fresh"])
def test_rows_of_refilled_runs_make_a_report(loaded: Loaded, tmp_path: Path, refill: str) -> None:
    rows = bench(loaded, tmp_path / "out", settings=Settings(**{**OPTIONS, "refill": refill}))
    turns = [turn for row in rows for turn in row["turns"]]
    has_forks = any("parent" in one for turn in turns for one in turn["candidates"])
    assert has_forks == (refill == "forks")
    for turn in turns:
        drawn = [one["num_tokens"] - one.get("num_inherited", 0) for one in turn["candidates"]]
        assert turn["usage"]["generated_tokens"] == sum(drawn)
    assert "speculative_rejection:0.5" in write_report(tmp_path / "out").read_text()

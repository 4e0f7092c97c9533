"""Temperature 0 is greedy behind every door: one candidate is decoded, and the result says so.

That every engine does it is in `conformance`; what the torch engine draws, in
`engines/torch/test_numbers.py`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import specrej
from fakes import FakeEngine, FakeReward
from jobs import openai, plain, run_job, write_requests
from specrej.batch.rows import row_id
from specrej.cli import app
from specrej.evaluation.bench import parse_methods, run_bench
from specrej.evaluation.policy_grid import grid
from specrej.evaluation.recording import record
from specrej.evaluation.replay_summary import replay_folder
from specrej.evaluation.trace import load
from specrej.files.journal import read_rows
from specrej.server.answering import to_body
from specrej.server.protocol import parse_chat
from specrej.settings import Settings
from specrej.types import GREEDY_NOTE, Result
from tiny import save_model
from traces import loaded_of

OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "min_tokens": 5, "memory": 4000, "temperature": 0}


def generate(**options: Any) -> Result:
    return specrej.generate(
        "Why?", model=FakeEngine(), reward=FakeReward(), **{**OPTIONS, **options}
    )


@pytest.mark.parametrize("algorithm", ["best_of_n", "speculative_rejection"])
@pytest.mark.parametrize("n", [1, 8, 10**6, "auto"])
@pytest.mark.parametrize("decide", ["budget", "every:4"])
def test_one_candidate_is_decoded_whatever_n_is(algorithm: str, n: int | str, decide: str) -> None:
    result = generate(algorithm=algorithm, n=n, decide=decide)
    assert [candidate.state for candidate in result.candidates] == ["complete"]
    assert result.usage.generated_tokens == len(result.best.token_ids)
    assert result.reward is not None
    assert result.note == result.to_dict()["settings"]["note"]
    assert (result.note or "").endswith(GREEDY_NOTE)
    assert result.text == generate(seed=7).text, "a seed decides nothing"
    assert (result.settings["n"], result.settings["temperature"]) == (n, 0)


def test_any_other_temperature_is_not_greedy() -> None:
    result = generate(n=5, temperature=0.001)
    assert (len(result.candidates), result.note) == (5, None)
    assert "note" not in result.settings


def test_a_greedy_run_keeps_its_other_notes() -> None:
    note = generate(algorithm="best_of_n", n=4, refill="forks", alpha=0.1).note
    unused = "the algorithm 'best_of_n' does not use alpha 0.1, min_tokens 5, refill 'forks'"
    assert note == f"{unused}; {GREEDY_NOTE}"


def test_a_comparison_has_one_candidate_in_each_method() -> None:
    results = specrej.compare("Why?", model=FakeEngine(), reward=FakeReward(), **OPTIONS)
    assert [len(result.candidates) for result in results.values()] == [1, 1, 1]
    assert len({result.text for result in results.values()}) == 1


def test_a_completion_has_one_answer_and_says_why() -> None:
    body = {
        "model": "bytes",
        "messages": [{"role": "user", "content": "Why?"}],
        "n": 3,
        "temperature": 0,
    }
    request = parse_chat(body, Settings(n=8, **{**OPTIONS, "temperature": 1.0}))
    engine = FakeEngine()
    result = specrej.generate(
        request.prompt, model=engine, reward=FakeReward(), **request.settings.to_dict()
    )
    answer = to_body(
        request, result, completion_id="a", created=0, model="bytes", detokenizer=engine.detokenizer
    )
    own = answer["specrej"]
    assert len(answer["choices"]) == own["num_answers"] == own["num_candidates"] == 1
    assert own["note"] == GREEDY_NOTE


def by_id(output: Path) -> dict[str, dict[str, Any]]:
    return {row_id(row): row for row in read_rows(output)}


def test_rows_of_a_job_say_it(tmp_path: Path) -> None:
    rows = [plain(0), openai(1, temperature=0, n=2), openai(2)]
    run_job(write_requests(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    row_of = by_id(tmp_path / "out.jsonl")
    assert "note" not in row_of["p0"]
    greedy, other = (row_of[name]["response"]["body"]["specrej"] for name in ("o1", "o2"))
    assert (greedy["num_candidates"], greedy["note"]) == (1, GREEDY_NOTE)
    assert other["num_candidates"] > 1
    assert "note" not in other


def test_a_bench_and_a_trace_run_greedily_too(tmp_path: Path) -> None:
    settings, engine, reward = Settings(**OPTIONS), FakeEngine(), FakeReward()
    methods = parse_methods(["best_of_n:4", "speculative_rejection:0.5"], settings)
    rows = list(
        run_bench(
            loaded_of(["Why?"]), methods, engine, reward, tmp_path / "bench", settings=settings
        )
    )
    assert [len(row["turns"][0]["candidates"]) for row in rows] == [1, 1]
    traced = tmp_path / "trace"
    [progress] = record(
        loaded_of(["Why?"]),
        engine,
        reward,
        traced,
        settings=Settings(n=6, **OPTIONS),
        checkpoints=[4],
    )
    assert progress.error is None
    traces = list(load(traced))
    assert [trace.num_candidates for trace in traces] == [1]
    assert replay_folder(traced, grid(traces))["num_prompts"] == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def invoke(model: str, *arguments: str) -> Any:
    done = CliRunner().invoke(
        app, [*arguments, "--model", model, "--reward", "logprob", "--max-new-tokens", "8"]
    )
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("temperature", ["0", "1e-40", "1e-400"])
def test_the_commands_are_greedy_and_say_so(model: str, temperature: str, tmp_path: Path) -> None:
    given = ["Hello", "--n", "4", "--temperature", temperature]
    assert f"Note: {GREEDY_NOTE}" in " ".join(invoke(model, "generate", *given).stdout.split())
    assert f"Note: {GREEDY_NOTE}" in " ".join(invoke(model, "compare", *given).stdout.split())
    result = json.loads(invoke(model, "generate", "--json", *given).stdout)
    assert (len(result["candidates"]), result["settings"]["note"]) == (1, GREEDY_NOTE)
    source = write_requests(tmp_path / "in.jsonl", [plain(0)])
    batch = invoke(model, "batch", str(source), "--output", str(tmp_path / "out.jsonl"), *given[1:])
    assert GREEDY_NOTE in batch.stderr
    assert by_id(tmp_path / "out.jsonl")["p0"]["note"] == GREEDY_NOTE
    methods = [
        "--methods",
        "best_of_n:2,speculative_rejection:0.5",
        "--output",
        str(tmp_path / "bench"),
    ]
    assert GREEDY_NOTE in invoke(model, "bench", str(source), *methods, *given[3:]).stderr
    checkpoints = ["--checkpoints", "4", "--output", str(tmp_path / "trace")]
    assert GREEDY_NOTE in invoke(model, "trace", str(source), *checkpoints, *given[1:]).stderr

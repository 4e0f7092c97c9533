"""From recorded runs to a policy, and from it to answers, by the commands that a user types."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from specrej.cli import app
from specrej.evaluation.folder import read_bench
from specrej.search.calibrated import read_policy
from tiny import save_model

PROMPTS = ["Why?", "How?", "Who?", "When?", "Where?", "What?", "Which?", "Whose?"]
OPTIONS = ["--reward", "logprob", "--max-new-tokens", "16", "--memory", "1GiB"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2**12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """With prompts.jsonl, traces/ and policy.json."""
    folder = tmp_path_factory.mktemp("calibration")
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (folder / "prompts.jsonl").write_text(rows)
    done = invoke("trace", folder / "prompts.jsonl", "--output", folder / "traces", "--n", 8,
                  "--checkpoints", "2,4,8", "--model", model, *OPTIONS)  # fmt: skip
    assert done.exit_code == 0, done.output
    done = invoke("calibrate", folder / "traces", "--output", folder / "policy.json",
                  "--target-regret", 3.9, "--confidence", 0.6)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "times fewer flops than Best-of-8" in " ".join(done.stdout.split())
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_file_says_what_it_is_for_and_what_it_promises(folder: Path) -> None:
    policy = read_policy(folder / "policy.json")
    assert policy.promise["regret"] == 3.9
    assert policy.promise["against"] == "best_of_n:8"
    assert policy.recorded["reward"] == "logprob"
    assert policy.forecasts


def test_generate_and_batch_take_it(folder: Path, model: str) -> None:
    policy = read_policy(folder / "policy.json")
    given = ["--policy", folder / "policy.json", "--model", model, *OPTIONS]
    done = invoke("generate", "Why?", "--json", "--strict", *given)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert len(result["candidates"]) == policy.n
    assert result["decisions"][0]["num_tokens"] == policy.lengths[0]
    assert invoke("batch", folder / "prompts.jsonl", "--output", folder / "out.jsonl", "--strict",
                  *given).exit_code == 0  # fmt: skip
    done = invoke("generate", "Why?", "--json", "--strict", "--temperature", 0.5, *given)
    assert done.exit_code == 2
    assert "calibrated for temperature 1.0, here 0.5" in " ".join(done.stderr.split())


def test_many_prompts_are_told_first_that_it_is_for_something_else(
    folder: Path, model: str
) -> None:
    path = folder / "policy.json"
    given = ["--policy", path, "--model", model, *OPTIONS, "--temperature", 0.5]
    words = f"the policy '{path}' was calibrated for temperature 1.0, here 0.5"
    prompts, output = folder / "prompts.jsonl", folder / "cooler.jsonl"
    done = invoke("batch", prompts, "--output", output, "--strict", *given)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())
    assert not output.exists() or not output.read_text()
    done = invoke("batch", prompts, "--output", output, "--resume", *given)
    assert (done.exit_code, " ".join(done.stderr.split()).count(words)) == (0, 1)
    done = invoke("bench", prompts, "--output", folder / "cooler", "--limit", 1,
                  "--methods", f"policy:{path},best_of_n:2", *given[2:])  # fmt: skip
    assert (done.exit_code, " ".join(done.stderr.split()).count(words)) == (0, 1)


def test_bench_and_replay_take_it(folder: Path, model: str) -> None:
    path = folder / "policy.json"
    done = invoke("bench", folder / "prompts.jsonl", "--output", folder / "bench", "--methods",
                  f"policy:{path},best_of_n:8", "--model", model, *OPTIONS)  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = read_bench(folder / "bench")[1]
    live = [row for row in rows if row["method"] == f"policy:{path}"]
    assert len(live) == len(PROMPTS)
    (folder / "policies.jsonl").write_text(json.dumps({"policy": str(path), "n": 8}))
    done = invoke("replay", folder / "traces", "--policies", folder / "policies.jsonl", "--json")
    assert done.exit_code == 0, done.output
    (replayed,) = json.loads(done.stdout)["policies"]
    tokens = sum(row["turns"][0]["usage"]["generated_tokens"] for row in live)
    if read_policy(path).n == 8:
        mean = replayed["figures"]["num_generated_tokens"]["value"]
        assert mean == pytest.approx(tokens / len(PROMPTS))


def test_what_cannot_be_promised_is_said_with_what_could(folder: Path) -> None:
    done = invoke("calibrate", folder / "traces", "--output", folder / "none.json")
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert "a regret of 0.1 cannot be promised from 6 prompts" in said
    assert "could be" in said
    assert not (folder / "none.json").exists()


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    done = invoke("calibrate", tmp_path)
    assert done.exit_code == 2
    assert "holds no run" in " ".join(done.stderr.split())


def test_a_job_is_not_resumed_with_a_policy_that_has_changed(folder: Path, model: str) -> None:
    path = folder / "changing.json"
    path.write_bytes((folder / "policy.json").read_bytes())
    jobs = {
        "batch": ["--output", folder / "resumed.jsonl", "--policy", path],
        "bench": ["--output", folder / "resumed", "--methods", f"policy:{path}"],
    }
    for command, given in jobs.items():
        job = [command, folder / "prompts.jsonl", *given, "--model", model, *OPTIONS]
        assert invoke(*job).exit_code == 0
        assert invoke(*job, "--resume").exit_code == 0
    path.write_text(json.dumps({**json.loads(path.read_text()), "price": 0.5}))
    for command, given in jobs.items():
        job = [command, folder / "prompts.jsonl", *given, "--model", model, *OPTIONS]
        done = invoke(*job, "--resume")
        assert done.exit_code == 2
        assert "changing.json was" in "".join(done.stderr.split("\n"))


def test_policies_of_one_name_are_replayed_each_with_its_own_number(folder: Path) -> None:
    given = json.loads((folder / "policy.json").read_text())
    paths = [folder / "first.json", folder / "second.json"]
    for n, path in zip((3, 5), paths, strict=True):
        path.write_text(json.dumps({**given, "n": n}))
    lines = "".join(json.dumps({"policy": str(path)}) + "\n" for path in paths)
    (folder / "both.jsonl").write_text(lines)
    done = invoke("replay", folder / "traces", "--policies", folder / "both.jsonl", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["policies"]
    assert [row["policy"]["policy"] for row in rows] == list(map(str, paths))
    first, second = (row["figures"]["num_generated_tokens"]["value"] for row in rows)
    assert first < second


def test_compare_gives_the_policy_to_the_one_that_rejects(folder: Path, model: str) -> None:
    done = invoke("compare", "Why?", "--policy", folder / "policy.json", "--json",
                  "--model", model, "--reward", "logprob", "--max-new-tokens", 16,
                  "--memory", "100KiB")  # fmt: skip
    assert done.exit_code == 0, done.output
    methods = json.loads(done.stdout)["methods"]
    policies = [method["settings"]["policy"] for method in methods.values()]
    assert policies == [None, str(folder / "policy.json"), None]
    assert len(methods["best_of_n"]["candidates"]) != 0

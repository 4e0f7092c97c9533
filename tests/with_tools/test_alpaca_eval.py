"""alpaca_eval itself on our exports: its win rates are those of our rows.

The hub cannot be asked here. So the file of difficulties is made up, and published rates of
alpaca_eval are not computed again.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from alpaca_eval import constants
from alpaca_eval.main import evaluate
from alpaca_eval.metrics.glm_winrate import get_length_controlled_winrate

from servers import Server
from specrej.evaluation.length_controlled import PreferredPair, length_controlled

NUM_OWN = 805
"""Instructions that alpaca_eval has a difficulty of."""
DIFFICULTY = np.random.default_rng(0).normal(size=NUM_OWN)
METHOD, BASELINE = "best_of_n:8", "best_of_n:2"
PROMPTS = [
    {"id": f"p{number}", "prompt": f"Why {number}?", "reference": "So it is. " * (1 + number % 5)}
    for number in range(12)
]
CONFIG = "weighted_alpaca_eval_gpt4_turbo"
OUTPUTS = re.compile(r'"output": """(.*?)"""\n    \}', re.DOTALL)
Run = Callable[..., Any]


@pytest.fixture
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the hub that holds alpaca_eval's file of difficulties, with made-up numbers: two
    models that play with length, on all instructions."""
    revision = "0" * 40
    folder = tmp_path / "hub" / "datasets--tatsu-lab--alpaca_eval"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    random = np.random.default_rng(1)
    parts = [
        pd.DataFrame(
            {
                "index": range(NUM_OWN),
                "instruction_difficulty": DIFFICULTY,
                "not_gamed_baseline": False,
                "std_delta_len": length + random.normal(size=NUM_OWN) / 10,
                "preference": 0.5 + random.normal(size=NUM_OWN) / 100,
                "model": model,
            }
        )
        for model, length in (("concise", -1), ("verbose", 1))
    ]
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    pd.concat(parts).to_csv(snapshot / "df_gamed.csv", index=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def worth(text: str) -> float:
    """What the judge thinks of an answer, wherever it stands."""
    return hashlib.sha256(text.strip().encode()).digest()[0] / 64


def weigh(request: dict[str, Any]) -> dict[str, Any]:
    """The judge: log-probabilities of m and M by what the two answers are worth."""
    first, second = OUTPUTS.findall(request["messages"][-1]["content"])
    top = [
        {"token": token, "logprob": -worth(other), "bytes": None}
        for token, other in (("m", second), ("M", first))
    ]
    choice = {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": "m"},
        "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    about = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
    return {**about, "choices": [choice], "usage": usage}


def unordered(request: dict[str, Any]) -> str:
    """All that the judge is told, with the two answers in an order that does not depend on who
    asks."""
    ordered = iter(sorted(OUTPUTS.findall(request["messages"][-1]["content"])))
    messages = [
        {**message, "content": OUTPUTS.sub(lambda _: next(ordered), message["content"])}
        for message in request["messages"]
    ]
    asked = {name: request[name] for name in ("max_tokens", "logprobs", "top_logprobs")}
    return json.dumps([messages, asked, request["temperature"]], sort_keys=True)


@pytest.fixture
def alpaca_eval(judge: Server, tmp_path: Path) -> Run:
    """alpaca_eval's command at its own weighted judge, which the local server plays."""
    config = yaml.safe_load((constants.EVALUATORS_CONFIG_DIR / CONFIG / "configs.yaml").read_text())
    own = config[CONFIG]
    own["prompt_template"] = str(constants.EVALUATORS_CONFIG_DIR / own["prompt_template"])
    own["completions_kwargs"] |= {"openai_api_base": f"{judge.url}/v1", "openai_api_keys": ["-"]}
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "configs.yaml").write_text(yaml.safe_dump(config))

    def run(method: Path, baseline: Path) -> tuple[dict[str, float], Any]:
        table, annotations = evaluate(
            model_outputs=method,
            reference_outputs=baseline,
            annotators_config=tmp_path / "judge",
            metric_kwargs={"glm_name": "length_controlled_minimal", "save_weights_dir": None},
            caching_path=None,
            output_path=None,
            is_return_instead_of_print=True,
        )
        [row] = table.to_dict("records")
        return row, annotations

    return run


@pytest.mark.usefixtures("_hub")
@pytest.mark.parametrize("row", ["alpacafarm", "alpaca-eval"])
def test_a_row_has_the_win_rates_of_alpaca_eval(
    run: Run, reproduce: Run, alpaca_eval: Run, judge: Server, tmp_path: Path, row: str
) -> None:
    judge.answer = weigh
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    outcome = reproduce(row, prompts, f"{BASELINE},{METHOD}")
    ours = {one["name"]: one["estimate"] for one in outcome["figures"] if one["method"] == METHOD}
    asked = list(judge.requests)
    judge.requests.clear()
    baseline, method = tmp_path / "baseline.json", tmp_path / "new" / "method.json"
    run("export", tmp_path / "out", "--method", METHOD, "--output", method)
    if row == "alpacafarm":
        run("export", tmp_path / "out", "--method", BASELINE, "--output", baseline)
    else:
        references = [
            {"instruction": one["prompt"], "output": one["reference"], "generator": "references"}
            for one in PROMPTS
        ]
        baseline.write_text(json.dumps(references))
    theirs, annotations = alpaca_eval(method, baseline)
    assert theirs["n_total"] == len(PROMPTS) == len(annotations)
    assert {unordered(request) for request in judge.requests} <= {unordered(one) for one in asked}
    assert ours["win rate"]["value"] == pytest.approx(theirs["win_rate"], abs=1e-6)
    controlled = ours["length-controlled win rate"]
    expected = theirs["length_controlled_winrate"]
    assert controlled == {"value": pytest.approx(expected, abs=1e-6), "low": None, "high": None}
    notes = " ".join(outcome["notes"])
    assert "The judge read the prompt of alpaca_eval." in notes
    assert "length_controlled_minimal, which has no standard error" in notes


def pairs_of(places: list[int]) -> list[PreferredPair]:
    """Longer answers are preferred, and those to easy instructions."""
    pairs = []
    for place in places:
        lengths = np.random.default_rng(place).integers(1, 99, size=2)
        leaning = DIFFICULTY[place % NUM_OWN] + (lengths[0] - lengths[1]) / 50
        pairs.append(
            PreferredPair(
                place=place,
                output="a" * lengths[0],
                reference="b" * lengths[1],
                preference=1 + 1 / (1 + float(np.exp(-leaning))),
            )
        )
    return pairs


@pytest.mark.usefixtures("_hub")
def test_its_own_prompts_have_their_difficulties() -> None:
    """A failed judgement leaves a gap: the places of the others stay those of its file."""
    pairs = pairs_of([place for place in range(200) if place % 7])
    table = pd.DataFrame(
        {
            "preference": [pair.preference for pair in pairs],
            "output_1": [pair.reference for pair in pairs],
            "output_2": [pair.output for pair in pairs],
            "generator_1": "gpt4_turbo",
            "generator_2": "ours",
        },
        index=[pair.place for pair in pairs],
    )
    theirs = get_length_controlled_winrate(table, save_weights_dir=None)
    found = length_controlled(pairs, own_prompts=True)
    margin = 1.96 * theirs["lc_standard_error"]
    value = theirs["length_controlled_winrate"]
    expected = {"value": value, "low": value - margin, "high": value + margin}
    assert found.rate == pytest.approx(expected)
    assert margin > 0
    moved = [pair._replace(place=pair.place + 100) for pair in pairs]
    assert length_controlled(moved, own_prompts=True).rate["value"] != found.rate["value"]


@pytest.mark.usefixtures("_hub")
def test_other_prompts_may_be_more_than_its_own() -> None:
    pairs = pairs_of(list(range(NUM_OWN + 20)))
    found = length_controlled(pairs, own_prompts=False)
    assert found.rate["value"] is not None, found.words
    assert 0 < found.rate["value"] < 100


def test_without_the_hub_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = length_controlled(pairs_of(list(range(12))), own_prompts=False)
    assert found.rate["value"] is None
    assert found.words.startswith("none: alpaca_eval failed: LocalEntryNotFoundError")


@pytest.mark.usefixtures("_hub")
def test_failed_prompts_stay_and_equal_ones_are_paired_with_each_other(
    alpaca_eval: Run, judge: Server, tmp_path: Path
) -> None:
    """An export has an empty answer where the method failed. Of two prompts that ask the same it
    says that alpaca_eval, which has no ids, makes four pairs."""
    judge.answer = weigh
    for name in ("method", "baseline"):
        outputs = [
            {
                "instruction": f"Why {number % 8}?",
                "output": "" if (name, number) == ("method", 3) else f"{name} {number}",
                "generator": name,
                "dataset": "",
            }
            for number in range(9)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(outputs))
    theirs, annotations = alpaca_eval(tmp_path / "method.json", tmp_path / "baseline.json")
    assert theirs["n_total"] == len(annotations) == 7 + 2 * 2
    assert [one["output_2"] for one in annotations].count("") == 1

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from specrej.errors import ModelError, UnknownNameError, UsageError
from specrej.rewards import as_reward
from specrej.rewards.base import StatelessSession
from specrej.rewards.function import FunctionReward
from specrej.rewards.logprob import LogprobReward
from specrej.types import Candidate, Message

PROMPT = [{"role": "user", "content": "Hello"}]
ANSWERS = [Candidate(index=0, text="abc", logprobs=[-1.0, -3.0])]


class Constant:
    name = "constant"
    flops_per_token: float | None = None

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        return StatelessSession(messages, lambda messages, candidates: ([1.0] * len(candidates), 0))


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory that is not yet on sys.path; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_reward_is_taken_as_it_is() -> None:
    reward = Constant()
    assert as_reward(reward) is reward


def test_a_callable_is_a_function_reward() -> None:
    def brevity(prompt: str, texts: list[str]) -> list[int]:
        return [-len(text) for text in texts]

    reward = as_reward(brevity)
    assert isinstance(reward, FunctionReward)
    assert reward.name == "brevity"
    assert reward.open(PROMPT).score(ANSWERS) == [-3.0]


@pytest.mark.parametrize(("spec", "score"), [("logprob", -2.0), ("logprob:mean", -2.0), ("logprob:sum", -4.0)])
def test_logprob_by_name(spec: str, score: float) -> None:
    reward = as_reward(spec)
    assert isinstance(reward, LogprobReward)
    assert reward.open(PROMPT).score(ANSWERS) == [score]


def test_an_unknown_reduction_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="unknown reduction of the logprob reward 'max'"):
        as_reward("logprob:max")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The classifiers that were asked for, none of which is opened."""
    calls: list[tuple[str, str | None]] = []

    def open_nothing(model: str, *, label: str | None = None) -> Constant:
        calls.append((model, label))
        return Constant()

    monkeypatch.setattr("specrej.rewards.classifier.ClassifierReward", open_nothing)
    return calls


@pytest.mark.parametrize(
    ("spec", "model", "label"),
    [
        ("classifier:org/model", "org/model", None),
        ("classifier:org/model#good", "org/model", "good"),
        ("classifier:gpt2", "gpt2", None),
        ("org/model", "org/model", None),
        ("org/model#1", "org/model", "1"),
        ("mine", "mine", None),
        ("classifier:mine#good", "mine", "good"),
        ("./mine", "./mine", None),
        ("run#3", "run#3", None),
        ("classifier:run#3", "run#3", None),
    ],
)
def test_a_path_or_an_id_is_a_classifier(
    spec: str, model: str, label: str | None, opened: list[tuple[str, str | None]], own_directory: Path
) -> None:
    (own_directory / "mine").mkdir()
    (own_directory / "run#3").mkdir()
    as_reward(spec)
    assert opened == [(model, label)]


def test_a_registered_name_goes_before_a_directory(own_directory: Path) -> None:
    (own_directory / "logprob").mkdir()
    assert isinstance(as_reward("logprob"), LogprobReward)


def test_a_directory_without_a_model_is_a_model_error(own_directory: Path) -> None:
    with pytest.raises(ModelError, match="cannot be opened"):
        as_reward(str(own_directory))


def test_a_classifier_needs_a_model() -> None:
    with pytest.raises(UsageError, match="needs a model"):
        as_reward("classifier")


def test_a_function_of_a_module_in_the_current_directory(own_directory: Path) -> None:
    (own_directory / "my_metrics.py").write_text(
        "class Metric:\n"
        "    def length(self, prompt, texts):\n"
        "        import my_neighbour\n"
        "        return [my_neighbour.length(text) for text in texts]\n"
        "metric = Metric()\n"
    )
    (own_directory / "my_neighbour.py").write_text("length = len\n")
    reward = as_reward("my_metrics:metric.length")
    assert reward.name == "my_metrics:metric.length"
    assert reward.open(PROMPT).score(ANSWERS) == [3.0]


def test_a_reward_of_a_module_is_taken_as_it_is(own_directory: Path) -> None:
    (own_directory / "my_rewards.py").write_text(
        "from specrej.rewards.logprob import LogprobReward as L\nmine = L('sum')\n"
    )
    reward = as_reward("my_rewards:mine")
    assert isinstance(reward, LogprobReward)
    assert reward.name == "logprob:sum"


@pytest.mark.parametrize(("spec", "message"), [("my_consts:SIZE", "from 3"), ("my_consts:Thing", "the class Thing")])
def test_what_a_module_holds_must_be_a_reward(spec: str, message: str, own_directory: Path) -> None:
    (own_directory / "my_consts.py").write_text("SIZE = 3\nclass Thing: pass\n")
    with pytest.raises(UsageError, match=message):
        as_reward(spec)


def test_a_missing_module_says_where_it_was_looked_for(own_directory: Path) -> None:
    for spec in ("no_such_module:f", "no_such_module.part:f", "no_such_module.py:f", "./no_such_module.py:f"):
        with pytest.raises(UsageError) as caught:
            as_reward(spec)
        assert str(own_directory) in str(caught.value.hint)


def test_a_misspelt_name_with_an_argument_is_guessed() -> None:
    with pytest.raises(UnknownNameError, match="unknown reward or module 'clasifier'") as caught:
        as_reward("clasifier:org/model")
    assert str(caught.value.hint).startswith("did you mean 'classifier'?")


def test_a_missing_function_lists_those_of_the_module(own_directory: Path) -> None:
    (own_directory / "my_lengths.py").write_text("def brevity(prompt, texts): pass\n")
    with pytest.raises(UsageError, match="unknown function of the module 'my_lengths' 'brevty'") as caught:
        as_reward("my_lengths:brevty")
    assert "did you mean 'brevity'?" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("from os import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_module_that_fails_is_reported_with_its_cause(code: str, cause: str, own_directory: Path) -> None:
    (own_directory / "my_broken.py").write_text(code + "\n")
    with pytest.raises(UsageError, match=f"'my_broken' .* cannot be imported: {cause}") as caught:
        as_reward("my_broken:f")
    assert type(caught.value.__cause__).__name__ == cause.partition(":")[0]


@pytest.mark.parametrize("spec", [":f", "module:", ":"])
def test_half_a_function_is_an_error(spec: str) -> None:
    with pytest.raises(UsageError, match="not of the form module:function"):
        as_reward(spec)


@pytest.mark.parametrize("spec", ["relevanse", "", "model"])
def test_an_unknown_name_says_what_can_be_given(spec: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown reward '{spec}'") as caught:
        as_reward(spec)
    assert "module:function" in str(caught.value.hint)
    assert ("did you mean 'relevance'?" in str(caught.value.hint)) is (spec == "relevanse")


@pytest.mark.parametrize(("spec", "kind"), [(None, "NoneType"), (3, "int"), (["logprob"], "list")])
def test_anything_else_is_an_error_that_says_what_was_got(spec: Any, kind: str) -> None:
    with pytest.raises(UsageError, match=rf"cannot be made from .*\({kind}\)"):
        as_reward(spec)


def test_importing_the_rewards_loads_no_torch() -> None:
    code = (
        "import sys, specrej.rewards as r; r.as_reward('logprob'); r.as_reward(len); sys.exit('torch' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )

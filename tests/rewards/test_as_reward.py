import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
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

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory that is not yet on sys.path; what is imported from it is forgotten
    again."""
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


@pytest.mark.parametrize(
    ("spec", "score"), [("logprob", -2.0), ("logprob:mean", -2.0), ("logprob:sum", -4.0)]
)
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

    def open_nothing(
        model: str, *, label: str | None = None, memory_bytes: int | None = None
    ) -> Constant:
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
    spec: str,
    model: str,
    label: str | None,
    opened: list[tuple[str, str | None]],
    own_directory: Path,
) -> None:
    (own_directory / "mine").mkdir()
    (own_directory / "run#3").mkdir()
    as_reward(spec)
    assert opened == [(model, label)]


def test_a_registered_name_goes_before_a_directory(own_directory: Path) -> None:
    (own_directory / "logprob").mkdir()
    assert isinstance(as_reward("logprob"), LogprobReward)


def test_a_directory_without_a_model_is_a_model_error(own_directory: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot open|holds no model|can open"):
        as_reward(str(own_directory))


def test_a_classifier_needs_a_model() -> None:
    for spec in ("classifier", "vllm"):
        with pytest.raises(UsageError, match="needs a model"):
            as_reward(spec)


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


@pytest.mark.parametrize(
    ("spec", "message"), [("my_consts:SIZE", "from 3"), ("my_consts:Thing", "the class Thing")]
)
def test_what_a_module_holds_must_be_a_reward(spec: str, message: str, own_directory: Path) -> None:
    (own_directory / "my_consts.py").write_text("SIZE = 3\nclass Thing: pass\n")
    with pytest.raises(UsageError, match=message):
        as_reward(spec)


def test_a_missing_module_says_where_it_was_looked_for(own_directory: Path) -> None:
    for spec in (
        "no_such_module:f",
        "no_such_module.part:f",
        "no_such_module.py:f",
        "./no_such_module.py:f",
    ):
        with pytest.raises(UsageError) as caught:
            as_reward(spec)
        assert str(own_directory) in str(caught.value.hint)


def test_a_misspelt_name_with_an_argument_is_guessed() -> None:
    with pytest.raises(UnknownNameError, match="unknown reward or module 'clasifier'") as caught:
        as_reward("clasifier:org/model")
    assert str(caught.value.hint).startswith("did you mean 'classifier'?")


def test_a_missing_function_lists_those_of_the_module(own_directory: Path) -> None:
    (own_directory / "my_lengths.py").write_text("def brevity(prompt, texts): pass\n")
    with pytest.raises(
        UsageError, match="unknown function of the module 'my_lengths' 'brevty'"
    ) as caught:
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
def test_a_module_that_fails_is_reported_with_its_cause(
    code: str, cause: str, own_directory: Path
) -> None:
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


# Names that other packages add


@pytest.fixture
def installed(own_directory: Path) -> Callable[..., None]:
    """Puts a package on sys.path as an installer would: a module, and a .dist-info folder that
    says its rewards."""

    def install(package: str, code: str, **names: str) -> None:
        site = own_directory / f"site_{package}"
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        points = "\n".join(f"{name} = {package}:{attribute}" for name, attribute in names.items())
        (info / "entry_points.txt").write_text(
            f"[specrej.rewards]\n{points}\n[specrej.others]\nelse = {package}:x\n"
        )
        sys.path.append(str(site))  # put back by `own_directory`

    return install


CODE = (
    "from specrej.rewards.logprob import LogprobReward\n"
    "from specrej.errors import UsageError\n"
    "def make(argument='mean'): return LogprobReward(argument)\n"
    "def make_function(scale='1'): return lambda prompt, texts: [int(scale) * len(text) for text "
    "in texts]\n"
    "def refuse(argument): raise UsageError('it needs a key')\n"
)


def test_a_package_adds_rewards_by_entry_points(installed: Callable[..., None]) -> None:
    installed("my_package", CODE, plausible="make", size="make_function")
    assert as_reward("plausible").open(PROMPT).score(ANSWERS) == [-2.0]
    assert as_reward("plausible:sum").open(PROMPT).score(ANSWERS) == [-4.0]
    assert as_reward("size:2").open(PROMPT).score(ANSWERS) == [6.0]
    assert as_reward("size:2").name == "size:2"
    assert as_reward("ensemble:size+plausible:sum*2").open(PROMPT).score(ANSWERS) == [-5.0]


def test_a_name_of_the_registry_goes_before_one_of_a_package_and_that_before_a_directory(
    installed: Callable[..., None], own_directory: Path
) -> None:
    installed("my_package", CODE, logprob="make_function", size="make_function")
    (own_directory / "size").mkdir()
    (own_directory / "size.py").write_text("def f(prompt, texts): return [0.0 for _ in texts]\n")
    assert isinstance(as_reward("logprob"), LogprobReward)
    assert as_reward("size").open(PROMPT).score(ANSWERS) == [3.0]


def test_of_two_packages_with_one_name_the_first_on_the_path_is_taken(
    installed: Callable[..., None],
) -> None:
    installed("first_package", CODE, size="make_function")
    installed("second_package", CODE, size="make")
    assert as_reward("size:2").open(PROMPT).score(ANSWERS) == [6.0]


def test_names_of_packages_are_among_those_that_are_known(installed: Callable[..., None]) -> None:
    installed("my_package", CODE, plausible="make")
    for spec in ("plausble", "plausble:sum"):
        with pytest.raises(UnknownNameError, match="unknown reward") as caught:
            as_reward(spec)
        assert str(caught.value.hint).startswith("did you mean 'plausible'?")
    with pytest.raises(UsageError) as refused:
        as_reward(None)
    assert "plausible, process" in str(refused.value.hint)
    assert "else" not in str(refused.value.hint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "'missing' of the package 'my_package' cannot be made: AttributeError"),
        ("size:x:y", "'size' of the package 'my_package' cannot be made: TypeError"),
        ("refuse:x", "it needs a key"),
    ],
)
def test_a_reward_of_a_package_that_cannot_be_made_says_which(
    name: str, message: str, installed: Callable[..., None]
) -> None:
    code = CODE + "def takes_two(one, two): pass\n"
    installed("my_package", code, missing="no_such_thing", size="takes_two", refuse="refuse")
    with pytest.raises(UsageError, match=message):
        as_reward(name)


def test_a_package_that_cannot_be_imported_stops_only_its_own_rewards(
    installed: Callable[..., None],
) -> None:
    installed("my_broken_package", "1 / 0\n", broken="make")
    assert isinstance(as_reward("logprob"), LogprobReward)
    with pytest.raises(
        UsageError, match=r"'broken' of the package 'my_broken_package' .*ZeroDivisionError"
    ) as caught:
        as_reward("broken")
    assert "my_broken_package:make can be imported" in str(caught.value.hint)


def test_importing_the_rewards_loads_no_torch() -> None:
    code = (
        "import sys, specrej.rewards as r; r.as_reward('logprob'); r.as_reward(len); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def note_what_is_made(
    monkeypatch: pytest.MonkeyPatch, target: str
) -> list[tuple[str, dict[str, Any]]]:
    """The models and keywords that a class of rewards is given from now on; nothing is opened."""
    given: list[tuple[str, dict[str, Any]]] = []

    def make(model: str, **options: Any) -> Constant:
        given.append((model, options))
        return Constant()

    monkeypatch.setattr(target, make)
    return given


def test_a_classifier_takes_options_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = note_what_is_made(monkeypatch, "specrej.rewards.classifier.ClassifierReward")
    as_reward("classifier:org/model#helpful?partial=open&memory=64MiB&batch_size=4")
    as_reward("org/model", "1KiB")
    as_reward("classifier:org/model?memory=64MiB", 2048)
    assert given == [
        (
            "org/model",
            {"label": "helpful", "memory_bytes": 2**26, "partial": "open", "batch_size": 4},
        ),
        ("org/model", {"label": None, "memory_bytes": 2**10}),
        ("org/model", {"label": None, "memory_bytes": 2**11}),
    ]
    with pytest.raises(UnknownNameError, match="unknown option 'part'"):
        as_reward("classifier:org/model?part=open")


def test_a_reward_model_on_vllm_takes_options_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = note_what_is_made(monkeypatch, "specrej.rewards.vllm.VllmClassifierReward")
    as_reward(
        'vllm:org/model#helpful?partial=open&memory=64MiB&engine_args={"tensor_parallel_size": 2}'
    )
    as_reward("vllm:org/model?memory=64MiB&max_tokens=512", "1KiB")
    engine_args = {"tensor_parallel_size": 2}
    assert given == [
        (
            "org/model",
            {
                "label": "helpful",
                "memory_bytes": 2**26,
                "partial": "open",
                "engine_args": engine_args,
            },
        ),
        ("org/model", {"label": None, "memory_bytes": 2**10, "max_tokens": 512}),
    ]
    for arguments in ("[1]", "{"):
        with pytest.raises(UsageError, match="cannot be read"):
            as_reward(f"vllm:org/model?engine_args={arguments}")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_reward_model_on_vllm_needs_vllm() -> None:
    with pytest.raises(UsageError, match="vllm is not installed"):
        as_reward("vllm:org/model")


def test_other_rewards_take_no_memory() -> None:
    for spec in ("relevance", "ensemble:relevance", lambda prompt, texts: [0.0]):
        with pytest.raises(UsageError, match="takes no memory"):
            as_reward(spec, "64MiB")

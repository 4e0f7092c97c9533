"""What a caller of the Python interface may get wrong: each is told before anything runs."""

import asyncio
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import specrej
from fakes import FakeEngine, FakeReward
from specrej import Session, Settings
from specrej.engines.base import MEMBERS, Engine
from specrej.errors import ModelError, UnknownNameError, UsageError
from specrej.registry import find

HOW: dict[str, Any] = {"reward": FakeReward(), "n": 2, "max_new_tokens": 8}


class Veiled:
    """An engine without one of its members."""

    def __init__(self, hidden: str) -> None:
        self.hidden, self.engine = hidden, FakeEngine()

    def __getattr__(self, name: str) -> Any:
        if name == self.hidden:
            raise AttributeError(name)
        return getattr(self.engine, name)


def test_the_members_of_an_engine_are_those_of_the_protocol() -> None:
    assert {"name", "layout", "flops", "step", "open", "close", "shutdown"} <= set(MEMBERS)
    assert all(hasattr(FakeEngine(), name) for name in MEMBERS)
    assert set(MEMBERS) >= {name for name in vars(Engine) if not name.startswith("_")}


@pytest.mark.parametrize("role", ["model", "engine"])
@pytest.mark.parametrize("hidden", MEMBERS)
def test_an_engine_that_lacks_a_member_is_told_which(hidden: str, role: str) -> None:
    veiled = Veiled(hidden)
    with pytest.raises(UsageError, match=rf"^{role} must be .* \(Veiled\) lacks: {hidden}\n"):
        specrej.generate("Hi", **{**HOW, role: veiled})
    assert not veiled.engine.num_prefills


@pytest.mark.parametrize("role", ["model", "engine"])
@pytest.mark.parametrize("thing", [3, None, b"smollm2", object(), SimpleNamespace(n=1), [1]])
def test_what_is_no_engine_is_quoted(thing: Any, role: str) -> None:
    kind = type(thing).__name__
    with pytest.raises(UsageError, match=f"^{role} must be a name or an engine, got .*{kind}"):
        specrej.open_engine(**dict[str, Any]({role: thing}))
    with pytest.raises(UsageError, match=f"^{role} must be a name or an engine, got .*{kind}"):
        Session(**{role: thing}, **HOW)


@pytest.mark.parametrize("role", ["model", "engine"])
def test_a_class_is_no_engine_yet(role: str) -> None:
    with pytest.raises(UsageError, match=f"{role} must be .* the class FakeEngine") as caught:
        specrej.open_engine(**dict[str, Any]({role: FakeEngine}))
    assert "FakeEngine(...)" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"engine": FakeEngine(), "model": FakeEngine()}, "model must be left out"),
        ({"engine": FakeEngine(), "model": "org/other"}, "model must be left out"),
        ({"engine": "vllm", "model": FakeEngine()}, "engine must be left out"),
    ],
)
def test_an_engine_that_is_open_has_its_model(how: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        specrej.generate("Hi", **how, **HOW)


@pytest.mark.parametrize("settings", [{}, {"n": 2}, "n=2", 0, []])
def test_what_is_no_settings_is_refused(settings: Any) -> None:
    told = "^settings must be specrej.Settings, got "
    with pytest.raises(UsageError, match=told):
        specrej.generate("Hi", settings=settings, model=FakeEngine(), **HOW)
    with pytest.raises(UsageError, match=told):
        Session(settings=settings, model=FakeEngine(), **HOW)
    with Session(model=FakeEngine(), **HOW) as opened, pytest.raises(UsageError, match=told):
        opened.generate("Hi", settings=settings)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"in_flight": "3"}, "in_flight must be at least 1, and a whole number, got '3'"),
        ({"in_flight": 0}, "in_flight must be at least 1, and a whole number, got 0"),
        ({"in_flight": True}, "in_flight must be at least 1, and a whole number, got True"),
        ({"in_flight": None}, "in_flight must be at least 1, and a whole number, got None"),
        ({"total_memory": "lots"}, "total_memory must be like '64MiB' .*, got 'lots'"),
        ({"total_memory": 2**63}, "total_memory must be below"),
    ],
)
def test_what_prompts_share_is_named(wrong: dict[str, Any], told: str) -> None:
    calls: list[Any] = [partial(specrej.generate_batch, ["Hi"]), Session]
    for call in calls:
        with pytest.raises(UsageError, match=f"^{told}"):
            call(model=FakeEngine(), **HOW, **wrong)


def test_the_memory_of_a_reward_is_named() -> None:
    with pytest.raises(UsageError, match=r"^reward_memory must be"):
        specrej.generate("Hi", model=FakeEngine(), reward="org/model", reward_memory="lots")


@pytest.mark.parametrize("prompts", [None, 3, "Hey", b"Hey", {"role": "user", "content": "Hey"}])
def test_many_prompts_are_a_list_of_them(prompts: Any) -> None:
    told = "^prompts must be a list of texts or conversations, got "
    with pytest.raises(UsageError, match=told):
        specrej.generate_batch(prompts, model=FakeEngine(), **HOW)
    with Session(model=FakeEngine(), **HOW) as opened:
        with pytest.raises(UsageError, match=told):
            opened.generate_batch(prompts)
        with pytest.raises(UsageError, match=told):
            opened.iter_batch(prompts)

    async def go() -> None:
        async with Session(model=FakeEngine(), **HOW) as opened:
            with pytest.raises(UsageError, match=told):
                await anext(opened.aiter_batch(prompts))

    asyncio.run(go())


def test_one_prompt_is_told_how_it_is_given() -> None:
    with pytest.raises(UsageError, match="got one: 'Hey'") as caught:
        specrej.generate_batch("Hey", model=FakeEngine(), **HOW)
    assert "[prompt]" in str(caught.value.hint)


@pytest.mark.parametrize("option", ["model", "reward", "engine", "device"])
def test_a_session_has_its_model(option: str) -> None:
    with Session(model=FakeEngine(), **HOW) as opened:
        calls: list[Any] = [opened.generate, opened.compare]
        for call in calls:
            with pytest.raises(UsageError, match=f"^{option} is opened with the session"):
                call("Hi", **{option: "other"})
        with pytest.raises(UsageError, match=f"^{option} is opened with the session"):
            opened.generate_batch(["Hi"], **{option: "other"})  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [Path("/nosuch/model"), "/nosuch/model", "./nosuch", "../no"])
def test_a_path_with_nothing_there_is_said_to_be_none(model: str | Path) -> None:
    with pytest.raises(ModelError, match=f"the model '{model}': there is no such directory"):
        specrej.open_engine(model)


def test_a_large_module_is_not_listed() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find("policy", "os:getcwdd")
    hint = str(caught.value.hint)
    assert hint.startswith("did you mean 'getcwd'")
    assert len(hint) < 120
    with pytest.raises(UnknownNameError) as caught:
        find("policy", "os:brevity")
    assert len(str(caught.value.hint)) < 120


def test_settings_that_are_some_are_taken() -> None:
    with Session(model=FakeEngine(), **HOW) as opened:
        assert len(opened.generate("Hi", settings=Settings(n=3, max_new_tokens=4)).candidates) == 3


MODULE = """
from fakes import FakeEngine

def nothing(model): return None
class Lacking:
    def step(self): pass
def lacking(model): return Lacking()
def failing(model): raise ValueError("no weights of that name")
def narrow(): return FakeEngine()
def good(model): return FakeEngine()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed, with engines of its own."""
    (tmp_path / "their_engines.py").write_text(MODULE)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    names = ("nothing", "lacking", "failing", "narrow", "good")
    points = [f"{name} = their_engines:{name}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[specrej.engines]", *points]))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "told", "cause"),
    [
        ("nothing", "what the package 'theirs' opens as 'nothing' must be .* an engine", None),
        ("lacking", "what the package 'theirs' opens as 'lacking' must be .* lacks: add", None),
        ("failing", "the engine 'failing' of the package 'theirs' cannot be made", ValueError),
        ("narrow", "the engine 'narrow' of the package 'theirs' cannot be made", TypeError),
    ],
)
def test_an_engine_of_a_package_that_is_none_names_it(
    name: str, told: str, cause: type[Exception] | None
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        specrej.generate("Hi", model="m", engine=name, **HOW)
    assert cause is None or isinstance(caught.value.__cause__, cause)
    assert specrej.generate("Hi", model="m", engine="good", **HOW).text is not None

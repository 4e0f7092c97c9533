"""Who opens closes: after it no thread, process or connection is left, and one client serves all
prompts."""

import gc
import json
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import specrej
from completions_server import playing
from fakes import FakeEngine, FakeReward
from servers import Server, completion, serving
from specrej.cli import options
from specrej.engines.base import Engine
from specrej.errors import ModelError, RewardError, UsageError
from specrej.opening import Opening
from specrej.remote.client import Connections, Remote, RemoteError
from specrej.remote.services import RemoteService
from specrej.rewards import as_reward, vllm
from specrej.rewards.base import (
    MEMBERS,
    SESSION_MEMBERS,
    Reward,
    RewardSession,
    StatelessSession,
    open_session,
)
from specrej.rewards.classifier import ClassifierReward
from specrej.rewards.embedding import EmbeddingReward
from specrej.rewards.ensemble import EnsembleReward
from specrej.rewards.http import HttpReward
from specrej.rewards.process import ProcessReward
from specrej.rewards.reference import ReferenceReward
from specrej.rewards.together import score_together
from specrej.rewards.verifiable import MathReward
from specrej.testing.held import held
from specrej.types import Candidate, SamplingParams
from tiny import CHAT_TEMPLATE, make_config, make_tokenizer, save_model

PROMPT = [{"role": "user", "content": "What?"}]
ANSWERS = [Candidate(index=0, text="a", finish_reason="eos"), Candidate(index=1, text="bb")]


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")


@pytest.fixture
def server() -> Iterator[Server]:
    def write(answer: Any) -> bytes:
        return completion(json.dumps(answer)) if "score" in answer else json.dumps(answer).encode()

    with serving(write) as server:
        server.answer = lambda request: (
            {"scores": [1.0] * len(request["answers"])}
            if "answers" in request
            else {"score": 1, "data": [{"probs": [1.0], "data": [1.0]}]}
        )
        yield server


REWARDS = ["http:{}", "judge:{}#model", "ensemble:'http:{}'+logprob"]


@pytest.mark.parametrize("spec", REWARDS)
def test_one_client_serves_all_prompts_and_nothing_is_left_of_it(server: Server, spec: str) -> None:
    before = held()
    threads = set(threading.enumerate())
    answers = [Candidate(index=0, text="a", logprobs=[-1.0])]
    reward = as_reward(spec.format(server.url))
    sessions = [reward.open(PROMPT) for _ in range(5)]
    assert set(threading.enumerate()) == threads  # nothing is opened before it is used
    for session in sessions:
        session.score(answers)
    score_together(reward, [(session, answers) for session in sessions[:2]])
    for session in sessions:
        session.close()
    new = set(threading.enumerate()) - threads
    assert [thread.name for thread in new].count("specrej-remote") == 1
    reward.open(PROMPT).score(answers)
    assert server.num_connections <= 2  # side by side: those of the joint batch
    reward.close()
    reward.close()
    wait_until(lambda: server.connected == 0 and held() <= before)


def test_a_session_that_is_closed_ends_its_requests_and_no_others(server: Server) -> None:
    free = threading.Event()
    outcomes: list[Any] = []
    answer = server.answer

    def hang(request: dict[str, Any]) -> Any:
        free.wait(120)
        return answer(request)

    server.answer = hang
    reward = HttpReward(server.url)
    slow, other = reward.open(PROMPT), reward.open(PROMPT)

    def score(session: RewardSession) -> None:
        try:
            outcomes.append(session.score(ANSWERS))
        except BaseException as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=score, args=(session,)) for session in (slow, other)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(server.requests) == 2)
    slow.close()
    threads[0].join(120)
    assert outcomes == ["CancelledError"]
    free.set()
    threads[1].join(120)
    assert outcomes[1:] == [[1.0, 1.0]]
    other.close()
    reward.close()


def test_what_is_closed_under_way_ends_and_nothing_begins_any_more(server: Server) -> None:
    asked, free = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def hang(request: dict[str, Any]) -> Any:
        asked.set()
        free.wait(120)
        return {}

    server.answer = hang
    connections = Connections(RemoteService(url=server.url))
    remote = Remote(RemoteService(url=server.url), connections)

    def wait_for_it() -> None:
        try:
            remote.wait(remote.post({}))
        except BaseException as error:
            outcomes.append(type(error).__name__)

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    assert asked.wait(120)
    connections.close()
    waiting.join(120)
    free.set()
    assert outcomes == ["CancelledError"]
    with pytest.raises(RemoteError, match="closed"):
        remote.wait(remote.post({}))
    remote.close()


def test_connections_that_nobody_closed_end_with_their_reward(server: Server) -> None:
    threads = set(threading.enumerate())
    reward = HttpReward(server.url)
    session = reward.open(PROMPT)
    session.score(ANSWERS)
    assert set(threading.enumerate()) - threads
    del reward, session
    gc.collect()
    wait_until(
        lambda: "specrej-remote" not in {t.name for t in set(threading.enumerate()) - threads}
    )
    wait_until(lambda: server.connected == 0)


def test_a_reward_that_was_used_can_be_sent_to_another_process(server: Server) -> None:
    reward = HttpReward(server.url)
    reward.open(PROMPT).score(ANSWERS)
    sent: HttpReward = pickle.loads(pickle.dumps(reward))
    reward.close()
    assert sent.open(PROMPT).score(ANSWERS) == [1.0, 1.0]
    sent.close()


def test_the_process_of_math_verify_ends() -> None:
    before = held()
    reward = MathReward("42")
    session = reward.open(PROMPT)
    assert session.score([Candidate(index=0, text="42", finish_reason="eos")]) == [1.0]
    assert {kind for kind, _ in held() - before} == {"process"}
    session.close()
    reward.close()
    reward.close()
    assert held() <= before


def test_an_ensemble_closes_what_it_opened_and_leaves_what_it_was_given() -> None:
    given = FakeReward()
    reward = EnsembleReward([given, "math:42"], filter="math:41")
    opened = [judge for judge in reward.judges if isinstance(judge, MathReward)]
    session = reward.open(PROMPT)
    session.score([Candidate(index=0, text="42", finish_reason="eos", state="complete")])
    session.close()
    processes = [judge._verifier.process for judge in opened if judge._verifier.process is not None]
    assert processes
    reward.close()
    assert not any(judge._verifier.process for judge in opened)
    assert all(process.returncode is not None for process in processes)
    assert not given.is_closed


class Counting(FakeReward):
    """Counts how often it is closed; fails at that if told to."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.num_closed, self._fails = 0, fails

    def close(self) -> None:
        super().close()
        self.num_closed += 1
        if self._fails:
            raise OSError("it is stuck")


@pytest.mark.parametrize("fails", [False, True])
def test_an_ensemble_closes_each_member_once(
    monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    first, second, judge, given = Counting(), Counting(fails=fails), Counting(), Counting()
    named = {"first": first, "second": second, "judge": judge}
    monkeypatch.setattr(
        "specrej.rewards.ensemble.as_reward",
        lambda spec: named[spec] if isinstance(spec, str) else as_reward(spec),
    )
    reward = EnsembleReward(["first", given, "second"], filter="judge")
    outer = EnsembleReward([reward, given])
    outer.close()
    assert [one.num_closed for one in named.values()] == [0, 0, 0]  # they are the inner one's
    if fails:
        with pytest.raises(OSError, match="stuck"):
            reward.close()
    reward.close()
    reward.close()
    assert [one.num_closed for one in named.values()] == [1, 1, 1]
    assert given.num_closed == 0


def test_sessions_of_an_ensemble_are_closed_where_one_cannot_be_counted() -> None:
    class Uncounted(FakeReward):
        def open(self, messages: Any) -> Any:
            session = super().open(messages)
            session.num_tokens = None  # type: ignore[assignment]
            return session

    one, other = FakeReward(), Uncounted()
    with pytest.raises(TypeError):
        EnsembleReward([one, other]).open(PROMPT)
    assert [session.is_closed for session in one.sessions + other.sessions] == [True, True]


def test_math_verify_is_not_started_again_by_who_comes_late() -> None:
    before = held()
    reward = MathReward("42")
    session = reward.open(PROMPT)
    reward.close()
    with pytest.raises(RewardError, match="the reward 'math:42' is closed"):
        session.score([Candidate(index=0, text="42", finish_reason="eos")])
    assert held() <= before


def test_a_process_that_is_not_ready_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/cat")  # says that it knows no such option
    before = held()
    session = MathReward("42").open(PROMPT)
    with pytest.raises(RewardError, match="ended at once"):
        session.score([Candidate(index=0, text="42", finish_reason="eos")])
    assert held() <= before


def test_a_reward_model_on_vllm_that_is_none_after_all_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hf_config = SimpleNamespace(id2label={0: "helpful", 1: "harmless"})
    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config))
    engine, ended = SimpleNamespace(vllm_config=config), list[Any]()
    monkeypatch.setattr(vllm, "import_vllm", dict)
    monkeypatch.setattr(vllm, "check_arguments", lambda *_: None)
    monkeypatch.setattr(vllm, "defaults", lambda _: {})
    monkeypatch.setattr(vllm, "_open", lambda *_: SimpleNamespace(llm_engine=engine))
    monkeypatch.setattr(vllm, "end", ended.append)
    with pytest.raises(UsageError, match="2 outputs"):  # and no label
        vllm.VllmClassifierReward("org/model")
    assert ended == [engine]


def encoder(network: Any, tokenizer: Any) -> Reward:
    return EmbeddingReward((network, tokenizer))


def token_classifier(network: Any, tokenizer: Any) -> Reward:
    return ProcessReward((network, tokenizer))


def language_model(network: Any, tokenizer: Any) -> Reward:
    return ReferenceReward((network, tokenizer))


def classifier(network: Any, tokenizer: Any) -> Reward:
    return ClassifierReward((network, tokenizer))


@pytest.mark.parametrize(
    ("make", "auto", "num_labels"),
    [
        (encoder, transformers.AutoModel, 1),
        (token_classifier, transformers.AutoModelForTokenClassification, 2),
        (language_model, transformers.AutoModelForCausalLM, 1),
        (classifier, transformers.AutoModelForSequenceClassification, 1),
    ],
)
def test_a_model_that_was_handed_in_stays_and_one_that_was_opened_goes(
    make: Callable[[Any, Any], Reward], auto: Any, num_labels: int
) -> None:
    network = auto.from_config(make_config("llama", num_labels=num_labels, pad_token_id=0)).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = network(input_ids=ids)[0].clone()
    reward = make(network, make_tokenizer(CHAT_TEMPLATE))
    session = reward.open(PROMPT)
    session.score(ANSWERS)
    session.close()
    reward.close()
    reward.close()
    with torch.inference_mode():
        assert torch.allclose(network(input_ids=ids)[0], expected, atol=1e-5)
    del session
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None  # the reward that is closed holds it no more
    assert reward.name


def test_members_are_closed_where_another_one_cannot_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = FakeReward()
    monkeypatch.setattr(
        "specrej.rewards.ensemble.as_reward",
        lambda spec: member if spec == "one" else as_reward(spec),
    )
    with pytest.raises(UsageError):
        EnsembleReward(["one", "regex"])
    assert member.is_closed


def test_a_server_of_completions_is_let_go(tmp_path: Path) -> None:
    with playing() as server:
        model = save_model(tmp_path)  # whose progress bar leaves a thread
        before = held()
        engine = specrej.open_engine(model, engine=f"openai:{server.base}")
        ids = engine.encode("Why?")
        for _ in range(2):
            prompt = engine.open(ids, SamplingParams(max_new_tokens=4), 2**20)
            engine.add(prompt, range(2))
            engine.step()
            engine.close(prompt)
        assert [t.name for t in threading.enumerate()].count("specrej-remote") == 1
        engine.open(ids, SamplingParams(max_new_tokens=4), 2**20)
        engine.shutdown()
        engine.shutdown()
        wait_until(lambda: server.connected == 0 and held() <= before)


def test_a_server_of_another_model_is_let_go(tmp_path: Path) -> None:
    with playing() as server:
        before = held()
        with pytest.raises(ModelError):
            specrej.open_engine(tmp_path, engine=f"openai:{server.base}")
        wait_until(lambda: server.connected == 0 and held() <= before)


def test_an_engine_is_shut_where_the_reward_fails_to_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, reward = FakeEngine(), Counting(fails=True)
    monkeypatch.setattr("specrej.opening.as_reward", lambda *_: reward)
    monkeypatch.setattr("specrej.engines.opening.open_engine", lambda *_, **__: engine)
    session = specrej.Session(model="m", reward="r")
    with pytest.raises(OSError, match="stuck"):
        session.close()
    session.close()
    assert engine.is_shut
    assert reward.num_closed == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_command_closes_what_it_opened(monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    engine, reward = FakeEngine(), FakeReward()

    def open_engine(model: str, **_: Any) -> Engine:
        if fails:
            raise ModelError("no such model")
        return engine

    monkeypatch.setattr("specrej.opening.as_reward", lambda *_: reward)
    monkeypatch.setattr("specrej.engines.opening.open_engine", open_engine)
    given = {**vars(Opening()), "model": "m", "reward": "r"}
    if fails:
        with pytest.raises(ModelError), options.open_given(given, []):
            pass
    else:
        with options.open_given(given, []) as opened:
            assert opened == (engine, reward)
            assert not engine.is_shut
            assert not reward.is_closed
    assert engine.is_shut == (not fails)
    assert reward.is_closed


def test_what_is_asked_of_a_reward_is_what_the_protocols_say() -> None:
    for protocol, members in ((Reward, MEMBERS), (RewardSession, SESSION_MEMBERS)):
        methods = {
            name for name, value in vars(protocol).items() if callable(value) and name[0] != "_"
        }
        assert methods | set(protocol.__annotations__) == set(members)


class Terse:
    """A reward of somebody who did not read the protocol to its end."""

    def open(self, messages: Any) -> Any:
        return StatelessSession(messages, lambda messages, candidates: ([1.0] * len(candidates), 0))


def test_a_reward_that_lacks_members_is_told_which() -> None:
    with pytest.raises(
        UsageError, match=r"\(Terse\) lacks: name, flops_per_token, close"
    ) as caught:
        as_reward(Terse())
    assert "docs/extending.md" in str(caught.value.hint)


def test_a_session_that_lacks_members_is_told_which() -> None:
    class Session:
        num_tokens = 0

        def score(self, candidates: Any) -> Any:
            return [1.0] * len(candidates)

        def close(self) -> None:
            closed.append(self)

    closed: list[Session] = []

    class Own(FakeReward):
        def open(self, messages: Any) -> Any:
            return Session()

    with pytest.raises(
        RewardError, match=r"(?m)'by_hash' \(Session\) lacks: reuse, peak_kv_bytes, drop$"
    ) as caught:
        open_session(Own(), PROMPT)
    assert len(closed) == 1
    assert "StatelessSession" in str(caught.value.hint)
    engine = FakeEngine()
    with pytest.raises(RewardError, match="lacks: reuse, peak_kv_bytes, drop"):
        specrej.generate("Why?", model=engine, reward=Own(), n=2, max_new_tokens=4)
    assert not engine.groups

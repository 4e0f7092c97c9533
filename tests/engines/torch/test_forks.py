"""Forks, candidates that wait, and rows of unlike lengths against transformers' own forward pass.

A script drawn at random adds, forks, holds, drops and steps. Each token must be the one that the
model's own logits and the number of seed, candidate and position give.
"""

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specrej.attention import groups
from specrej.constraint import Constraint
from specrej.engines.streams import uniforms
from specrej.engines.torch.engine import TorchEngine
from specrej.engines.torch.sampling import sample
from specrej.types import SamplingParams
from tiny import VOCABULARY, full_logits, make_engine, make_ids, make_model, reference

PLAIN = SamplingParams(max_new_tokens=24, top_k=0, seed=3)
MOST = 10
some = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GRANULE", 4)


class Script:
    """What was drawn of one prompt, and the moves that change who is decoded."""

    def __init__(self, engine: TorchEngine, prompt_ids: list[int], sampling: SamplingParams):
        self.engine, self.prompt_ids, self.sampling = engine, prompt_ids, sampling
        budget = engine.kv_bytes(len(prompt_ids), MOST, sampling.max_new_tokens)
        self.prompt = engine.open(prompt_ids, sampling, budget)
        self.budget = budget
        self.tokens: dict[int, list[int]] = {}
        self.num_inherited: dict[int, int] = {}
        self.live: list[int] = []
        self.held: set[int] = set()

    def move(self, random: Random) -> None:
        room = MOST - len(self.live)
        kind = random.choice(["add", "fork", "fork", "hold", "drop", "step", "step"])
        if kind == "add" and room:
            self.begin([None] * random.randint(1, min(room, 3)))
        elif kind == "fork" and room and self.live:
            parents = [random.choice(self.live) for _ in range(random.randint(1, min(room, 4)))]
            self.begin(parents)
        elif kind == "hold":
            self.held = {index for index in self.live if random.random() < 0.4}
            self.engine.hold(self.prompt, sorted(self.held))
        elif kind == "drop" and self.live:
            gone = {index for index in self.live if random.random() < 0.3}
            self.engine.drop(self.prompt, sorted(gone))
            self.live = [index for index in self.live if index not in gone]

    def begin(self, parents: list[Any]) -> None:
        first = len(self.tokens)
        indices = list(range(first, first + len(parents)))
        for index, parent in zip(indices, parents, strict=True):
            self.tokens[index] = [] if parent is None else list(self.tokens[parent])
            self.num_inherited[index] = len(self.tokens[index])
        if parents[0] is None:
            self.engine.add(self.prompt, indices)
        else:
            self.engine.fork(self.prompt, parents, indices)
        self.live += indices

    def take(self, given: list[Any], announced: int) -> None:
        own = [token for token in given if token.prompt == self.prompt]
        assert {token.candidate for token in own} == set(self.live) - self.held
        for token in own:
            self.tokens[token.candidate].append(token.token_id)
            if token.finish_reason:
                self.live.remove(token.candidate)
        memory = self.engine.memory(self.prompt)
        assert memory.in_use <= announced <= self.budget
        assert memory.peak <= self.budget

    def check(self, model: Any) -> None:
        sampling = self.sampling
        for index, ids in self.tokens.items():
            logits = full_logits(model, [*self.prompt_ids, *ids])[len(self.prompt_ids) - 1 : -1]
            for place in range(self.num_inherited[index], len(ids)):
                scores = logits[place].clone()
                for token_id in {*self.prompt_ids, *ids[:place]}:
                    penalty = sampling.repetition_penalty
                    scores[token_id] *= penalty if scores[token_id] < 0 else 1 / penalty
                for token_id in set(ids[:place]):
                    scores[token_id] -= sampling.frequency_penalty * ids[:place].count(token_id)
                number = torch.from_numpy(uniforms(sampling.seed, [index], place))
                assert sample(scores[None], PLAIN, number)[0].tolist() == [ids[place]]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@given(st.integers(0, 2**32))
@some
def test_each_token_is_what_the_model_and_its_own_number_give(name: str, seed: int) -> None:
    """With a window (gemma2), without, and with positions that are learned (gpt2)."""
    random = Random(seed)
    model = make_model(name, dtype=torch.float64)
    exact, engine = reference(model), make_engine(model, range(0, VOCABULARY, 60))
    penalties: dict[str, Any] = {"repetition_penalty": 1.3, "frequency_penalty": 0.4}
    samplings = [
        PLAIN,
        SamplingParams(max_new_tokens=24, top_k=0, seed=3, **random.choice([{}, penalties])),
    ]
    scripts = [
        Script(engine, make_ids(length, seed=length), sampling)
        for length, sampling in zip((5, 17), samplings, strict=True)
    ]
    for _ in range(60):
        script = random.choice(scripts)
        script.move(random)
        if random.random() < 0.6:
            able = [one for one in scripts if set(one.live) - one.held]
            chosen = able if random.random() < 0.7 else able[:1]
            announced = {one.prompt: engine.memory(one.prompt).next_step for one in chosen}
            limits = {one.prompt: engine.demand(one.prompt).least for one in chosen}
            given_tokens = engine.step(limits)
            for one in chosen:
                one.take(given_tokens, announced[one.prompt])
    for script in scripts:
        script.check(exact)
        engine.close(script.prompt)


def test_hidden_states_are_those_of_who_stepped() -> None:
    engine = make_engine(make_model("llama"))
    prompt = engine.open(make_ids(9), PLAIN, 2**24)
    engine.add(prompt, [0, 1])
    engine.step()
    engine.step()
    engine.hold(prompt, [1])
    engine.add(prompt, [2])
    engine.fork(prompt, [0], [3])
    engine.step()
    states = engine.hidden_states(prompt)
    assert set(states) == {0, 2, 3}
    assert (states[0] == states[3]).all()


def test_the_likeliest_tokens_stand_beside_those_who_stepped() -> None:
    sampling = SamplingParams(max_new_tokens=8, top_k=0, seed=1, top_logprobs=3)
    engine = make_engine(make_model("llama"))
    prompt = engine.open(make_ids(9), sampling, 2**24)
    engine.add(prompt, [0, 1])
    engine.step()
    engine.hold(prompt, [0])
    engine.add(prompt, [2])
    engine.fork(prompt, [0, 1], [3, 4])
    tokens = {token.candidate: token for token in engine.step()}
    assert set(tokens) == {1, 2, 3, 4}
    assert tokens[1].top_logprobs == tokens[4].top_logprobs != tokens[3].top_logprobs


def test_forks_obey_what_their_parents_obey() -> None:
    pytest.importorskip("llguidance")
    sampling = SamplingParams(
        max_new_tokens=12, top_k=0, seed=1, constraint=Constraint("regex", "(ab|cd){5}")
    )
    model = make_model("llama")
    engine = make_engine(model, [1])
    prompt = engine.open(make_ids(9), sampling, 2**24)
    engine.add(prompt, [0, 1])
    ids: dict[int, list[int]] = {0: [], 1: []}
    for step in range(12):
        if step == 3:
            engine.fork(prompt, [0, 0, 1], [2, 3, 4])
            ids.update({2: list(ids[0]), 3: list(ids[0]), 4: list(ids[1])})
            engine.hold(prompt, [1])
            engine.add(prompt, [5])
            ids[5] = []
        if step == 5:
            engine.hold(prompt, [])
        for token in engine.step():
            ids[token.candidate].append(token.token_id)
    while tokens := engine.step():
        for token in tokens:
            ids[token.candidate].append(token.token_id)
    texts = {index: engine.decode(answer) for index, answer in ids.items()}
    assert all(len(text) == 10 and set(text[::2]) <= set("ac") for text in texts.values()), texts

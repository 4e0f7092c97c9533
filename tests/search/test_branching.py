"""Beam search, DVTS, particle filtering and TreeBoN against simulations that know nothing of
searches: lists of tokens, written on one by one.

Every simulated candidate is a list of tokens. The next one comes from the fake engine's own pure
function, by the random number of seed, candidate and position.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specrej
from fakes import EOS, FakeEngine, FakeReward, alike, by_hash, in_thirds, next_token, text_of
from fakes import watched as run
from specrej.engines.streams import uniforms
from specrej.errors import BudgetError, UsageError
from specrej.search.branching import beam_search, dvts, particle_filtering, tree_bon
from specrej.search.policies import at, never
from specrej.search.steps import separated, tokens
from specrej.types import Candidate, Result

some = settings(max_examples=60, deadline=None, derandomize=True)
STEPS = [separated(" ", 6), separated("ab", 9), tokens(4), tokens(1)]


class Case(NamedTuple):
    """A run, drawn at random."""

    prompt: str
    options: dict[str, Any]
    fitting: int
    eos: float
    rate: Callable[[str], float]
    width: int
    ends: Callable[[str, int], bool]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prompt = draw(st.text(min_size=1, max_size=8).filter(str.strip))
    engine, length = FakeEngine(), draw(st.integers(2, 24))
    fitting = draw(st.integers(1, 8))
    options = {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "n": draw(st.integers(1, 12)),
        "max_new_tokens": length,
        "memory": engine.kv_bytes(len(engine.encode(prompt)), fitting, length),
    }
    return Case(
        prompt,
        options,
        fitting,
        draw(st.sampled_from([0.0, 0.03, 0.2])),
        draw(st.sampled_from([by_hash, in_thirds, alike])),
        draw(st.integers(1, 5)),
        draw(st.sampled_from(STEPS)),
    )


@dataclass
class Sheet:
    """A candidate of a simulation."""

    index: int
    token_ids: list[int]
    parent: int | None = None
    num_inherited: int = 0
    state: str = "live"


class Simulation:
    """Lists of tokens, and what becomes of them."""

    def __init__(self, case: Case) -> None:
        self.case, self.num_drawn = case, 0
        self.sheets: list[Sheet] = []
        self.prompt_ids = FakeEngine().encode(case.prompt)
        left, self.waves = case.options["n"], list[int]()
        while left:
            self.waves.append(min(left, case.fitting))
            left -= self.waves[-1]

    def begin(self, n: int) -> list[Sheet]:
        first = len(self.sheets)
        self.sheets += [Sheet(first + place, []) for place in range(n)]
        return self.sheets[first:]

    def copy(self, sheet: Sheet) -> Sheet:
        ids = list(sheet.token_ids)
        copied = Sheet(len(self.sheets), ids, sheet.index, len(ids))
        self.sheets.append(copied)
        return copied

    def write(self, sheet: Sheet, is_over: Callable[[list[int], int], bool]) -> None:
        """Tokens until it is over by this, or complete."""
        num_old, options = len(sheet.token_ids), self.case.options
        while True:
            (number,) = uniforms(options["seed"], [sheet.index], len(sheet.token_ids)).tolist()
            token = next_token(self.prompt_ids, sheet.token_ids, number, self.case.eos)
            sheet.token_ids.append(token)
            self.num_drawn += 1
            if token == EOS or len(sheet.token_ids) == options["max_new_tokens"]:
                sheet.state = "complete"
                return
            if is_over(sheet.token_ids, num_old):
                return

    def step(self, sheets: list[Sheet]) -> None:
        def is_over(ids: list[int], num_old: int) -> bool:
            text = text_of(ids)[len(text_of(ids[:num_old])) :]
            return self.case.ends(text, len(ids) - num_old)

        for sheet in sheets:
            self.write(sheet, is_over)

    def score(self, sheet: Sheet) -> float:
        return self.case.rate(text_of(sheet.token_ids))

    def best_first(self, sheets: list[Sheet]) -> list[Sheet]:
        return sorted(sheets, key=lambda sheet: (-self.score(sheet), sheet.index))

    def check(self, result: Result) -> None:
        given = [_fate(one) for one in result.candidates]
        assert given == [
            (one.token_ids, one.parent, one.num_inherited, one.state) for one in self.sheets
        ]
        complete = [sheet for sheet in self.sheets if sheet.state == "complete"]
        assert result.best.index == self.best_first(complete)[0].index
        assert result.usage.generated_tokens == self.num_drawn
        assert result.usage.peak_kv_bytes <= self.case.options["memory"]


def _fate(one: Candidate) -> tuple[list[int], int | None, int, str]:
    return one.token_ids, one.parent, one.num_inherited, one.state


def live(sheets: list[Sheet]) -> list[Sheet]:
    return [sheet for sheet in sheets if sheet.state == "live"]


def searched(case: Case, algorithm: Callable[..., Any]) -> Result:
    engine = FakeEngine(eos=case.eos)
    result = run(
        case.prompt,
        model=engine,
        reward=FakeReward(case.rate),
        algorithm=algorithm,
        **case.options,
    )
    assert not engine.groups
    return result


def branch(simulation: Simulation, beams: list[Sheet], n: int, width: int) -> list[Sheet]:
    """Who goes on, with copies in turn."""
    best = simulation.best_first(live(beams))[: max(n // width, 1)]
    for beam in live(beams):
        beam.state = "live" if beam in best else "rejected"
    stay = sorted(best, key=lambda beam: beam.index)
    copies = [simulation.copy(stay[place % len(stay)]) for place in range(n - len(stay)) if stay]
    return [*stay, *copies]


@given(cases())
@some
def test_beam_search(case: Case) -> None:
    simulation = Simulation(case)
    for n in simulation.waves:
        beams = simulation.begin(n)
        while beams:
            simulation.step(beams)
            beams = branch(simulation, beams, n, case.width)
    simulation.check(searched(case, partial(beam_search, width=case.width, ends=case.ends)))


@given(cases())
@some
def test_tree_bon(case: Case) -> None:
    simulation, limit = Simulation(case), case.options["max_new_tokens"]
    for n in simulation.waves:
        beams = simulation.begin(n)
        for end in sorted({limit * layer // 3 for layer in (1, 2)} - {0}):
            for beam in beams:
                simulation.write(beam, lambda ids, _: len(ids) == end)  # noqa: B023  called here
            beams = branch(simulation, beams, n, case.width)
        for beam in beams:
            simulation.write(beam, lambda ids, _: False)
    simulation.check(searched(case, partial(tree_bon, children=case.width, layers=3)))


@given(cases())
@some
def test_dvts(case: Case) -> None:
    simulation = Simulation(case)
    for n in simulation.waves:
        beams = simulation.begin(n)
        trees = [beams[start : start + case.width] for start in range(0, n, case.width)]
        sizes = [len(tree) for tree in trees]
        while any(trees):
            simulation.step([one for tree in trees for one in live(tree)])
            leaders = [simulation.best_first(tree)[:1] for tree in trees]
            for tree, leader in zip(trees, leaders, strict=True):
                for one in tree:
                    one.state = one.state if one in leader else "rejected"
            going_on = sorted(
                (leader[0].index, place) for place, leader in enumerate(leaders) if live(leader)
            )
            trees = [[] for _ in trees]
            for index, place in going_on:
                first = simulation.sheets[index]
                copies = [simulation.copy(first) for _ in range(sizes[place] - 1)]
                trees[place] = [first, *copies]
    simulation.check(searched(case, partial(dvts, width=case.width, ends=case.ends)))


@given(cases(), st.sampled_from([0.5, 1.0, 1e6]))
@some
def test_particle_filtering(case: Case, temperature: float) -> None:
    simulation, random = Simulation(case), Random(case.options["seed"])
    for n in simulation.waves:
        particles = simulation.begin(n)
        while live(particles):
            simulation.step(list({one.index: one for one in live(particles)}.values()))
            scores = [simulation.score(one) / temperature for one in particles]
            weights = [math.exp(score - max(scores)) for score in scores]
            drawn = random.choices(particles, weights, k=n)
            for one in live(particles):
                one.state = "live" if any(one is other for other in drawn) else "rejected"
            following = []
            for one in sorted({one.index: one for one in drawn}.values(), key=lambda o: o.index):
                count = sum(one is other for other in drawn)
                is_live = one.state == "live"
                copies = [simulation.copy(one) if is_live else one for _ in range(count - 1)]
                following += [one, *copies]
            particles = following
    algorithm = partial(particle_filtering, resampling_temperature=temperature, ends=case.ends)
    simulation.check(searched(case, algorithm))


# What an algorithm does wrong is told


def told(algorithm: Callable[..., Any], error: type[Exception], words: str) -> None:
    engine = FakeEngine(eos=0)
    memory = engine.kv_bytes(len(engine.encode("Why?")), 4, 24)
    with pytest.raises(error, match=words):
        run(
            "Why?",
            model=engine,
            reward=FakeReward(by_hash),
            algorithm=algorithm,
            max_new_tokens=24,
            memory=memory,
        )
    assert not engine.groups


def test_forks_that_were_not_announced_are_refused() -> None:
    def unannounced(search: Any, n: Any, policy: Any) -> Any:
        search.start(2)
        yield at([4])
        search.fork(search.live)

    def too_many(search: Any, n: Any, policy: Any) -> Any:
        search.start(2, most=3)
        yield at([4])
        search.fork(search.live)

    def too_few(search: Any, n: Any, policy: Any) -> Any:
        search.start(2, most=1)
        yield never

    told(unannounced, UsageError, "set room aside for no forks")
    told(too_many, UsageError, "2 candidates beside 2 that are live, and set room aside for 3")
    told(too_few, UsageError, "room aside for at least the 2 candidates")


def test_a_fork_of_who_is_not_live_is_refused() -> None:
    def of_the_rejected(search: Any, n: Any, policy: Any) -> Any:
        search.start(2, most=4)
        yield at([4])
        first = search.live[0]
        search.keep([False, True])
        search.fork([first])

    told(of_the_rejected, UsageError, "must fork candidates that are live")


def test_forks_that_do_not_fit_are_refused_with_their_number() -> None:
    def greedy(search: Any, n: Any, policy: Any) -> Any:
        search.start(4, most=40)
        yield at([20])
        search.fork(2 * search.live)

    told(greedy, BudgetError, "does not hold 8 more beside 4 live candidates .* only 0")


def test_a_rule_of_steps_that_fails_is_told() -> None:
    def broken(search: Any, n: Any, policy: Any) -> Any:
        search.wait_after(lambda text, num_tokens: 1 / 0)
        search.start(2)
        yield never

    told(broken, Exception, "ZeroDivisionError")


@given(cases(), st.integers(0, 2**32))
@some
def test_prompts_side_by_side_are_each_as_alone_within_what_they_share(
    case: Case, more: int
) -> None:
    """Forks wait for memory as steps do, and none waits for ever."""
    prompts = [case.prompt * count for count in (1, 2, 3)]
    engine, length = FakeEngine(), case.options["max_new_tokens"]
    memory = engine.kv_bytes(len(engine.encode(prompts[-1])), case.fitting, length)
    total = memory + more % memory
    options = {
        **case.options,
        "memory": memory,
        "algorithm": partial(beam_search, width=case.width, ends=case.ends),
        "reward": FakeReward(case.rate),
    }
    shared = FakeEngine(eos=case.eos, total_bytes=total)
    outcomes = dict(specrej.generate_batch(prompts, model=shared, total_memory=total, **options))
    for number, prompt in enumerate(prompts):
        outcome = outcomes[number]
        assert isinstance(outcome, Result)
        alone = specrej.generate(prompt, model=FakeEngine(eos=case.eos), **options)
        assert list(map(_fate, outcome.candidates)) == list(map(_fate, alone.candidates))
        assert outcome.best.index == alone.best.index


def test_what_a_fork_is_stands_in_the_result() -> None:
    case = Case("Why?", {"n": 4, "max_new_tokens": 12, "seed": 1}, 4, 0.0, by_hash, 2, tokens(4))
    result = searched(case, partial(beam_search, width=2, ends=case.ends))
    written = result.to_dict()["candidates"]
    assert "parent" not in written[0]
    assert written[4]["num_inherited"] == 4
    assert written[4]["parent"] == result.candidates[4].parent

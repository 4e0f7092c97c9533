"""What forks and waiting candidates must do in every engine: a part of `EngineSuite`.

walk = Walk(engine, prompt_ids, sampling, most=6)
walk.add(0, 1)
walk.go(4)                     # four steps of all that are live and not held
walk.fork({8: 0})              # 8 begins as a copy of 0
walk.hold(1)
walk.go()                      # to the end
walk.tokens[8]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from specrej.engines.base import Engine
from specrej.search.policies import never
from specrej.search.steps import tokens
from specrej.search.view import SearchView
from specrej.testing.subject import Subject, ids
from specrej.types import Policy, SamplingParams

LENGTH = 14


class Walk:
    """A prompt whose candidates are stepped by hand, within the memory of `most` of them."""

    def __init__(
        self, engine: Engine, prompt_ids: Sequence[int], sampling: SamplingParams, most: int
    ) -> None:
        self.engine, self.sampling = engine, sampling
        self.budget = engine.kv_bytes(len(prompt_ids), most, sampling.max_new_tokens)
        self.prompt = engine.open(prompt_ids, sampling, self.budget)
        self.tokens: dict[int, list[int]] = {}
        self.live: set[int] = set()
        self.held: set[int] = set()

    def add(self, *indices: int) -> None:
        self.engine.add(self.prompt, indices)
        self.tokens.update({index: [] for index in indices})
        self.live.update(indices)

    def fork(self, parents: Mapping[int, int]) -> None:
        self.engine.fork(self.prompt, list(parents.values()), list(parents))
        self.tokens.update({fork: list(self.tokens[of]) for fork, of in parents.items()})
        self.live.update(parents)

    def hold(self, *indices: int) -> None:
        self.engine.hold(self.prompt, indices)
        self.held = set(indices)

    def drop(self, *indices: int) -> None:
        self.engine.drop(self.prompt, indices)
        self.live -= set(indices)

    def go(self, num_steps: int = LENGTH) -> None:
        """So many steps, or until none is left that steps."""
        for _ in range(num_steps):
            stepping = self.live - self.held
            if not stepping:
                return
            announced = self.engine.memory(self.prompt).next_step
            given = self.engine.step({self.prompt: self.engine.demand(self.prompt).least})
            assert sorted(token.candidate for token in given) == sorted(stepping)
            for token in given:
                self.tokens[token.candidate].append(token.token_id)
                is_full = len(self.tokens[token.candidate]) == self.sampling.max_new_tokens
                assert token.finish_reason == ("length" if is_full else None)
                self.live -= {token.candidate} if is_full else set()
            memory = self.engine.memory(self.prompt)
            assert memory.in_use <= announced <= self.budget
            assert memory.peak <= self.budget

    def close(self) -> None:
        self.engine.close(self.prompt)


class ForkSuite:
    """Tests of `fork` and `hold`."""

    def test_a_fork_of_a_greedy_answer_goes_on_like_it(self, subject: Subject) -> None:
        alone = _walk(subject, temperature=0.0)
        alone.add(0)
        alone.go()
        walk = _walk(subject, temperature=0.0)
        walk.add(0)
        walk.go(5)
        walk.fork({4: 0, 5: 0})
        walk.go(3)
        walk.hold(0)
        walk.fork({6: 4, 7: 0})
        walk.go(2)
        walk.hold()
        walk.go()
        subject.compare((walk.tokens[index], alone.tokens[0]) for index in (0, 4, 5, 6, 7))
        _close(alone, walk)

    def test_a_fork_depends_on_its_number_and_what_it_began_with_alone(
        self, subject: Subject
    ) -> None:
        alone = _walk(subject)
        alone.add(0, 1, 2)
        alone.go()
        beside, left = _walk(subject), _walk(subject)
        for walk in (beside, left):
            walk.add(0, 1, 2)
            walk.go(4)
        beside.fork({3: 1, 4: 1, 5: 2})
        beside.fork({6: 3})
        left.fork({4: 1, 5: 2, 3: 1, 6: 1})
        left.drop(1, 0, 3)  # what is a copy of a copy stays, and so does who is left of a parent
        for walk in (beside, left):
            walk.go()
        subject.compare((beside.tokens[index], alone.tokens[index]) for index in (0, 1, 2))
        subject.compare((left.tokens[index], beside.tokens[index]) for index in (2, 4, 5, 6))
        forks = [tuple(beside.tokens[index]) for index in (1, 3, 4, 6)]
        assert len({fork[:4] for fork in forks}) == 1
        assert len(set(forks)) > 1
        _close(alone, beside, left)

    @pytest.mark.parametrize("refill", ["forks", "fresh"])
    def test_memory_that_is_used_again_is_kept_within_the_budget(
        self, subject: Subject, refill: str
    ) -> None:
        budget = subject.room(3)
        result = subject.generate(n="auto", memory=budget, decide="every:4", refill=refill)
        late = [one for one in result.candidates if one.index not in result.decisions[0].scored]
        assert late
        assert all((one.parent is not None) == (refill == "forks") for one in late)
        assert result.usage.peak_kv_bytes <= budget
        assert {one.state for one in result.candidates} == {"complete", "rejected"}
        drawn = [len(one.token_ids) - one.num_inherited for one in result.candidates]
        assert result.usage.generated_tokens == sum(drawn)
        if refill == "fresh":
            whole = subject.generate(algorithm="best_of_n", n=len(result.candidates))
            subject.compare(zip(ids(result), ids(whole), strict=True))

    def test_candidates_of_unlike_lengths_do_not_know_of_each_other(self, subject: Subject) -> None:
        walk = _walk(subject)
        walk.add(0, 1, 2)
        walk.go(3)
        walk.hold(0)
        walk.go(3)
        walk.hold(0, 1)
        walk.add(3)
        walk.fork({4: 0, 5: 2})
        walk.go(2)
        walk.drop(2)
        walk.hold()
        walk.go()
        few = _walk(subject)
        few.add(0, 3)
        few.go(3)
        few.hold(0)
        few.fork({4: 0})
        few.go(1)
        few.hold()
        few.go()
        subject.compare((few.tokens[index], walk.tokens[index]) for index in (0, 3, 4))
        assert walk.tokens[5][:6] == walk.tokens[2][:6]
        _close(walk, few)

    def test_forks_end_at_their_own_length_and_leave_nothing(self, subject: Subject) -> None:
        walk = _walk(subject)
        empty = subject.engine.memory(walk.prompt).in_use
        walk.add(0, 1)
        walk.go(LENGTH - 1)
        walk.fork({2: 0, 3: 0, 4: 1})
        walk.drop(0, 4)
        walk.go(1)
        assert not walk.live
        assert all(len(walk.tokens[index]) == LENGTH for index in (1, 2, 3))
        walk.add(5)
        walk.go(1)
        walk.fork({6: 5, 7: 5})
        walk.hold(6)
        walk.drop(5, 6, 7)
        assert subject.engine.memory(walk.prompt).in_use == empty
        walk.close()

    def test_what_a_fork_begins_with_is_counted_once(self, subject: Subject) -> None:
        room = subject.room(6, 24)
        options: dict[str, Any] = {
            "n": 6,
            "max_new_tokens": 24,
            "memory": room,
            "algorithm": doubled,
        }
        result = subject.generate(**options)
        forks = [one for one in result.candidates if one.parent is not None]
        assert forks
        for fork in forks:
            parent = result.candidates[fork.parent or 0]
            assert 0 < fork.num_inherited <= len(parent.token_ids)
            assert fork.token_ids[: fork.num_inherited] == (parent.token_ids[: fork.num_inherited])
        usage = result.usage
        drawn = sum(len(one.token_ids) - one.num_inherited for one in result.candidates)
        assert usage.generated_tokens == drawn
        assert usage.peak_kv_bytes <= room
        assert usage.num_preemptions == 0
        # Whoever goes on after a step may read what of a page is not in the cache.
        num_begun = sum(len(decision.scored) for decision in result.decisions)
        each = subject.reread if subject.reread_later is None else subject.reread_later
        assert usage.reread_tokens <= each * (len(result.candidates) + num_begun)
        again = subject.generate(**options)
        if subject.flips is None:
            assert ids(again) == ids(result)


def doubled(search: SearchView, n: int, policy: Policy):  # type: ignore[no-untyped-def]
    """Steps of five tokens; after each the better half goes on, twice."""
    search.wait_after(tokens(5))
    for wave in search.waves(n, None):
        search.start(wave, most=wave)
        while search.live:
            scores = yield never
            cut = sorted(scores)[len(scores) // 2] if scores else 0.0
            search.keep([score >= cut for score in scores])
            live = search.live
            search.fork(live[: wave - len(live)])


def _walk(subject: Subject, temperature: float = 1.0) -> Walk:
    sampling = SamplingParams(
        max_new_tokens=LENGTH, ignore_eos=True, seed=7, temperature=temperature
    )
    return Walk(subject.engine, subject.engine.encode(subject.prompts[1]), sampling, most=8)


def _close(*walks: Walk) -> None:
    for walk in walks:
        walk.close()

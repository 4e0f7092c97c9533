"""What every reward must do, as a class of tests.

    class TestMyReward(RewardSuite):
        @pytest.fixture
        def reward(self):
            return MyReward()

Rewards are asked as the search asks them; no model is needed.
"""

import math
from collections.abc import Callable, Sequence

import pytest

from specrej.registry import missing
from specrej.rewards.base import MEMBERS, SESSION_MEMBERS, Reward, is_relative
from specrej.testing.held import held, left_behind
from specrej.types import Candidate, Message

QUESTION: list[Message] = [{"role": "user", "content": "Give three tips for staying healthy."}]
TEXTS = (
    "Sleep",
    "Sleep well, eat well, and walk every day.",
    "",
    "Eat\u00a0well \U0001f34e.",
    "No idea, sorry.",
)


def candidates(texts: Sequence[str] = TEXTS) -> list[Candidate]:
    """Live candidates with these texts; each word is a token, and a text without words has one
    all the same.
    """
    counts = [max(len(text.split()), 1) for text in texts]
    return [
        Candidate(index, token_ids=[5] * count, logprobs=[-1.5] * count, text=text)
        for index, (text, count) in enumerate(zip(texts, counts, strict=True))
    ]


class RewardSuite:
    """Tests of a reward.

    A subclass gives the fixture `reward`, and `opening` for the test that closes a reward.

    Attributes:
        tolerance: by how much scores may differ that are computed in other batches.
        has_ties: whether all of `TEXTS` may score the same.
    """

    tolerance = 1e-4
    has_ties = False

    @pytest.fixture
    def opening(self) -> Callable[[], Reward] | None:
        """What opens another reward of the kind; None skips the test that closes it."""
        return None

    def test_it_says_what_it_is(self, reward: Reward) -> None:
        assert not missing(reward, MEMBERS)
        assert isinstance(reward.name, str)
        assert reward.name
        assert reward.flops_per_token is None or reward.flops_per_token >= 0

    def test_a_score_for_each_candidate_and_no_nan(self, reward: Reward) -> None:
        session = reward.open(QUESTION)
        scores = session.score(candidates())
        session.close()
        assert len(scores) == len(TEXTS)
        assert not any(math.isnan(score) or score == math.inf for score in scores)
        assert self.has_ties or len({round(score, 6) for score in scores}) > 1

    def test_scores_do_not_depend_on_the_order(self, reward: Reward) -> None:
        session = reward.open(QUESTION)
        forwards = session.score(candidates())
        session.close()
        session = reward.open(QUESTION)
        backwards = session.score(candidates()[::-1])
        session.close()
        assert list(backwards)[::-1] == pytest.approx(list(forwards), abs=self.tolerance)

    def test_scores_do_not_depend_on_the_batch(self, reward: Reward) -> None:
        _skip_relative(reward)
        session = reward.open(QUESTION)
        together = session.score(candidates())
        session.close()
        for candidate, expected in zip(candidates(), together, strict=True):
            session = reward.open(QUESTION)
            assert list(session.score([candidate])) == pytest.approx([expected], abs=self.tolerance)
            session.close()

    def test_growing_answers_score_as_whole_ones_do(self, reward: Reward) -> None:
        growing = candidates(["Sleep well, eat", "Walk"])
        session = reward.open(QUESTION)
        session.score(growing)
        for candidate, more in zip(growing, (" well, and walk.", " every day."), strict=True):
            candidate.text += more
            candidate.token_ids += [5] * len(more.split())
            candidate.logprobs += [-0.5] * len(more.split())
        later = session.score(growing)
        session.close()
        fresh = reward.open(QUESTION)
        assert later == pytest.approx(fresh.score(growing), abs=self.tolerance)
        fresh.close()

    def test_dropping_some_leaves_the_scores_of_the_others(self, reward: Reward) -> None:
        _skip_relative(reward)
        session = reward.open(QUESTION)
        before = session.score(candidates())
        session.drop([0, 2])
        left = [candidate for candidate in candidates() if candidate.index not in (0, 2)]
        after = session.score(left)
        session.close()
        assert after == pytest.approx(
            [before[candidate.index] for candidate in left], abs=self.tolerance
        )

    def test_prompts_side_by_side_do_not_touch_each_other(self, reward: Reward) -> None:
        other: list[Message] = [{"role": "user", "content": "Name a tree."}]
        alone = reward.open(QUESTION)
        expected = alone.score(candidates())
        alone.close()
        first, second = reward.open(QUESTION), reward.open(other)
        second.score(candidates(["Oak.", "Beech."]))
        scores = first.score(candidates())
        second.close()
        assert scores == pytest.approx(expected, abs=self.tolerance)
        assert first.score(candidates()) == pytest.approx(expected, abs=self.tolerance)
        first.close()

    def test_what_is_read_is_counted(self, reward: Reward) -> None:
        session = reward.open(QUESTION)
        assert not missing(session, SESSION_MEMBERS)
        before = session.num_tokens
        session.score(candidates())
        assert session.num_tokens >= before >= 0
        assert session.reuse in ("none", "prompt", "answers")
        assert session.peak_kv_bytes >= 0
        assert not is_relative(reward) or session.num_comparisons > 0  # type: ignore[attr-defined]
        session.close()

    def test_closing_leaves_nothing_and_may_be_done_twice(
        self, opening: Callable[[], Reward] | None
    ) -> None:
        if opening is None:
            pytest.skip("the fixture `opening` gives nothing that opens a reward")
        opening().close()  # what a library starts once for the process stays
        before = held()
        reward = opening()
        session = reward.open(QUESTION)
        session.score(candidates())
        session.close()
        reward.close()
        reward.close()
        assert not left_behind(before)


def _skip_relative(reward: Reward) -> None:
    if is_relative(reward):
        pytest.skip("its scores are relative: they depend on who else is in the batch")

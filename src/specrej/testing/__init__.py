"""Tests for those who write an engine or a reward of their own (the extra `testing`).

    class TestMyEngine(EngineSuite):
        @pytest.fixture
        def subject(self):
            return Subject(MyEngine())


    class TestMyReward(RewardSuite):
        @pytest.fixture
        def reward(self):
            return MyReward()

docs/extending.md has both in full.
"""

import pytest

pytest.register_assert_rewrite(
    "specrej.testing.engines", "specrej.testing.rewards", "specrej.testing.subject"
)

from specrej.testing.engines import EngineSuite  # noqa: E402
from specrej.testing.rewards import RewardSuite  # noqa: E402
from specrej.testing.subject import Subject  # noqa: E402

__all__ = ["EngineSuite", "RewardSuite", "Subject"]

import math

import pytest

from specrej.errors import RewardError, UnknownNameError
from specrej.rewards.logprob import LogprobReward
from specrej.types import Candidate

PROMPT = [{"role": "user", "content": "Hello"}]


def candidate(index: int, *logprobs: float) -> Candidate:
    return Candidate(index=index, token_ids=list(range(len(logprobs))), logprobs=list(logprobs))


def test_mean_is_minus_the_log_of_the_perplexity() -> None:
    answers = [candidate(0, -1.0, -2.0, -6.0), candidate(1, -0.5)]
    session = LogprobReward().open(PROMPT)
    assert session.score(answers) == [-3.0, -0.5]
    for score, answer in zip(session.score(answers), answers, strict=True):
        assert answer.perplexity == pytest.approx(math.exp(-score))


def test_sum_is_that_of_the_whole_answer() -> None:
    assert LogprobReward("sum").open(PROMPT).score([candidate(0, -1.0, -2.0, -6.0)]) == [-9.0]


def test_reads_no_tokens_and_forgets_at_no_cost() -> None:
    session = LogprobReward().open(PROMPT)
    session.score([candidate(0, -1.0)])
    session.drop([0])
    session.close()
    assert session.num_tokens == 0


def test_a_candidate_without_tokens_is_named() -> None:
    with pytest.raises(RewardError, match="candidate 7"):
        LogprobReward().open(PROMPT).score([candidate(1, -1.0), candidate(7)])


def test_reductions_are_mean_and_sum() -> None:
    assert (LogprobReward().name, LogprobReward("sum").name) == ("logprob", "logprob:sum")
    with pytest.raises(UnknownNameError, match="'men'") as caught:
        LogprobReward("men")  # type: ignore[arg-type]
    assert caught.value.hint is not None
    assert "did you mean 'mean'?" in caught.value.hint

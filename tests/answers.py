"""Results put together by hand: what a candidate's fate, reward and text are is said, not
computed."""

from collections.abc import Sequence

from specrej.settings import Settings
from specrej.types import Candidate, Decision, FinishReason, Result, State, Usage


def answer(
    index: int,
    text: str,
    reward: float | None,
    state: State = "complete",
    finish_reason: FinishReason | None = "eos",
    token_ids: Sequence[int] | None = None,
) -> Candidate:
    """A candidate whose tokens are the bytes of its text, and an end token."""
    ids = [*text.encode(), 257] if token_ids is None else list(token_ids)
    rewards = {} if reward is None else {0: reward}
    logprobs = [-0.5 - position for position in range(len(ids))]
    return Candidate(index, ids, logprobs, text, rewards, state, finish_reason)


def decided(cause: str, rejected: Sequence[int]) -> Decision:
    """A decision that rejected some."""
    return Decision(
        cause=cause,  # type: ignore[arg-type]
        num_tokens=9,
        scored=tuple(rejected),
        rejected=tuple(rejected),
        cut=None,
        kv_bytes=100,
        kv_bytes_after=50,
    )


def result_of(*candidates: Candidate, best: int, decisions: Sequence[Decision] = ()) -> Result:
    """A result in which the candidate with the index `best` won."""
    return Result(
        best=next(candidate for candidate in candidates if candidate.index == best),
        candidates=candidates,
        decisions=tuple(decisions),
        usage=Usage(
            prompt_tokens=7,
            generated_tokens=90,
            reward_tokens=40,
            decode_s=1.5,
            reward_s=0.5,
            peak_kv_bytes=640,
        ),
        seed=3,
        settings={
            **Settings(seed=3).to_dict(),
            "memory_bytes": 1024,
            "model": "bytes",
            "reward": "by_hash",
        },
        versions={"specrej": "0"},
    )


def five() -> Result:
    """Two that can win (4 is better), one cut off by a decision when it was complete, one
    unfinished, one filtered."""
    return result_of(
        answer(0, "good", 2.0, finish_reason="stop"),
        answer(1, "worst", -5.0, state="rejected", finish_reason="length"),
        answer(2, "never end", -9.0, state="rejected", finish_reason=None),
        answer(3, "filtered", -7.0, state="rejected"),
        answer(4, "better é", 3.5),
        best=4,
        decisions=[decided("filter", [3]), decided("budget", [1, 2])],
    )

"""A reward model on vLLM's pooling runner, in process and served, against transformers' logits."""

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from in_process import generator, logits, reward_model, save_reward_model
from serving import serving

import specrej
from specrej.errors import ModelError, PromptError, UnknownNameError, UsageError
from specrej.hub.defaults import locate
from specrej.rewards import as_reward
from specrej.rewards.classifier import ClassifierReward
from specrej.rewards.together import score_together
from specrej.rewards.vllm import VllmClassifierReward
from specrej.types import Candidate

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

BLOCK = 32
PROMPT = [
    {"role": "user", "content": "Give three tips for staying healthy, in as few words as you can."}
]
OTHER = [{"role": "user", "content": "Why?"}]
TEXTS = ["Sleep.", "", "Eat well and sleep well. " * 6, "Wasser, Öl und 水."]
ANSWERS = [Candidate(index=10 + i, text=text) for i, text in enumerate(TEXTS)]


@cache
def reward() -> VllmClassifierReward:
    return VllmClassifierReward(reward_model(), label="clear", max_tokens=512, memory_bytes=2**23)


def conversations(
    texts: Sequence[str], prompt: list[dict[str, str]] = PROMPT
) -> list[list[dict[str, str]]]:
    return [[*prompt, {"role": "assistant", "content": text}] for text in texts]


def chosen(texts: Sequence[str], prompt: list[dict[str, str]] = PROMPT) -> list[float]:
    return [row[1] for row in logits(conversations(texts, prompt))]


def test_scores_are_the_raw_logits_of_transformers() -> None:
    session = reward().open(PROMPT)
    assert session.score(ANSWERS) == pytest.approx(chosen(TEXTS), abs=1e-4)
    assert reward().weights == {1: 1.0}
    assert reward().name == f"vllm:{reward_model()}#clear"
    assert (
        reward().memory_bytes == 2**23
    )  # a power of two of blocks of 32 tokens of 2 layers of 2 * 2 * 32 numbers
    # transformers applies the head to every token, vLLM to the last one only.
    in_torch = ClassifierReward(reward_model(), label="clear").flops_per_token
    assert in_torch is not None
    assert reward().flops_per_token == in_torch - 2 * 64 * 3


def test_growing_answers_are_read_once() -> None:
    """But for the block that an answer ends in, whose ending the template writes anew at each
    decision."""
    session = reward().open([{"role": "user", "content": "Tell me more about that, please."}])
    texts = [f"{i}: " + "and so on " * 12 for i in range(4)]
    for length in (40, 80, 120):
        session.score([Candidate(index=i, text=text[:length]) for i, text in enumerate(texts)])
    once = len("<bos><user>Tell me more about that, please.") + len(texts) * 120
    assert session.reuse == "answers"
    assert session.num_tokens <= once + len(texts) * 3 * (BLOCK + 4)
    before = session.num_tokens
    session.score([Candidate(index=i, text=text[:120]) for i, text in enumerate(texts)])
    assert session.num_tokens - before <= len(texts) * BLOCK
    session.close()


def test_several_prompts_are_scored_in_one_call() -> None:
    sessions = [reward().open(PROMPT), reward().open(OTHER)]
    together = score_together(reward(), [(sessions[0], ANSWERS), (sessions[1], ANSWERS[:2])])
    assert together[0] == pytest.approx(chosen(TEXTS), abs=1e-4)
    assert together[1] == pytest.approx(chosen(TEXTS[:2], OTHER), abs=1e-4)


def test_what_is_too_long_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "specrej"):
        [score] = reward().open(OTHER).score([Candidate(index=3, text="word " * 200)])
    assert "of candidate 3 are cut off" in caplog.text
    assert -10 < score < 10
    with pytest.raises(PromptError, match="it would see no answer"):
        reward().open([{"role": "user", "content": "word " * 200}])


def test_a_generator_and_a_reward_model_in_one_process() -> None:
    """The winner is the one that transformers' logits choose; nothing was preempted."""
    spec = f"vllm:{reward_model()}#kind*0.5+short*2?partial=open&max_tokens=512"
    engine = generator()
    result = specrej.generate(
        PROMPT[0]["content"],
        model=engine,
        reward=as_reward(spec, "8MiB"),
        n=8,
        alpha=0.5,
        decide="every:8",
        max_new_tokens=24,
        seed=2,
    )
    assert result.usage.num_preemptions == 0
    assert result.usage.reward_reuse == "answers"
    assert result.usage.reward_kv_bytes == 2**23
    rejected = [candidate for candidate in result.candidates if candidate.state == "rejected"]
    assert len(rejected) >= 4
    complete = [candidate for candidate in result.candidates if candidate.state == "complete"]
    assert complete
    for candidate in complete:
        [row] = logits(conversations([candidate.text]), ending=candidate.finish_reason == "eos")
        assert candidate.reward == pytest.approx(0.5 * row[0] + 2 * row[2], abs=1e-3)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with serving(Path(reward_model()), "--runner", "pooling", "--max-model-len", "512") as url:
        yield url


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
def test_a_served_reward_model_gives_the_same(served: str, endpoint: str) -> None:
    remote = as_reward(f"vllm-{endpoint}:{served}#{reward_model()}?output=1")
    session = remote.open(PROMPT)
    assert session.score(ANSWERS) == pytest.approx(chosen(TEXTS), abs=1e-4)
    assert session.num_tokens > 0
    session.close()


def test_a_served_reward_model_sees_an_open_answer(served: str) -> None:
    session = as_reward(f"vllm-classify:{served}#{reward_model()}?output=1&partial=open").open(
        PROMPT
    )
    expected = [row[1] for row in logits(conversations(TEXTS[:1]), ending=False)]
    assert session.score(ANSWERS[:1]) == pytest.approx(expected, abs=1e-4)
    session.close()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is set by specrej: a reward model pools"):
        VllmClassifierReward(reward_model(), engine_args={"runner": "generate"})
    with pytest.raises(UsageError, match="vLLM has no engine argument 'max_num_seq'") as caught:
        VllmClassifierReward(reward_model(), engine_args={"max_num_seq": 3})
    assert "max_num_seqs" in str(caught.value.hint)
    with pytest.raises(ModelError, match="vLLM cannot open the reward model"):
        VllmClassifierReward(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown label"):
        VllmClassifierReward(reward_model(), label="sharp", max_tokens=512)
    save_reward_model(tmp_path / "pairs", {0: "score"}, template=None)
    with pytest.raises(UsageError, match="has no chat template"):
        VllmClassifierReward(tmp_path / "pairs", max_tokens=512)


def test_a_language_model_is_no_reward_model() -> None:
    with pytest.raises(ModelError, match="is no sequence classifier to vLLM"):
        VllmClassifierReward(locate("smollm2"), max_tokens=512)

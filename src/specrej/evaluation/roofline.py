"""Seconds that a run would take on a machine, from the bytes it moves and the operations it does.

    plant = Plant(machine=H100, model=LLAMA, reward=Reading(model=JUDGE, machine=H100))
    larger = extended(trace, n=960, scale=4, bytes_per_token=plant.kv_bytes)
    run = Replayer(larger).run(ReplayPolicy(alpha=0.5, memory=plant.room_bytes, n=960))
    bill = plant.bill(larger.num_prompt_tokens, work_of(run.num_tokens, run.decisions))
    bill.seconds, bill.packed, bill.flops

A pass is a row of kernels, one after another. So each part has its own bound: linear layers read
the weights once and multiply every row, attention reads the KV of every live candidate.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specrej.attention.layout import KvLayout
from specrej.errors import BudgetError, UsageError
from specrej.evaluation.trace import Trace
from specrej.flops import ModelFlops
from specrej.memory import format_bytes
from specrej.options import shown
from specrej.search.calibrated import CalibratedPolicy

Floats = NDArray[np.float64]


def _check(name: str, value: object, *, is_zero_allowed: bool) -> None:
    is_fine = isinstance(value, int | float) and (
        0 < value < inf or (is_zero_allowed and value == 0)
    )
    if not is_fine:
        raise UsageError(
            f"{name} must be a finite number {'from' if is_zero_allowed else 'above'} 0, got "
            f"{shown(value)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What it achieves, not what its data sheet says.

    Attributes:
        name: what tables call it.
        bandwidth: of weights, bytes per second.
        kv_bandwidth: of KV, bytes per second.
        flops: operations per second.
        memory_bytes: what weights and KV may hold together.
        overhead: seconds of each step whatever it does.
        is_overlapping: whether weights are read while others are multiplied. Where they are not,
            seconds of both add up.
        spill_rows: rows whose activations and logits the cache holds.
        spill_seconds: what each row beyond them costs a step.

    Raises:
        UsageError: a number that cannot be.
    """

    name: str
    bandwidth: float
    kv_bandwidth: float
    flops: float
    memory_bytes: int
    overhead: float
    is_overlapping: bool = True
    spill_rows: int = 0
    spill_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bandwidth", "kv_bandwidth", "flops", "memory_bytes"):
            _check(name, getattr(self, name), is_zero_allowed=False)
        for name in ("overhead", "spill_rows", "spill_seconds"):
            _check(name, getattr(self, name), is_zero_allowed=True)

    def linear_seconds(self, num_bytes: float, flops: ArrayLike) -> Floats:
        """Of layers with so many bytes of weights that do so many operations."""
        reads, multiplies = num_bytes / self.bandwidth, np.asarray(flops) / self.flops
        return np.maximum(reads, multiplies) if self.is_overlapping else reads + multiplies


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A decoder.

    Attributes:
        name: what tables call it.
        flops: what a token costs. Windows of attention are taken to be as long as the text.
        bytes_per_weight: 2 for bf16.
        resident_bytes: of its weights in memory, embeddings included.
        kv_bytes: KV of a token, in all layers.
    """

    name: str
    flops: ModelFlops
    bytes_per_weight: float
    resident_bytes: int
    kv_bytes: int

    @property
    def weight_bytes(self) -> float:
        """What a step reads of them: a weight is a multiplication and an addition."""
        return (self.flops.linear + self.flops.head) / 2 * self.bytes_per_weight

    @property
    def flops_per_pair(self) -> float:
        """Of a query and a key."""
        return sum(layers.per_pair for layers in self.flops.attention)

    def read_flops(self, num_texts: float, num_tokens: float, num_pairs: float) -> float:
        """Reading texts, with the head at the last token of each."""
        return (
            self.flops.linear * num_tokens
            + self.flops.head * num_texts
            + self.flops_per_pair * num_pairs
        )

    def read_seconds(
        self, machine: Machine, num_texts: float, num_tokens: float, num_pairs: float
    ) -> float:
        """The same in seconds, all texts in one batch."""
        attention = self.flops_per_pair * num_pairs / machine.flops
        linear = self.read_flops(num_texts, num_tokens, 0)
        return (
            machine.overhead + float(machine.linear_seconds(self.weight_bytes, linear)) + attention
        )

    def step_seconds(self, machine: Machine, rows: ArrayLike, context: ArrayLike) -> Floats:
        """Of steps with so many live candidates, which meet so many tokens together."""
        rows, per_row = np.asarray(rows), self.flops.linear + self.flops.head
        linear = machine.linear_seconds(self.weight_bytes, rows * per_row)
        attention = np.asarray(context) * max(
            self.kv_bytes / machine.kv_bandwidth, self.flops_per_pair / machine.flops
        )
        spilled = np.maximum(rows - machine.spill_rows, 0) * machine.spill_seconds
        total: Floats = machine.overhead + linear + attention + spilled
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a reward model reads.

    Attributes:
        model: without KV where it reads anew.
        machine: that it runs on.
        is_incremental: whether it reads what is new since the last decision, and holds its KV
            beside the generator's. Otherwise it reads prompt and answer anew.
        text_seconds: of each text beside its tokens.

    Raises:
        UsageError: seconds that cannot be.
    """

    model: ModelShape
    machine: Machine
    is_incremental: bool = False
    text_seconds: float = 0.0

    def __post_init__(self) -> None:
        _check("text_seconds", self.text_seconds, is_zero_allowed=True)


class RewardPass(NamedTuple):
    """What one decision asks of the reward."""

    before: NDArray[np.int64]
    """`[texts]` tokens of each answer that an earlier decision has scored."""
    now: NDArray[np.int64]
    """`[texts]` tokens of each answer."""


class Work(NamedTuple):
    """What a run does, whatever it runs on."""

    waves: list[NDArray[np.int64]]
    """Tokens of each candidate, by wave."""
    scorings: list[RewardPass]


class Bill(NamedTuple):
    """What a run takes."""

    prefill: float
    decode: float
    reward: float
    packed_decode: float
    """Seconds of decoding where other prompts' candidates fill the memory that is free."""
    flops: float
    tokens: int
    num_waves: int

    @property
    def seconds(self) -> float:
        """Of one prompt at a time on one machine."""
        return self.prefill + self.decode + self.reward

    @property
    def packed(self) -> float:
        """Of this prompt among many."""
        return self.prefill + self.packed_decode + self.reward


class AnyDecision(Protocol):
    """A decision, live or replayed."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def scored(self) -> tuple[int, ...]: ...


def work_of(num_tokens: Sequence[int], decisions: Iterable[AnyDecision]) -> Work:
    """What a run did, live or replayed.

    Args:
        num_tokens: that each candidate has generated.
        decisions: oldest first.
    """
    lengths = np.asarray(num_tokens, dtype=np.int64)
    seen = np.zeros_like(lengths)
    starts: list[tuple[int, int]] = []
    scorings: list[RewardPass] = []
    for decision in decisions:
        scored = np.array(decision.scored)
        if not starts or scored.min() > starts[-1][1]:  # nobody of them was scored: a new wave
            starts.append((int(scored.min()), int(scored.max())))
        now = np.minimum(lengths[scored], decision.num_tokens)
        scorings.append(RewardPass(seen[scored], now))
        seen[scored] = now
    return Work([lengths[first : last + 1] for first, last in starts], scorings)


def steps_of(wave: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Live candidates of each step, and the tokens of its own that each of them meets.

    The first token is drawn from the prompt's logits, the last is never fed.
    """
    own = np.arange(1, max(int(wave.max(initial=0)), 1))
    ended = np.cumsum(np.bincount(wave, minlength=len(own) + 1))[1 : len(own) + 1]
    return (len(wave) - ended).astype(np.float64), own.astype(np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plant:
    """Models on a machine.

    Attributes:
        machine: that decodes.
        model: that writes.
        reward: None costs nothing, like the generator's own log-probabilities.
    """

    machine: Machine
    model: ModelShape
    reward: Reading | None = None

    @property
    def kv_bytes(self) -> int:
        """That a token of an answer holds, the reward's with it."""
        judge = self.reward
        is_beside = judge is not None and judge.is_incremental
        return self.model.kv_bytes + (judge.model.kv_bytes if judge and is_beside else 0)

    @property
    def at_end(self) -> "Plant":
        """The same, where answers are scored at their end alone: no KV of a reward is held."""
        reward = self.reward and replace(self.reward, is_incremental=False)
        return replace(self, reward=reward)

    @property
    def room_bytes(self) -> int:
        """What weights leave to KV.

        Raises:
            BudgetError: nothing.
        """
        weights = self.model.resident_bytes
        weights += 0 if self.reward is None else self.reward.model.resident_bytes
        if weights >= self.machine.memory_bytes:
            raise BudgetError(
                f"{self.machine.name} holds {format_bytes(self.machine.memory_bytes)}, the weights "
                f"take {format_bytes(weights)}",
                hint="give a machine with more memory, or a smaller reward",
            )
        return self.machine.memory_bytes - weights

    def bill(self, num_prompt_tokens: int, work: Work) -> Bill:
        """What the run of one prompt takes, waves one after another on one machine.

        On as many machines as there are waves their seconds add up to the same.
        """
        model, prompt = self.model, num_prompt_tokens
        decode, packed, flops = 0.0, 0.0, model.flops.prefill(prompt)
        for wave in work.waves:
            rows, own = steps_of(wave)
            decode += float(model.step_seconds(self.machine, rows, rows * (prompt + own)).sum())
            packed += self._packed(prompt, rows, own)
            flops += model.flops.decode(prompt, wave)
        reward_seconds, reward_flops = self._reward(prompt, work.scorings)
        return Bill(
            prefill=model.read_seconds(self.machine, 1, prompt, prompt * (prompt + 1) / 2),
            decode=decode,
            reward=reward_seconds,
            packed_decode=packed,
            flops=flops + reward_flops,
            tokens=int(sum(wave.sum() for wave in work.waves)),
            num_waves=len(work.waves),
        )

    def _packed(self, prompt: int, rows: Floats, own: Floats) -> float:
        """Seconds of a run's share in steps that always fill the memory."""
        fed, held = rows.sum(), (rows * own).sum()
        if not fed:
            return 0.0
        num_steps = held * self.kv_bytes / self.room_bytes
        context = (rows * (prompt + own)).sum()
        step = self.model.step_seconds(self.machine, fed / num_steps, context / num_steps)
        return float(num_steps * step)

    def _reward(self, prompt: int, scorings: Iterable[RewardPass]) -> tuple[float, float]:
        """Seconds and operations of all decisions."""
        judge, seconds, flops = self.reward, 0.0, 0.0
        if judge is None:
            return seconds, flops
        for num_texts, num_tokens, num_pairs in _reads(prompt, scorings, judge.is_incremental):
            seconds += judge.model.read_seconds(judge.machine, num_texts, num_tokens, num_pairs)
            seconds += judge.text_seconds * num_texts
            flops += judge.model.read_flops(num_texts, num_tokens, num_pairs)
        return seconds, flops


def _reads(
    prompt: int, scorings: Iterable[RewardPass], is_incremental: bool
) -> Iterator[tuple[int, float, float]]:
    """Texts, tokens and pairs of query and key that each decision has a reward read."""
    for number, (before, now) in enumerate(scorings):
        whole = prompt + now
        known = prompt + before if is_incremental else np.zeros_like(now)
        tokens = float((whole - known).sum())
        pairs = float((whole * (whole + 1) - known * (known + 1)).sum() / 2)
        if is_incremental and number == 0:  # the prompt, once
            tokens, pairs = tokens + prompt, pairs + prompt * (prompt + 1) / 2
        yield len(now), tokens, pairs


def extended(trace: Trace, n: int, scale: int, bytes_per_token: int) -> Trace:
    """A trace as if it had n candidates of `scale` times the length.

    Beyond the recorded ones candidates come again, in their order. So lengths and rewards are
    spread as recorded, and the best is no better. Checkpoints move with the lengths: a partial
    answer says as much about the whole as the same share of it did.

    Args:
        trace: as recorded.
        n: candidates.
        scale: a whole number above 0.
        bytes_per_token: of KV, which grows by 16 tokens and nothing is there twice.

    Raises:
        UsageError: n or scale are not above 0.
    """
    if n < 1 or scale < 1:
        raise UsageError(f"n and scale must be whole numbers above 0, got {n} and {scale}")
    places = np.arange(n) % trace.num_candidates
    return replace(
        trace,
        checkpoints=tuple(scale * length for length in trace.checkpoints),
        layout=KvLayout(bytes_per_token=bytes_per_token, largest_tensor_bytes=0, granule=16),
        flops=None,
        reward_flops_per_token=None,
        settings={**trace.settings, "max_new_tokens": scale * trace.max_new_tokens},
        lengths=scale * trace.lengths[places],
        rewards=trace.rewards[places],
        final_rewards=trace.final_rewards[places],
        finish_reasons=tuple(trace.finish_reasons[place] for place in places),
        texts=tuple(trace.texts[place] for place in places),
        token_ids=[],
        logprobs=[],
    )


def stretched(policy: CalibratedPolicy, n: int, scale: int) -> CalibratedPolicy:
    """A policy for an extended trace: n begin, and it decides at `scale` times the lengths, where
    so many more tokens may cost as much as before.
    """
    forecasts = tuple(
        forecast._replace(
            num_tokens=scale * forecast.num_tokens, num_left=scale * forecast.num_left
        )
        for forecast in policy.forecasts
    )
    return replace(policy, n=n, forecasts=forecasts, price=policy.price / scale)

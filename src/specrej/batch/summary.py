"""What a batch came to: answers, failures and tokens of the whole output, time and cost of this
run.

whole, now = Tally(), Tally()
for ended in run_batch(...):
    figures = figures_of(ended.row)
    whole.add(figures)
    now.add(figures, ended.flops)
summary = summarize(whole, now, seconds=12.5, pool=pool, job=info)
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple, TypedDict

from specrej.batch.description import JobInfo
from specrej.batch.rows import row_id
from specrej.flops import FlopsRow, sum_of
from specrej.search.pool import Pool


class Figures(NamedTuple):
    """A row's figures, whatever its form."""

    id: str
    failure: str | None
    """The error's name, such as "prompt_error"; None where there is an answer."""
    message: str | None
    reward: float | None
    """Of the best answer."""
    prompt_tokens: int
    generated_tokens: int
    """Of all candidates."""
    reward_tokens: int
    num_candidates: int = 0


class RewardSummary(TypedDict):
    """The best answers' rewards."""

    mean: float | None
    n: int


class TokensSummary(TypedDict):
    """Tokens of the prompts that were answered."""

    prompt: int
    generated: int
    """Rejected candidates included."""
    reward: int
    """Read by the reward model."""


class BudgetSummary(TypedDict):
    """What became of a budget of tokens; see `specrej.batch.waves`."""

    tokens: int
    spent_tokens: int
    """Of the rows with an answer."""
    min_candidates: int
    """The fewest that such a row has."""
    median_candidates: float
    max_candidates: int


class MemorySummary(TypedDict):
    """KV that prompts in flight shared; see `specrej.search.pool.Pool`."""

    total_bytes: int
    peak_bytes: int
    budget_in_use: float


class ThisRun(TypedDict):
    """What was run now, without what an earlier run had done."""

    num_rows: int
    num_failed: int
    tokens: TokensSummary
    seconds: float
    """Wall clock, from the moment the model was open."""
    tokens_per_s: float
    flops: FlopsRow
    memory: MemorySummary | None
    """None where no prompt was run here."""


class BatchSummary(TypedDict):
    """What `specrej batch --json` prints. All but `this_run` is of the whole output."""

    output: str
    num_rows: int
    num_failed: int
    failures: dict[str, int]
    """How many rows failed, by the error's name."""
    reward: RewardSummary
    tokens: TokensSummary
    budget: BudgetSummary | None
    """None where there was none, or no row has an answer."""
    this_run: ThisRun
    job: JobInfo


def figures_of(row: Mapping[str, Any]) -> Figures:
    """The figures of a row that `specrej.batch.rows` has made."""
    error = row["error"]
    if error is not None:
        return Figures(
            row_id(row), error.get("kind") or error["code"], error["message"], None, 0, 0, 0
        )
    if "response" in row:
        body = row["response"]["body"]
        own, num_prompt = body["specrej"], body["usage"]["prompt_tokens"]
        reward = None if own.get("is_relative") else own["rewards"][0]
        return Figures(
            row_id(row),
            None,
            None,
            reward,
            num_prompt,
            own["generated_tokens"],
            own["reward_tokens"],
            own["num_candidates"],
        )
    usage = row["usage"]
    return Figures(
        row_id(row),
        None,
        None,
        None if row.get("is_relative") else row["reward"],
        usage["prompt_tokens"],
        usage["generated_tokens"],
        usage["reward_tokens"],
        row["num_candidates"],
    )


@dataclass(slots=True)
class Tally:
    """Sums over rows. `failures` counts them by the error's name, `candidates` those with an
    answer by how many they have; `flops` those of rows that were added with theirs.
    """

    num_rows: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    candidates: Counter[int] = field(default_factory=Counter)
    num_rewards: int = 0
    total_reward: float = 0.0
    tokens: TokensSummary = field(
        default_factory=lambda: TokensSummary(prompt=0, generated=0, reward=0)
    )
    flops: FlopsRow = field(default_factory=lambda: FlopsRow(prefill=0.0, decode=0.0, reward=0.0))

    def add(self, figures: Figures, flops: FlopsRow | None = None) -> None:
        """One more row; flops is what it cost, where that is to be counted."""
        self.num_rows += 1
        if figures.failure is not None:
            self.failures[figures.failure] += 1
        else:
            self.candidates[figures.num_candidates] += 1
        if figures.reward is not None:
            self.num_rewards += 1
            self.total_reward += figures.reward
        self.tokens["prompt"] += figures.prompt_tokens
        self.tokens["generated"] += figures.generated_tokens
        self.tokens["reward"] += figures.reward_tokens
        if flops is not None:
            self.flops = sum_of(self.flops, flops)


def summarize(
    whole: Tally, now: Tally, *, output: str, seconds: float, pool: Pool | None, job: JobInfo
) -> BatchSummary:
    """The summary in JSON's types.

    Args:
        whole: of all rows of the output.
        now: of those that were run now.
        output: where they are.
        seconds: that it took.
        pool: what prompts shared.
        job: what the job is.
    """
    memory = None
    if pool is not None:
        memory = MemorySummary(
            total_bytes=pool.total_bytes, peak_bytes=pool.peak_bytes, budget_in_use=pool.mean_share
        )
    return BatchSummary(
        output=output,
        num_rows=whole.num_rows,
        num_failed=whole.failures.total(),
        failures=dict(whole.failures),
        reward=RewardSummary(
            mean=whole.total_reward / whole.num_rewards if whole.num_rewards else None,
            n=whole.num_rewards,
        ),
        tokens=whole.tokens,
        budget=_budget_of(whole, job),
        this_run=ThisRun(
            num_rows=now.num_rows,
            num_failed=now.failures.total(),
            tokens=now.tokens,
            seconds=seconds,
            tokens_per_s=now.tokens["generated"] / max(seconds, 1e-9),
            flops=now.flops,
            memory=memory,
        ),
        job=job,
    )


def _budget_of(whole: Tally, job: JobInfo) -> BudgetSummary | None:
    tokens = job.get("budget_tokens")
    if tokens is None or not whole.candidates:
        return None
    return BudgetSummary(
        tokens=tokens,
        spent_tokens=whole.tokens["generated"],
        min_candidates=min(whole.candidates),
        median_candidates=median(whole.candidates.elements()),
        max_candidates=max(whole.candidates),
    )

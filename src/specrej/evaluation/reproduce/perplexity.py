"""The row `perplexity`: the generator's own likelihood as the reward, Table 2 of the paper."""

from collections.abc import Callable

import numpy as np

from specrej.evaluation.comparison import Comparison, compute, failed, rewards
from specrej.evaluation.intervals import Array, Estimate, estimate, mean_of
from specrej.evaluation.reproduce.protocol import Answered, Measured, Protocol
from specrej.evaluation.reproduce.sharing import measured, note_left_out
from specrej.evaluation.speedup import sum_ratio

Seconds = Callable[[Comparison, str], Array]
"""Of a method, `[prompts]`; NaN where it failed."""


def _figures(answered: Answered) -> list[Measured]:
    comparison, found = answered.comparison, []
    for method in answered.methods:
        own = np.exp(-rewards(comparison, method))
        found += [
            measured("perplexity", method, "perplexity", mean_of(own), len(own)),
            _speedup(answered, method, "generation alone", _generating),
            _speedup(answered, method, "everything inside", _all),
        ]
    return found


def _speedup(answered: Answered, method: str, what: str, seconds_of: Seconds) -> Measured:
    """Seconds of the first method by those of this one, sums over prompts that both have ended."""
    base = answered.baseline
    statistic = sum_ratio(
        seconds_of(answered.comparison, base), seconds_of(answered.comparison, method)
    )
    num = len(answered.comparison.prompt_ids)
    value: Estimate = estimate(statistic, num)
    return measured(f"speedup against {base}, {what}", method, "times", value, num)


def _all(comparison: Comparison, method: str) -> Array:
    return compute(comparison, method, "seconds")


def _generating(comparison: Comparison, method: str) -> Array:
    """Seconds of the generator, without the reward and what is around; NaN where it failed."""
    seconds = [
        sum(turn["usage"]["prefill_s"] + turn["usage"]["decode_s"] for turn in row["turns"])
        for row in comparison.rows[method]
    ]
    return np.where(failed(comparison, method), np.nan, np.array(seconds, dtype=np.float64))


ROW = Protocol(
    name="perplexity",
    title="Perplexity of prompt and answer under the generator, which is the reward",
    known="1.299 and a speedup of 30.6 with Llama-3-8B at alpha = 0.5 (the paper, Table 2)",
    prompts=None,
    num_prompts=100,
    methods=(
        "best_of_n:3840",
        "best_of_n:960",
        "best_of_n:480",
        "best_of_n:120",
        "speculative_rejection:0.5",
    ),
    chief="speculative_rejection:0.5",
    settings={"temperature": 1.0, "top_k": 50, "top_p": 1.0, "max_new_tokens": 2048},
    single_turn=True,
    own_reward="likelihood:{model}",
    needs="one H100 for each 120 candidates of Best-of-N, and days where they run one after "
    "another; the paper's 100 AlpacaFarm prompts as a file; no judge",
    open_points=(
        "The paper's clock leaves the reward's pass out: its speedup is generation alone. Ours "
        "with everything inside stands beside it. Both compare one engine with itself.",
        "The paper's Best-of-N has 120 candidates on each device; here waves run on one.",
        "The template of a chat model is closed behind the answer, without a reply's beginning.",
        "8,000 tokens in all, prompt and answer, are not enforced beside the model's context.",
    ),
    figures=_figures,
    notes=note_left_out,
)

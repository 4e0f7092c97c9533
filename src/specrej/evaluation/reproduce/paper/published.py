"""The paper's own numbers, arXiv 2410.20290: Tables 1 and 2 as printed there, and what is known of
its figures.

    TABLE_1.rows["best_of_n:240"]["Llama-3-8B"]       # (50.45, 50.27)

The figures' single points are not at hand. What can be said of them in words is in `FIGURES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Sun et al., NeurIPS 2024, arXiv 2410.20290"
GENERATORS = ("Mistral-7B", "Llama-3-8B", "Llama-3-8B-Instruct", "mean")
Pairs = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A table of the paper.

    Attributes:
        number: the table's.
        title: what is in it.
        setting: reward and judge there.
        figures: names of the two numbers of a cell, as our rows call them.
        rows: by method and generator; what is missing is not at hand.
    """

    number: int
    title: str
    setting: str
    figures: tuple[str, str]
    rows: Mapping[str, Mapping[str, tuple[float, float]]]


def _by_generator(rows: Mapping[str, Pairs]) -> dict[str, dict[str, tuple[float, float]]]:
    return {method: dict(zip(GENERATORS, pairs, strict=True)) for method, pairs in rows.items()}


TABLE_1 = Published(
    number=1,
    title="Win rate and length-controlled win rate against Best-of-120, in percent",
    setting="reward ArmoRM-Llama3-8B-v0.1, 100 prompts of AlpacaFarm, judged by GPT-4-Turbo "
    "through alpaca_eval",
    figures=("win rate", "length-controlled win rate"),
    rows=_by_generator({
        "best_of_n:240": ((60.69, 60.07), (50.45, 50.27), (49.92, 52.89), (53.69, 54.41)),
        "best_of_n:480": ((61.28, 61.84), (58.90, 59.93), (50.49, 53.11), (56.89, 58.29)),
        "best_of_n:960": ((67.50, 68.07), (59.20, 60.26), (50.39, 51.64), (59.03, 59.99)),
        "best_of_n:1920": ((75.20, 76.27), (60.57, 61.05), (51.86, 53.13), (62.54, 63.48)),
        "best_of_n:3840": ((76.13, 77.21), (59.19, 57.91), (53.36, 54.01), (62.89, 63.04)),
        "speculative_rejection:0.5": (
            (69.42, 73.31), (73.60, 77.91), (55.50, 58.80), (66.17, 70.01),
        ),
    }),
)  # fmt: skip
TABLE_2 = Published(
    number=2,
    title="Perplexity, and speedup against the largest Best-of-N by the seconds of generation",
    setting="reward: the generator's own likelihood of prompt and answer, 100 prompts of "
    "AlpacaFarm; speedup against Best-of-3840, the reward's pass outside the clock",
    figures=("perplexity", "speedup"),
    rows=_by_generator({
        "best_of_n:120": ((2.316, 33.3), (2.020, 31.9), (2.885, 29.5), (2.407, 31.6)),
        "best_of_n:480": ((1.919, 8.0), (1.595, 8.1), (2.618, 7.6), (2.044, 7.9)),
        "best_of_n:960": ((1.744, 4.0), (1.506, 4.0), (2.533, 4.1), (1.928, 4.0)),
        "best_of_n:3840": ((1.488, 1), (1.288, 1), (2.318, 1), (1.698, 1)),
        "speculative_rejection:0.5": (
            (1.476, 76.9), (1.299, 30.6), (1.887, 12.1), (1.554, 39.9),
        ),
    }),
)  # fmt: skip
FIGURES: Mapping[str, str] = {
    "2": "partial against final reward of one prompt's answers, at 256 tokens, with a fitted line "
    "and the partial reward of the best answer; its points and its fit are not at hand",
    "3": "16 to 32 times less compute at equal reward (the paper's words); read off the figure, "
    "about 15 to 70 times on the base models and 3 to 6 times on Llama-3-8B-Instruct; its points "
    "are not at hand",
    "4": "Pearson's and Kendall's correlation of partial and final reward over 100 prompts, a "
    "violin for each length; its coefficients are not at hand",
}
"""What the paper's figures show, and which of it is not at hand as a number."""

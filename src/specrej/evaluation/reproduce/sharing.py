"""What several rows have in common: the prompts on which candidates differ, risk, and preferences
beside other answers.

    places = high_variance(answered)              # in answered.comparison.prompt_ids
    risk_figures(answered, range(100))
    weigh_all(answered, others, "references", prompt_ids)
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from specrej.evaluation.bias import Leaning, judge_bias
from specrej.evaluation.comparison import rewards, variances
from specrej.evaluation.intervals import Array, Estimate, estimate, mean_of
from specrej.evaluation.judge_weighted import PREFERENCES, template_name, weigh
from specrej.evaluation.length_controlled import (
    LengthControlled,
    PreferredPair,
    length_controlled,
)
from specrej.evaluation.metrics import RISK_AVERSION, cvar, mean_minus_sigma, widest_fifth
from specrej.evaluation.prompts import Task
from specrej.evaluation.reproduce.protocol import Answered, Judgement, Measured, Question
from specrej.messages import as_messages

DARC: dict[str, object] = {
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 0.98,
    "max_new_tokens": 320,
    "decide": "every:64",
}
"""The setting of DARC (arXiv 2603.08145), with 16 candidates. When to decide is ours."""
DARC_METHODS = ("best_of_n:16", "speculative_rejection:0.5:16")
DARC_OPEN = (
    "DARC names temperature, top-p, tokens and K = 16; top-k is off here, for it names none.",
    "Speculative Rejection begins with the same 16 candidates, at alpha = 0.5, and decides every "
    "64 tokens: so few would never fill a GPU's memory.",
)
OPEN_VARIANCE = (
    "What differs most is not defined there: here it is the variance of the rewards of the first "
    "method's candidates, or the numbers of --disagreement FILE; the fifth is rounded down."
)


def high_variance(answered: Answered) -> list[int]:
    """Places of the fifth of prompts on which candidates differ most, by the rewards of the first
    method's candidates or by the user's file.
    """
    comparison = answered.comparison
    if answered.disagreement is None:
        spread = variances(comparison)
    else:
        known = answered.disagreement
        spread = np.array([known[name] for name in comparison.prompt_ids], dtype=np.float64)
    return sorted(int(place) for place in widest_fifth(spread))


def high_variance_ids(answered: Answered) -> list[str]:
    """Their ids."""
    return [answered.comparison.prompt_ids[place] for place in high_variance(answered)]


def note_variance(answered: Answered) -> list[str]:
    """Which prompts these are."""
    chosen = high_variance_ids(answered)
    by = "the file's numbers" if answered.disagreement else "the variance of rewards"
    return [
        f"The high-variance prompts, {len(chosen)} of {len(answered.comparison.prompt_ids)} by "
        f"{by}: {', '.join(chosen) or 'none'}."
    ]


def note_left_out(answered: Answered, of: str = "") -> list[str]:
    """Prompts that no figure (or none of these figures) rests on."""
    num = answered.comparison.num_without_baseline
    return [f"{num} prompts are left out{of}: {answered.baseline} failed on them."] if num else []


def risk_figures(answered: Answered, places: Sequence[int], of: str = "") -> list[Measured]:
    """Mean, sigma, mean - lambda * sigma and CVaR10% of each method's rewards on these prompts."""
    found = []
    for method in answered.methods:
        own = rewards(answered.comparison, method)[list(places)]
        found += [
            measured(f"{name}{of}", method, "reward", value, len(own))
            for name, value in _risk(own).items()
        ]
    return found


def _risk(own: Array) -> dict[str, Estimate]:
    return {
        "mean reward": mean_of(own),
        "sigma": estimate(lambda drawn: own[drawn].std(-1), len(own)),
        f"mean - {RISK_AVERSION:g} * sigma": mean_minus_sigma(own),
        "CVaR10%": cvar(own),
    }


def weigh_all(
    answered: Answered, others: Mapping[str, str], baseline: str, prompt_ids: Sequence[str]
) -> list[Question]:
    """A weighted judge is asked about each method's answer beside the other one of its prompt.

    Args:
        answered: the answers.
        others: by prompt; a prompt without one is not asked about.
        baseline: who wrote the others; of a method's name its own rows are left out.
        prompt_ids: that count.
    """
    wanted = set(prompt_ids)
    return [
        Question(
            PREFERENCES,
            {
                "prompt_id": row["prompt_id"],
                "method": row["method"],
                "baseline": baseline,
                "template": template_name(),
            },
            partial(
                weigh,
                row=row,
                instruction=instruction_of(answered.tasks[row["prompt_id"]]),
                other=others[row["prompt_id"]],
                baseline=baseline,
            ),
        )
        for row in answered.rows
        if row["method"] != baseline and row["prompt_id"] in wanted & others.keys()
    ]


def instruction_of(task: Task) -> str:
    """The first turn as a text; roles are named where it is a conversation."""
    messages = as_messages(task.turns[0])
    if len(messages) == 1:
        content: str = messages[0]["content"]
        return content
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def preference_figures(
    answered: Answered, others: Mapping[str, str], baseline: str, prompt_ids: Sequence[str]
) -> list[Measured]:
    """Win rates, plain and length-controlled, and what the judge leans to; see `weigh_all`."""
    found = []
    for method in answered.methods:
        if method == baseline:
            continue
        given = _given(answered, baseline, method, prompt_ids)
        known = [row for row in given if row["preference"] is not None]
        wins = np.array([row["preference"] - 1 for row in known], dtype=np.float64)
        controlled = _controlled(answered, others, method, known)
        found += [
            measured("win rate", method, "%", percent(mean_of(wins)), len(wins)),
            measured("length-controlled win rate", method, "%", controlled.rate, len(wins)),
            failures_of(method, len(given) - len(known), len(given)),
            *bias_figures(method, [(row["preference"] - 1, row) for row in known]),
        ]
    return found


def preference_notes(
    answered: Answered, others: Mapping[str, str], baseline: str, prompt_ids: Sequence[str]
) -> list[str]:
    """Whose words the judge read, and what the length-controlled rate is."""
    notes = [f"The judge read the prompt of {template_name()}."]
    for method in answered.methods:
        if method != baseline:
            given = _given(answered, baseline, method, prompt_ids)
            known = [row for row in given if row["preference"] is not None]
            words = _controlled(answered, others, method, known).words
            notes.append(f"Length-controlled win rate of {method}: {words}.")
    return notes


def _given(
    answered: Answered, baseline: str, method: str, prompt_ids: Sequence[str]
) -> list[Judgement]:
    rows = answered.judged(PREFERENCES, method, prompt_ids)
    name = template_name()
    return [row for row in rows if (row["baseline"], row["template"]) == (baseline, name)]


def _controlled(
    answered: Answered, others: Mapping[str, str], method: str, known: Sequence[Judgement]
) -> LengthControlled:
    texts = {
        row["prompt_id"]: "" if row["error"] else row["turns"][0]["text"]
        for row in answered.rows
        if row["method"] == method
    }
    own = answered.loaded.source == "alpaca_eval_2"
    pairs = [
        PreferredPair(
            place=answered.tasks[row["prompt_id"]].line - 1 if own else place,
            output=texts[row["prompt_id"]],
            reference=others[row["prompt_id"]],
            preference=row["preference"],
        )
        for place, row in enumerate(known)
    ]
    return length_controlled(pairs, own_prompts=own)


def bias_figures(method: str, won: Sequence[tuple[float, Judgement]]) -> list[Measured]:
    """What a judge leans to, over the pairs that it was asked about."""
    asked = [
        Leaning(share, row["method_first"], row["characters"] - row["other_characters"])
        for share, row in won
        if row["method_first"] is not None
    ]
    found = judge_bias(asked)
    num_first = sum(one.is_first for one in asked)
    return [
        measured("win rate, shown first", method, "%", percent(found["win_first"]), num_first),
        measured(
            "win rate, shown second",
            method,
            "%",
            percent(found["win_second"]),
            len(asked) - num_first,
        ),
        measured(
            "correlation of winning with length",
            method,
            "Pearson",
            found["length_correlation"],
            len(asked),
        ),
    ]


def failures_of(method: str, num_failed: int, num_all: int) -> Measured:
    """Judgements that could not be read."""
    value: Estimate = {"value": float(num_failed), "low": None, "high": None}
    return measured("judgements that failed", method, "count", value, num_all)


def percent(share: Estimate) -> Estimate:
    """A share of 1 in percent."""
    value, low, high = (
        None if end is None else 100 * end for end in (share["value"], share["low"], share["high"])
    )
    return {"value": value, "low": low, "high": high}


def measured(name: str, method: str, unit: str, value: Estimate, num: int) -> Measured:
    return {"name": name, "method": method, "unit": unit, "estimate": value, "num": num}

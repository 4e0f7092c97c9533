r"""Train a small causal reward model that scores partial answers for what they will become.

    specrej trace prompts.jsonl --n 16 --memory 512MiB --max-new-tokens 96 \
        --checkpoints 8,16,32,64 --output traces
    python examples/train_reward_head.py traces --output reward_head
    specrej generate "Why is the sky blue?" --reward classifier:reward_head

A trace holds the last hidden states of the generator at checkpoints and the final reward of every
candidate. A linear head on these states (ridge regression, the backbone frozen) learns to predict
the final reward; what differs between prompts, not between candidates, is taken out first. Saved is
a `LlamaForSequenceClassification` that any tool can open.

Printed is Spearman's correlation with the final reward on prompts that the head never saw, beside
that of the partial rewards which the trace recorded at the same length.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from specrej.evaluation.correlation import correlate
from specrej.evaluation.trace import Trace, load
from specrej.hub.pretrained import open_pretrained

Floats = NDArray[np.float64]
PENALTIES = tuple(float(10**power) for power in range(0, 7))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path, help="a folder that specrej trace has made")
    parser.add_argument("--output", type=Path, required=True, help="folder for the reward model")
    parser.add_argument(
        "--model", default="smollm2", help="the generator of the traces (default: smollm2)"
    )
    given = parser.parse_args()
    traces = [trace for trace in load(given.traces) if np.ptp(trace.final_rewards) > 0]
    fitted, chosen, unseen = traces[::2], traces[1::4], traces[3::4]
    if not unseen:
        parser.error(
            f"{given.traces} holds {len(traces)} prompts with different rewards, at least 4 are "
            "needed"
        )
    head = train(fitted, chosen)
    report(head, unseen)
    save(head, given.model, given.output)
    print(
        f"a head trained on {len(fitted)} prompts is in {given.output}: --reward "
        f"classifier:{given.output}"
    )


def train(fitted: Sequence[Trace], chosen: Sequence[Trace]) -> Floats:
    """The head `[hidden]`, with the penalty that ranks best on the prompts `chosen`."""
    states, rewards = (np.concatenate(parts) for parts in zip(*map(examples, fitted), strict=True))
    gram, target = states.T @ states, states.T @ rewards
    heads = [np.linalg.solve(gram + penalty * np.eye(len(gram)), target) for penalty in PENALTIES]
    return max(
        heads, key=lambda head: np.mean([rank_correlation(head, trace, None) for trace in chosen])
    )


def examples(trace: Trace) -> tuple[Floats, Floats]:
    """States `[examples, hidden]` and final rewards `[examples]`, both without their mean over
    the prompt.
    """
    states, rewards = [], []
    for place in range(len(trace.checkpoints)):
        is_new = (
            trace.lengths > trace.checkpoints[place - 1]
            if place
            else np.ones(trace.num_candidates, dtype=bool)
        )
        states.append(trace.hidden_states()[is_new, place].astype(np.float64))
        rewards.append(trace.final_rewards[is_new])
    together, final = np.concatenate(states), np.concatenate(rewards)
    return together - together.mean(0), final - final.mean()


def rank_correlation(head: Floats, trace: Trace, place: int | None) -> float:
    """Spearman's, with the final reward, of the head's scores at a checkpoint; at the end where
    it is None.
    """
    states = trace.final_hidden_states() if place is None else trace.hidden_states()[:, place]
    return correlate(states.astype(np.float64) @ head, trace.final_rewards)["spearman"] or 0.0


def report(head: Floats, unseen: Sequence[Trace]) -> None:
    """Print what the head's scores are worth on prompts it never saw, beside the recorded
    partial rewards.
    """
    print(
        f"Spearman's correlation with the final reward, mean over {len(unseen)} prompts the head "
        "never saw"
    )
    for place, num_tokens in enumerate(unseen[0].checkpoints):
        own = np.mean([rank_correlation(head, trace, place) for trace in unseen])
        partial = [
            correlate(trace.rewards[:, place], trace.final_rewards)["spearman"] or 0.0
            for trace in unseen
        ]
        print(f"{num_tokens:>5} tokens: head {own:.3f}, partial reward {np.mean(partial):.3f}")
    print(
        "  at the end: head "
        f"{np.mean([rank_correlation(head, trace, None) for trace in unseen]):.3f}"
    )


def save(head: Floats, model: str, directory: Path) -> None:
    """The generator's backbone with this head, as transformers saves classifiers."""
    generator, tokenizer = open_pretrained(
        model, AutoModelForCausalLM, "a causal language model", device="cpu"
    )
    config: Any = generator.config
    config.num_labels = 1
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    classifier: Any = LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]
    classifier.model.load_state_dict(generator.model.state_dict())
    classifier.score.weight.data = torch.tensor(head, dtype=torch.float32)[None]
    classifier.half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    main()

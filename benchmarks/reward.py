"""What a reward model saves by reading each token once, as ratios taken in one run. The last line
is one JSON object.

    python benchmarks/reward.py  # both prompts, about a quarter of an hour on one core
    python benchmarks/reward.py --prompts 256        # the short one

A causal reward model of SmolLM2's shape scores 64 candidates at 16, 32, 64, 128 and 256 tokens;
half of them leave after each decision. `fresh` reads every conversation whole at each decision, in
batches sorted by length, through transformers' own pass; `incremental` reads the prompt once and of
each answer what is new. Both run on the same packed linear layers with the same batch size.
`time_ratio` and `token_ratio` are incremental over fresh: tokenizing, prefill and rejections are
inside the clock. `new_tokens` is what no method can leave out: prompt and answers, each once, and
the template's ending at each decision.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

import specrej
from specrej.hub.defaults import locate
from specrej.hub.quiet import quiet_transformers
from specrej.rewards.classifier import ClassifierReward
from specrej.types import Candidate

DECISIONS, BATCH_SIZE, SEED = (16, 32, 64, 128, 256), 16, 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def open_model() -> tuple[Any, Any]:
    """A classifier on SmolLM2's weights with a random head, and its tokenizer."""
    directory = locate("smollm2")
    given: dict[str, Any] = (
        {}
        if (directory / "config.json").exists()
        else {"gguf_file": next(directory.glob("*.gguf")).name}
    )
    with quiet_transformers():
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **given)
        torch.manual_seed(SEED)
        model: Any = transformers.LlamaForSequenceClassification.from_pretrained(
            directory, dtype=torch.float32, num_labels=1, **given
        )
    torch.nn.init.normal_(
        model.score.weight, std=0.02, generator=torch.Generator().manual_seed(SEED)
    )
    return model, tokenizer


def random_text(tokenizer: Any, num_tokens: int, generator: torch.Generator) -> str:
    """Words that take about so many tokens."""
    words = [
        word
        for word in map(tokenizer.decode, range(1000, 20_000))
        if word[1:].isalpha() and word[0] == " "
    ]
    return "".join(
        words[i] for i in torch.randint(len(words), (num_tokens,), generator=generator).tolist()
    )


def score_all(
    reward: ClassifierReward, prompt: str, answers: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Seconds, tokens and scores of all decisions: `answers[decision][candidate]`."""
    scores: list[float] = []
    begun, cpu_begun = time.perf_counter(), time.process_time()
    session = reward.open([{"role": "user", "content": prompt}])
    for number, texts in enumerate(answers):
        left = len(texts) >> number
        is_last = number == len(answers) - 1
        batch = [
            Candidate(index, text=text, finish_reason="length" if is_last else None)
            for index, text in enumerate(texts[:left])
        ]
        scores += session.score(batch)
        session.drop(range(left // 2, left))
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    session.close()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "tokens": session.num_tokens,
        "scores": scores,
        "reuse": session.reuse,
        "peak_kv_bytes": session.peak_kv_bytes,
    }


def tokenizing_seconds(
    reward: ClassifierReward, prompt: str, answers: Sequence[Sequence[str]]
) -> float:
    """What writing out and tokenizing all conversations takes."""
    begun = time.perf_counter()
    for number, texts in enumerate(answers):
        batch = [
            Candidate(index, text=text) for index, text in enumerate(texts[: len(texts) >> number])
        ]
        reward.reader.rows([{"role": "user", "content": prompt}], batch)
    return time.perf_counter() - begun


def count_new(tokenizer: Any, prompt: str, answers: Sequence[Sequence[str]]) -> int:
    """Tokens of the prompt once, of each answer once, and of the ending at each decision."""

    def ids(text: str) -> list[int]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        encoded: list[int] = tokenizer.apply_chat_template(turns, return_dict=False)
        return encoded

    whole, bare = len(ids("x")), len(tokenizer("x", add_special_tokens=False)["input_ids"])
    ending = len(ids("")) - len(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
    )
    total = whole - bare - ending
    for number, texts in enumerate(answers):
        for index, text in enumerate(texts[: len(texts) >> number]):
            before = len(ids(answers[number - 1][index])) if number else whole - bare
            total += len(ids(text)) - before + ending
    return total


def measure(
    reward: dict[str, ClassifierReward], tokenizer: Any, num_prompt_tokens: int, num_candidates: int
) -> dict[str, Any]:
    """Both ways on one prompt, one after the other."""
    generator = torch.Generator().manual_seed(SEED)
    prompt = random_text(tokenizer, num_prompt_tokens, generator)
    full = [random_text(tokenizer, DECISIONS[-1], generator) for _ in range(num_candidates)]
    answers = [
        ["".join(f" {word}" for word in text.split()[:length]) for text in full]
        for length in DECISIONS
    ]
    runs: dict[str, dict[str, Any]] = {}
    for name in ("incremental", "fresh"):
        runs[name] = score_all(reward[name], prompt, answers)
        say(
            f"prompt {num_prompt_tokens}: {name} {runs[name]['seconds']:.1f} s, "
            f"{runs[name]['tokens']} tokens"
        )
    pairs = zip(runs["incremental"].pop("scores"), runs["fresh"].pop("scores"), strict=True)
    return {
        **runs,
        "time_ratio": round(runs["incremental"]["seconds"] / runs["fresh"]["seconds"], 4),
        "token_ratio": round(runs["incremental"]["tokens"] / runs["fresh"]["tokens"], 4),
        "new_tokens": count_new(tokenizer, prompt, answers),
        "tokenizing_s": tokenizing_seconds(reward["incremental"], prompt, answers),
        "largest_difference": max(abs(here - there) for here, there in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", default="256,1024", help="lengths of the prompts in tokens")
    parser.add_argument("--candidates", type=int, default=64, help="candidates to begin with")
    arguments = parser.parse_args()
    if arguments.candidates < (least := 2 ** (len(DECISIONS) - 1)):
        parser.error(f"--candidates must be at least {least}: half of them leave at each decision")
    model, tokenizer = open_model()
    reward = {
        name: ClassifierReward((model, tokenizer), batch_size=BATCH_SIZE, memory_bytes=memory)
        for name, memory in (("incremental", None), ("fresh", 0))
    }
    figures = {
        f"prompt_{n}": measure(reward, tokenizer, int(n), arguments.candidates)
        for n in arguments.prompts.split(",")
    }
    print(
        json.dumps(
            {
                "benchmark": "reward",
                **{
                    ratio: {name: run.pop(ratio) for name, run in figures.items()}
                    for ratio in ("time_ratio", "token_ratio")
                },
                "runs": figures,
                "decisions": DECISIONS,
                "candidates": arguments.candidates,
                "batch_size": BATCH_SIZE,
                "seed": SEED,
                "threads": torch.get_num_threads(),
                "versions": {
                    "specrej": specrej.__version__,
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "transformers": transformers.__version__,
                },
            }
        )
    )


if __name__ == "__main__":
    main()

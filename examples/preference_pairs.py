"""Make a small set of preference pairs for DPO: the best answer to each prompt against the worst
that came to its end.

    python examples/preference_pairs.py --output pairs.jsonl

It is in TRL's format for preferences: `datasets.load_dataset("json", data_files="pairs.jsonl")` is
what DPOTrainer takes. For many prompts use `specrej batch`, which can be stopped and gone on with,
and `specrej pairs`.
"""

import argparse
from pathlib import Path

import specrej
from specrej.batch.preferences import write_pairs
from specrej.batch.requests import Request
from specrej.batch.rows import failure_of, row_of
from specrej.files.journal import Journal

PROMPTS = [
    "Give three tips for staying healthy.",
    "Why is the sky blue?",
    "How do I keep bread fresh?",
    "What is a good name for a bakery?",
    "Explain what a reward model is.",
    "Write two sentences about the sea.",
]
SETTINGS = specrej.Settings(n=16, decide="every:32", max_new_tokens=64, seed=1)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("pairs.jsonl"), help="the pairs (default: pairs.jsonl)"
    )
    output = parser.parse_args().output
    answers = output.with_suffix(".answers.jsonl")
    answers.unlink(missing_ok=True)
    requests = [
        Request(id=str(line), prompt=prompt, settings=SETTINGS, num_kept=4, line=line, form="plain")
        for line, prompt in enumerate(PROMPTS, 1)
    ]
    engine = specrej.open_engine("smollm2")
    with Journal(answers) as journal:
        for number, outcome in specrej.generate_batch(PROMPTS, model=engine, **SETTINGS.to_dict()):
            request = requests[number]
            if isinstance(outcome, specrej.SpecrejError):
                journal.append(failure_of(request, outcome))
                continue
            journal.append(row_of(request, outcome, engine.detokenizer))
            print(
                f"{request.prompt}  best reward {outcome.reward:.2f} of {len(outcome.candidates)} "
                "candidates"
            )
    counts = write_pairs(answers, output, min_margin=0.5)
    print(f"{counts.pairs} pairs in {output}; all answers kept in {answers}")

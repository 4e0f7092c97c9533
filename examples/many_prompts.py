"""Several prompts side by side on one engine. Each gets the answer that it would get alone.

python examples/many_prompts.py
"""

import specrej

PROMPTS = [
    "Name three uses for a paper clip.",
    "",  # fails, and the others go on
    "What is a good name for a bakery?",
]

if __name__ == "__main__":
    engine = specrej.open_engine("smollm2")
    for number, outcome in specrej.generate_batch(PROMPTS, model=engine, max_new_tokens=64, seed=1):
        if isinstance(outcome, specrej.SpecrejError):
            print(f"[{number}] failed: {outcome}")
        else:
            tokens = outcome.usage.generated_tokens
            print(f"[{number}] reward {outcome.reward:.2f}, {tokens} tokens: {outcome.text}")

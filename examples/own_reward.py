"""Choose answers by a reward of your own: any function of a prompt and a list of texts.

    python examples/own_reward.py

The function sees unfinished answers too: what it says of them decides who is stopped early.
"""

import specrej


def short_words(prompt: str, texts: list[str]) -> list[float]:
    """Plain words are better: the share of words with at most eight letters."""
    shares = []
    for text in texts:
        words = text.split()
        shares.append(sum(len(word) <= 8 for word in words) / max(len(words), 1))
    return shares


if __name__ == "__main__":
    result = specrej.generate(
        "Explain to a child why the sky is blue.",
        reward=short_words,
        n=16,
        max_new_tokens=96,
        seed=1,
    )
    print(result.text)
    print(f"share of short words: {result.reward}, the best of {len(result.candidates)} candidates")

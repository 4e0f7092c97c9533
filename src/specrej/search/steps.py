"""Where a step of an answer ends, for algorithms that compare candidates step by step.

search.wait_after(separated(PARAGRAPH, most_tokens=256))
"""

from specrej.types import StepRule

PARAGRAPH = "\n\n"


def separated(separator: str, most_tokens: int) -> StepRule:
    """A step ends behind the token that ends this separator, or at so many tokens.

    White space before anything else separates nothing.
    """

    def ends(text: str, num_tokens: int) -> bool:
        return num_tokens >= most_tokens or separator in text.lstrip()

    return ends


def tokens(num_tokens: int) -> StepRule:
    """Each step has so many tokens."""
    return lambda _text, length: length >= num_tokens

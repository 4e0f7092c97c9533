"""Policies that come with specrej, made by `benchmarks/calibrate.py`.

specrej generate "Plan a garden." --policy smollm2-relevance
"""

from pathlib import Path

from specrej.search.calibrated import read_policy
from specrej.types import Policy

FOLDER = Path(__file__).parent


def smollm2_relevance() -> Policy:
    """For the default model and reward, answers of at most 256 tokens, and default sampling."""
    return read_policy(FOLDER / "smollm2-relevance.json").to_policy()

"""The process in which math-verify runs, so that it can be killed: `MathReward` starts it, by the
path of this file.

It reads {"reference": TEXT, "answer": TEXT} a line, and writes true, false, or null for a reference
that cannot be read. What raises is false. It imports nothing of specrej.
"""

import functools
import json
import re
import signal
import sys
from importlib import import_module
from typing import Any

_DELIMITERS = re.compile(r"\$|\\boxed|\\\(|\\\[")


def main() -> None:
    """Answer until the input ends."""
    math_verify = import_module("math_verify")
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the process that asks, which ends this one
    replies, sys.stdout = sys.stdout, sys.stderr

    @functools.lru_cache(maxsize=8)
    def read_reference(reference: str) -> list[Any]:
        text = reference if _DELIMITERS.search(reference) else f"${reference}$"
        return list(math_verify.parse(text, parsing_timeout=None))

    def check(reference: str, answer: str) -> bool | None:
        try:
            expected = read_reference(reference)
            if not expected:
                return None
            found = math_verify.parse(answer, parsing_timeout=None)
            return bool(math_verify.verify(expected, found, timeout_seconds=None))
        except Exception:
            return False

    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(check(**json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()

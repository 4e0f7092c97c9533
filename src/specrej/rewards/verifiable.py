r"""Answers that can be checked: by a pattern, against a text, or as mathematics. 1.0 is right, 0.0
is wrong.

    RegexReward(r"(?i)\bparis\b")          # found anywhere in the text so far
    ExactMatchReward("42")                 # the final answer is this text
    ExactMatchReward("@answers.jsonl")     # ... looked up by the prompt
    MathReward("@answers.jsonl")           # the final answer has this value, by math-verify

No model is read. A pattern is searched for in unfinished answers too. The other two judge final
answers, which an unfinished one has not got yet: it gets 0.0, whatever its text. So early decisions
see ties, and mean something only where such a reward is mixed with another; Best-of-N needs no
other.
"""

import re
from collections.abc import Callable, Sequence

from specrej.errors import RewardError, UsageError
from specrej.rewards.answers import final_answer, marked_answer, normalise
from specrej.rewards.base import StatelessSession
from specrej.rewards.math_verify import MathVerifier, is_installed
from specrej.rewards.references import read_references
from specrej.types import Candidate, Message


class RegexReward:
    """1.0 where a pattern of Python's `re` is found in the text so far, else 0.0.

    A search has no time limit, which `re` does not know: nested repeats such as `(a+)+b` can take
    for ever on a long text.
    """

    flops_per_token: float | None = 0.0

    def __init__(self, pattern: str) -> None:
        """Compile the pattern; flags stand inside, as in `(?i)yes`.

        Raises:
            UsageError: the pattern is empty or does not compile; says at which position.
        """
        if not pattern:
            raise UsageError(
                "the reward 'regex' needs a pattern",
                hint=r"give it as regex:PATTERN, as in 'regex:\d+'",
            )
        try:
            self._pattern = re.compile(pattern)
        except (re.error, OverflowError) as error:
            raise UsageError(
                f"the pattern {pattern!r} does not compile: {error}",
                hint="write it as for Python's re; in a shell, inside single quotes",
            ) from error
        self.name = f"regex:{pattern}"

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt, of which nothing is read."""
        return StatelessSession(messages, self._score_batch)

    def close(self) -> None:
        """Nothing is held."""

    def _score_batch(
        self, messages: Sequence[Message], candidates: Sequence[Candidate]
    ) -> tuple[list[float], int]:
        return [
            float(self._pattern.search(candidate.text) is not None) for candidate in candidates
        ], 0


class ExactMatchReward:
    r"""1.0 where the answer as a whole, or its final answer, is the reference; else, and while
    unfinished, 0.0.

    The final answer is what stands in the last `\boxed{}`, else after the last `####` on its line,
    else the last line. Case, white space, and quotes, brackets, `*`, `_`, `$` and ending
    punctuation around the answer do not count. A reference that has such a mark itself (a solution
    of GSM8K) is reduced to what it marks.
    """

    flops_per_token: float | None = 0.0

    def __init__(self, reference: str) -> None:
        """Take the right answer, or `@FILE.jsonl` with one for each prompt (see
        `specrej.rewards.references`).

        Raises:
            UsageError: the reference is empty, or its file cannot be read.
        """
        self._find = read_references(reference)
        self.name = f"exact_match:{reference}"

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt.

        Raises:
            PromptError: the file has no answer to it.
        """
        expected = normalise(marked_answer(self._find(messages)))

        def score_batch(
            _: Sequence[Message], candidates: Sequence[Candidate]
        ) -> tuple[list[float], int]:
            return _score_finished(
                candidates,
                lambda text: expected in (normalise(text), normalise(final_answer(text))),
            )

        return StatelessSession(messages, score_batch)

    def close(self) -> None:
        """Nothing is held."""


class MathReward:
    r"""1.0 where math-verify finds the value of the reference in the answer; else, and while
    unfinished, 0.0.

    math-verify takes the final answer from the text by rules of its own: what stands in `\boxed{}`,
    else what the text calls the answer, else the last expression. It runs in a process beside this
    one (see `MathVerifier`), which ends when the reward is closed. An answer that takes longer than
    `timeout_s`, or on which math-verify fails, is wrong.
    """

    flops_per_token: float | None = 0.0

    def __init__(self, reference: str, *, timeout_s: float = 5.0) -> None:
        """Take the right answer, or `@FILE.jsonl` with one for each prompt (see
        `specrej.rewards.references`).

        Args:
            reference: plain or LaTeX, with or without `$` around it; no words beside it.
            timeout_s: seconds that the check of one answer may take.

        Raises:
            UsageError: math-verify is not installed, the reference is empty, or its file cannot be
                read.
        """
        if not is_installed():
            raise UsageError(
                "the reward 'math' checks with math-verify, which is not installed",
                hint="pip install 'specrej[math]'",
            )
        if timeout_s <= 0:
            raise UsageError(f"timeout_s must be above 0, got {timeout_s!r}")
        self._find = read_references(reference)
        self.name = f"math:{reference}"
        self._verifier = MathVerifier(f"the reward {self.name!r}", timeout_s=timeout_s)

    def open(self, messages: Sequence[Message]) -> StatelessSession:
        """Begin with a prompt.

        Raises:
            PromptError: the file has no answer to it.
        """
        reference = marked_answer(self._find(messages))

        def score_batch(
            _: Sequence[Message], candidates: Sequence[Candidate]
        ) -> tuple[list[float], int]:
            return _score_finished(candidates, lambda text: self._is_equal(reference, text))

        return StatelessSession(messages, score_batch)

    def close(self) -> None:
        """End the process, after the answer that it checks."""
        self._verifier.close()

    def _is_equal(self, reference: str, text: str) -> bool:
        found = self._verifier.is_equal(reference, text)
        if found is None:
            raise RewardError(
                f"math-verify cannot read the reference {reference!r}",
                hint=r"give a number or LaTeX, as in '42' or '\frac{1}{2}'",
            )
        return found


def _score_finished(
    candidates: Sequence[Candidate], is_right: Callable[[str], bool]
) -> tuple[list[float], int]:
    return [float(c.finish_reason is not None and is_right(c.text)) for c in candidates], 0


def parse_regex(argument: str = "") -> RegexReward:
    """`regex:PATTERN`; all that follows the ":" is the pattern."""
    return RegexReward(argument)


def parse_exact_match(argument: str = "") -> ExactMatchReward:
    """`exact_match:TEXT` or `exact_match:@FILE.jsonl`."""
    return ExactMatchReward(argument)


def parse_math(argument: str = "") -> MathReward:
    """`math:ANSWER` or `math:@FILE.jsonl`."""
    return MathReward(argument)

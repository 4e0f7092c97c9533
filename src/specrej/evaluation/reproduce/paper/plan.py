"""What `specrej reproduce paper` runs, and where.

    plan = plan_of("out", methods=(), is_judged=True)
    plan.parts[0].protocol.methods, plan.parts[0].folder
    plan.trace, plan.num_traced

Each part is a folder of its own. A row `alpacafarm` or `perplexity` that is finished in the folder
itself is taken over there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specrej.errors import UsageError
from specrej.evaluation.reproduce import alpacafarm, perplexity
from specrej.evaluation.reproduce.protocol import Protocol

NAME = "paper"
TITLE = "Tables 1 and 2 and Figures 2 to 4 of the paper, beside its own numbers"
KNOWN = "16 to 32 times less compute at equal reward (the paper)"
NEEDS = (
    "what alpacafarm and perplexity need, and Best-of-N up to 3,840 a second time under the "
    "reward model; without a judge all but Table 1"
)
OPEN_POINTS = (
    "The paper's points of Figures 2 to 4 are not at hand as numbers: they are described beside "
    "ours.",
    "Figures 2 and 4 are over the candidates that are unfinished at a length: a finished one "
    "agrees with itself. Those of all stand beside them.",
    "Figure 2 shows the prompt of the median correlation, at an eighth of the longest answer: the "
    "paper's 256 of 2,048 tokens.",
)
NUMBERS_OF_N = (120, 240, 480, 960, 1920, 3840)
METHODS = (
    *(f"best_of_n:{n}" for n in NUMBERS_OF_N),
    *(f"speculative_rejection:0.{tenth}" for tenth in range(1, 10)),
)
"""Of Table 1 and Figure 3; the first is what the others are compared with."""
TABLE_2_METHODS = perplexity.ROW.methods
_NUM_CHECKPOINTS = 7
_BEST_OF = "best_of_n:"


@dataclass(frozen=True, slots=True)
class PaperPart:
    """A row that is run for a table.

    Attributes:
        protocol: with the methods of the table.
        methods: that are run.
        folder: of its bench.
    """

    protocol: Protocol
    methods: tuple[str, ...]
    folder: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is run.

    Attributes:
        output: gets paper.json, the page and its plots.
        parts: of Table 1 and of Table 2.
        trace: the folder of the trace.
        num_traced: candidates of each prompt there.
    """

    output: Path
    parts: tuple[PaperPart, PaperPart]
    trace: Path
    num_traced: int


def plan_of(output: str | Path, methods: Sequence[str], *, is_judged: bool) -> Plan:
    """What is run, and where.

    Args:
        output: the folder.
        methods: in place of the paper's, for both tables; empty for the paper's.
        is_judged: a judge is at hand.

    Raises:
        UsageError: the first method is no Best-of-N.
    """
    output = Path(output)
    first, _, number = (methods or METHODS)[0].partition(":")
    if first != "best_of_n" or not number.isdigit():
        raise UsageError(
            f"the paper compares with a Best-of-N, got {(methods or METHODS)[0]!r} as the first "
            "method",
            hint="begin with a method such as best_of_n:120",
        )
    table_1 = alpacafarm.ROW if is_judged else alpacafarm.UNJUDGED_ROW
    table_2 = _largest_first(methods) if methods else TABLE_2_METHODS
    return Plan(
        output,
        (
            PaperPart(
                replace(table_1, methods=METHODS),
                tuple(methods or METHODS),
                _folder(output, table_1.name),
            ),
            PaperPart(perplexity.ROW, table_2, _folder(output, perplexity.ROW.name)),
        ),
        output / "trace",
        int(number),
    )


def _largest_first(methods: Sequence[str]) -> tuple[str, ...]:
    """Table 2 compares with the largest Best-of-N."""
    numbers = {
        method: int(number)
        for method in methods
        if method.startswith(_BEST_OF) and (number := method.removeprefix(_BEST_OF)).isdigit()
    }
    largest = max(numbers, key=numbers.__getitem__)
    return largest, *(method for method in methods if method != largest)


def _folder(output: Path, name: str) -> Path:
    return output if (output / f"{name}.json").exists() else output / name


def checkpoints_of(max_new_tokens: int) -> tuple[int, ...]:
    """Lengths at which partial rewards are recorded: half of the longest answer, half of that, and
    so on, in tokens, rising.
    """
    halves = (max_new_tokens >> power for power in range(_NUM_CHECKPOINTS, 0, -1))
    return tuple(half for half in halves if half)


def example_checkpoint(checkpoints: Sequence[int]) -> int:
    """The place of an eighth of the longest answer, or of the first length."""
    return max(0, len(checkpoints) - 3)

"""Rows of benchmark tables, each by one command: `specrej reproduce NAME`.

    protocol = find_row("reward")
    print(protocol.title, protocol.needs, protocol.open_points)

A row is a module with its protocol, here in one table. `protocol` says what a row is made of,
`running` runs one, `page` shows it. Answers come from `bench`, judgements from the judges. Two of
the rows, and a trace, make the tables and figures of the paper: `paper`.
"""

from specrej.errors import UnknownNameError
from specrej.evaluation.reproduce import (
    alpaca_eval,
    alpacafarm,
    hh_rlhf,
    mt_bench,
    perplexity,
    reward,
)
from specrej.evaluation.reproduce.paper.plan import NAME as PAPER
from specrej.evaluation.reproduce.protocol import Protocol

__all__ = ["PAPER", "ROWS", "find_row"]

ROWS: dict[str, Protocol] = {
    row.name: row
    for row in (
        reward.ROW,
        perplexity.ROW,
        alpacafarm.ROW,
        hh_rlhf.ROW,
        mt_bench.ROW,
        alpaca_eval.ROW,
        mt_bench.HARD_ROW,
        alpaca_eval.HARD_ROW,
    )
}
"""All rows by name."""


def find_row(name: str) -> Protocol:
    """The row of this name.

    Raises:
        UnknownNameError: there is none; names those there are.
    """
    if name not in ROWS:
        raise UnknownNameError("row", name, [*ROWS, PAPER])
    return ROWS[name]

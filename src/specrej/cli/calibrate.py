"""Calibrating: recorded runs in, a policy with a promise out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specrej.cli.options import Json, exit_codes
from specrej.errors import UsageError

if TYPE_CHECKING:
    from specrej.calibration.calibrate import Calibration, Trial


def calibrate(
    traces: Annotated[
        Path, typer.Argument(help="A folder that `specrej trace` wrote.", show_default=False)
    ],
    *,
    target_regret: Annotated[
        float,
        typer.Option(
            help="Mean reward to lose against Best-of-N at the most, in standard deviations of a "
            "prompt's rewards."
        ),
    ] = 0.1,
    against: Annotated[
        int | None,
        typer.Option(
            help="Compare with Best-of-n of so many, when more were recorded: policies may begin "
            "with more. By default all.",
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="That the promise holds.")] = 0.95,
    output: Annotated[
        Path, typer.Option(help="The file for the policy.", show_default=False)
    ] = Path("policy.json"),
    seed: Annotated[
        int, typer.Option(help="Of the division of prompts into those that search and that test.")
    ] = 0,
    json: Json = False,
) -> None:
    """Find the cheapest policy whose regret against Best-of-N stays below a target, and prove
    it.
    """
    from specrej.calibration.calibrate import calibrate as find
    from specrej.cli import display, tables
    from specrej.evaluation.trace import load
    from specrej.files.journal import write_json

    with exit_codes():
        found = find(
            list(load(traces)),
            target=target_regret,
            confidence=confidence,
            seed=seed,
            against=against,
        )
        if json:
            display.print_json(found.to_dict())
        else:
            tables.print_calibration(found)
        if found.chosen is None:
            best = found.trials[0].bound  # the first that is tested has to pass
            raise UsageError(
                f"a regret of {target_regret:g} cannot be promised from {found.num_prompts[1]} "
                f"prompts; {best:.2g} could be",
                hint=f"record {found.needed} prompts or more, or promise less: "
                f"--target-regret {best * 1.05:.2g}",
            )
        write_json(output, found.chosen.policy.to_dict())
        typer.echo(f"{output}: {_last_line(found, found.chosen)}")


def _last_line(found: "Calibration", chosen: "Trial") -> str:
    promise = chosen.policy.promise
    return (
        f"{1 / chosen.cost[1]:.1f} times fewer {found.unit} than Best-of-{found.n} and a mean "
        f"regret of {chosen.regret[1]:.3f} on {found.num_prompts[1]} prompts that the search did "
        f"not see; at most {promise['regret']:g} with confidence {promise['confidence']:g}"
    )

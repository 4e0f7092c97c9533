"""Traces with another reward: recorded runs in, the same runs with other rewards out."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from specrej.cli.options import (
    end_with,
    exit_codes,
    how_to_resume,
    stdout_for_results,
    stoppable,
    typer_option,
)
from specrej.rewards import as_reward


def relabel(
    traces: Annotated[
        Path, typer.Argument(help="A folder that `specrej trace` wrote.", show_default=False)
    ],
    *,
    reward: Annotated[str, typer_option("reward")],
    output: Annotated[Path, typer.Option(help="The new folder.", show_default=False)],
    reward_memory: Annotated[str | None, typer_option("reward_memory")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the folder holds.")
    ] = False,
) -> None:
    """Write traces again with another reward; nothing is generated."""
    from specrej.cli.progress import RowProgress, follow
    from specrej.evaluation.folder import check_free, read_info
    from specrej.evaluation.relabelling import relabel as relabelled
    from specrej.evaluation.trace import load_failures, trace_files
    from specrej.hub.sources import load_codec, locate_model

    with exit_codes(), stoppable(how_to_resume(output)):
        num_traces, info = len(trace_files(traces)), read_info(traces)
        check_free(output, resume=resume)
        with (
            stdout_for_results(),
            RowProgress(total=num_traces, unit="prompts") as progress,
            closing(as_reward(reward, reward_memory)) as opened,
        ):
            codec = load_codec(locate_model(info["engine"]["model"]))
            progress.begin()
            run = relabelled(traces, opened, codec.detokenizer, output, resume=resume)
            num_run, num_failed = follow(run, progress)
        failures = load_failures(output)
        end_with(
            f"{num_traces} of {info['prompts']['num_prompts']} prompts in {output} ({num_run} "
            f"scored now, {num_failed} of them failed). Next: specrej replay {output}",
            num_failed=len(failures),
            num_all=len(list(output.glob("*.parquet"))) + len(failures),
        )

"""The default models: list them, pull them; any model: check it again."""

from typing import Annotated

import typer

from specrej.cli.options import Json, exit_codes, stdout_for_results
from specrej.engines.opening import EngineOptions, fastest_engine, installed_versions
from specrej.hub import defaults

models_app = typer.Typer(help="List the default models, pull them into the cache, or check one.")


@models_app.callback(invoke_without_command=True)
def list_models(context: typer.Context, *, json: Json = False) -> None:
    """List the default models, pull them into the cache, or check one."""
    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter("stands behind the name of a command", param_hint="--json")
        return
    from specrej.cli import display

    known = [(model, defaults.is_pulled(model)) for model in defaults.DEFAULT_MODELS.values()]
    if json:
        display.print_json({"models": [display.model_to_dict(*entry) for entry in known]})
    else:
        display.print_models(known)


@models_app.command()
def pull(
    names: Annotated[
        list[str] | None, typer.Argument(help="Default models; all where none is named.")
    ] = None,
) -> None:
    """Fetch default models into the cache; what is there already stays."""
    with exit_codes():
        for name in names or defaults.DEFAULT_MODELS:
            defaults.pull(name)


@models_app.command()
def check(
    model: Annotated[str, typer.Argument(help="As generate's --model.")] = "smollm2",
    *,
    weights: Annotated[
        str | None, typer.Option(help="As generate's --weights.", metavar="fp16|fp32")
    ] = None,
    json: Json = False,
) -> None:
    """Compare the torch engine's logits with transformers' own once more. Opening a model does so
    once for each kernel and version, and remembers it. Also names the engine that auto takes here,
    if it is another.
    """
    with exit_codes(), stdout_for_results():
        from specrej.cli import display
        from specrej.engines.torch.loading import check_model

        difference = check_model(model, weights=weights)
        versions = installed_versions()
        fastest = fastest_engine(EngineOptions(arguments={}))
    if json:
        found = {"model": model, "difference": difference, "fastest_engine": fastest}
        display.print_json({**found, "versions": versions})
        return
    typer.echo(
        f"{model}: the logits differ by {difference:.1e} of the largest from those of transformers "
        f"{versions['transformers']} on torch {versions['torch']}"
    )
    if fastest != "torch":
        typer.echo(
            f"{fastest} is what --engine auto takes here, often faster than torch; the same seed "
            "gives other tokens there"
        )

"""The default models: list them, pull them."""

from typing import Annotated

import typer

from specrej.cli.options import Json, exit_codes
from specrej.hub import defaults

models_app = typer.Typer(help="List the default models, or pull them into the cache.")


@models_app.callback(invoke_without_command=True)
def list_models(context: typer.Context, *, json: Json = False) -> None:
    """List the default models, or pull them into the cache."""
    if context.invoked_subcommand is not None:
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

"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    """Note for the error printer that the caller reads JSON."""
    ctx.find_root().obj = value
    return value


Json = Annotated[
    bool,
    typer.Option("--json", callback=_remember_json, help="Print one JSON value on stdout; progress stays on stderr."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one configuration value. Repeatable.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML file with configuration values; --set wins.")
]
Profile = Annotated[
    str, typer.Option("--profile", help="tuned: what gives the best quality here. paper: the published values.")
]
Model = Annotated[str, typer.Option("--model", help="Name of the model; an unknown one prints the list.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]

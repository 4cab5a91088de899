"""The commands for devices that have a version of a model: the next one as its difference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynammo.errors import ConfigError
from flows.cli.main import PublicKey, app, out, readable_errors


@app.command()
def delta(
    old: Annotated[Path, typer.Argument(help="Folder of the model that the device has.")],
    new: Annotated[Path, typer.Argument(help="Folder of the model that it is to have.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
) -> None:
    """Write what makes one version of a model out of another: a file for `apply-delta`.

    Sign NEW first (dynammo sign): its signature goes with it.
    """
    with readable_errors():
        from dynammo.checkpoint import check_writable, write_atomically
        from dynammo.deploy.delta import make_delta

        check_writable(output)
        made = make_delta(old, new)
        write_atomically(output, made.content)
        table = Table("file", "bytes", "bytes in the delta", title=escape(str(output)))
        for name, (whole, sent) in made.sizes.items():
            table.add_row(escape(name), f"{whole:,}" if whole else "", f"{sent:,}")
        total = sum(whole for whole, _ in made.sizes.values())
        table.add_row("all", f"{total:,}", f"{len(made.content):,}")
        out.print(table)


@app.command("apply-delta")
def apply_delta(
    model: Annotated[Path, typer.Argument(help="Folder of the model, which is replaced.")],
    file: Annotated[Path | None, typer.Argument(help="What `dynammo delta` wrote.")] = None,
    revert: Annotated[
        bool, typer.Option("--revert", help="Put the version before back instead.")
    ] = False,
    public_key: PublicKey = None,
) -> None:
    """Update a model by its difference from the next version, whole or not at all.

    The version before is kept in MODEL.previous; --revert exchanges the two.
    """
    with readable_errors():
        from tasks.apply_delta import previous_of, revert_model, update_model

        if (file is None) != revert:
            raise ConfigError(["give the file of a delta, or --revert"])
        if file is None:
            revert_model(model, public_key)
            line = f"{model} is the version before again; the other is in {previous_of(model)}"
        elif update_model(model, file, public_key):
            line = f"{model} is updated; the version before is in {previous_of(model)}"
        else:
            line = f"{model} is that version already"
        out.print(Text(line), soft_wrap=True)

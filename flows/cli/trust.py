"""The commands about what can be trusted: signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.cli.learner import find
from flows.cli.main import app, out, readable_errors


@app.command()
def sign(
    target: Annotated[str, typer.Argument(help="Name of a learner, or a model's folder.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="File of the private key.")],
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make the key first, and KEY.pub beside it.")
    ] = False,
) -> None:
    """Sign a model's folder; or a learner's versions that the next step builds on, and its model.

    Where --public-key or DYNAMMO_PUBLIC_KEY names KEY.pub, predict, learn and the served model
    refuse what is not signed by it.
    """
    with readable_errors():
        from dynammo.deploy.signature import SIGNATURE, sign_model
        from dynammo.deploy.signature import new_key as make_key

        folder = Path(target) if Path(target, "model.json").is_file() else None
        learner = None if folder else find(target)
        if new_key:
            out.print(Text(f"public key: {make_key(key)}"), soft_wrap=True)
        if folder:
            sign_model(folder, key)
            out.print(Text(f"signed: {folder / SIGNATURE}"), soft_wrap=True)
        elif learner:
            from tasks.sign_learner import sign_learner

            numbers = ", ".join(map(str, sign_learner(learner, key)))
            out.print(Text(f"signed: {learner.name}, versions {numbers}, and its model"))

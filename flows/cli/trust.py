"""The commands about what can be trusted: signatures, and the prediction log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.cli.learner import find
from flows.cli.main import app, out, readable_errors


@app.command()
def sign(
    target: Annotated[str, typer.Argument(help="Name of a learner, a model's folder, or a log.")],
    key: Annotated[Path, typer.Option("--key", "-k", help="File of the private key.")],
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make the key first, and KEY.pub beside it.")
    ] = False,
) -> None:
    """Sign a model's folder; a learner's versions that the next step builds on, and its model; or
    where a prediction log is.

    Where --public-key or DYNAMMO_PUBLIC_KEY names KEY.pub, predict, learn and the served model
    refuse what is not signed by it.
    """
    with readable_errors():
        from dynammo.deploy.signature import SIGNATURE, sign_model
        from dynammo.deploy.signature import new_key as make_key

        folder = Path(target) if Path(target, "model.json").is_file() else None
        log = Path(target) if Path(target).is_file() else None
        learner = None if folder or log else find(target)
        if new_key:
            out.print(Text(f"public key: {make_key(key)}"), soft_wrap=True)
        if folder:
            sign_model(folder, key)
            out.print(Text(f"signed: {folder / SIGNATURE}"), soft_wrap=True)
        elif log:
            from dynammo.deploy.log import sign_head

            signed = sign_head(log, key)
            out.print(Text(f"signed: {signed.predictions} predictions of {log}"), soft_wrap=True)
        elif learner:
            from tasks.sign_learner import sign_learner

            with learner.lock():
                numbers = ", ".join(map(str, sign_learner(learner, key)))
            out.print(Text(f"signed: {learner.name}, versions {numbers}, and its model"))


@app.command("verify-log")
def verify_log(
    log: Annotated[Path, typer.Argument(help="File that predict --log wrote, or a served model.")],
    head: Annotated[
        str | None,
        typer.Option(help="A head that this command printed before and that was kept elsewhere."),
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Ask for the log's head to be signed by it.")
    ] = None,
) -> None:
    """Check a prediction log line by line: is it as it was written, with nothing taken out?

    Lines that are missing at the end show only against a head that was signed (dynammo sign LOG) or
    kept. The exit status is 1 where something was changed.
    """
    with readable_errors():
        from dynammo.deploy.log import verify_log as verify
        from dynammo.deploy.log import verify_signed

        found = verify(log, head)
        if public_key is not None:
            signed, at = verify_signed(log, public_key)
            out.print(Text(f"signed {at}, {signed.since} predictions since"), soft_wrap=True)
        out.print(Text(f"{found.predictions} predictions, chain whole"))
        if found.cut_off:
            lines = ", ".join(map(str, found.cut_off))
            out.print(Text(f"cut off, as when a process is killed: line {lines}"), soft_wrap=True)
        if found.since is not None:
            out.print(f"{found.since} of them since the head given")
        out.print(f"head {found.head}", soft_wrap=True, highlight=False)

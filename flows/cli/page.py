"""The command that starts the page."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from flows.cli.learner import PANEL, find
from flows.cli.main import Log, PublicKey, app, out, readable_errors


@app.command("app", rich_help_panel=PANEL)
def page(
    learner: Annotated[
        str | None,
        typer.Argument(help="Name of the learner; default: all in learners/.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5002,
    host: Annotated[
        str, typer.Option(help="Address to answer at; the token crosses the network unencrypted.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DYNAMMO_APP_TOKEN",
            show_default=False,
            help="What whoever opens the page must know; default: made anew, and printed.",
        ),
    ] = None,
    public_key: PublicKey = None,
    log: Log = None,
) -> None:
    """A web page about learners: ask them about pictures, see versions, learn, forget, promote.

    Until Ctrl-C. Pictures are answered in memory and not kept.
    """
    with readable_errors():
        import secrets

        from flows.page.app import make_app
        from tasks.support.mlflow.serving import run

        if learner:
            find(learner)
        shown = token or secrets.token_urlsafe(24)
        application = make_app(learner, shown, public_key, log)
        address = f"http://{host}:{port}/" + ("" if token else f"?token={shown}")
        out.print(Text(f"{learner or 'learners'}: {address} (Ctrl-C ends it)"), soft_wrap=True)
        run(application, host, port)

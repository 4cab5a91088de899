"""The command that watches the deployed model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynammo.errors import ConfigError, DataError
from flows.cli import server
from flows.cli.learner import PANEL, Learner, find
from flows.cli.main import app, out, readable_errors

ALARM = 3  # exit status


@app.command(rich_help_panel=PANEL)
def monitor(
    learner: Learner,
    images: Annotated[
        Path, typer.Argument(help="Folder; or CSV with file and, if wanted, class and group.")
    ],
    version: Annotated[
        int | None, typer.Option(help="As history shows it; default: the champion.")
    ] = None,
    false_alarms: Annotated[
        float, typer.Option(help="Share of unchanged batches that may raise an alarm.")
    ] = 0.01,
    reference: Annotated[
        Path | None,
        typer.Option(help="Report (-o) of a good time: the mix of answers to compare with."),
    ] = None,
    evidently: Annotated[
        Path | None, typer.Option(help="HTML file for Evidently's report on the same images.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the report.")
    ] = None,
) -> None:
    """Check new images: are they still like those that the model was measured on?

    The exit status is 3 where a check raises an alarm (docs/how-to/monitoring.md).
    """
    with readable_errors():
        from dynammo.checkpoint import check_writable, to_json, write_atomically

        find(learner)
        if not 0.0001 <= false_alarms <= 0.5:
            raise ConfigError([f"--false-alarms {false_alarms}: expected 0.0001 to 0.5"])
        if not images.exists():
            raise DataError(f"{images}: no such file or folder")
        for file in (output, evidently):
            if file is not None:
                check_writable(file)
        server.ready()
        from flows.monitor import monitor as flow

        good = str(reference.absolute()) if reference else None
        page = str(evidently.absolute()) if evidently else None
        found = flow(learner, str(images.absolute()), version, false_alarms, good, page)
        if output is not None:
            write_atomically(output, to_json(found))
        _show(found)
    if found["alarms"]:
        raise typer.Exit(ALARM)


def _show(found: dict[str, Any]) -> None:
    table = Table("check", "before", "now", "p", "corrected", "", box=SIMPLE_HEAD)
    for check in found["checks"]:
        before = "-" if check["before"] is None else f"{check['before']:.3g}"
        numbers = (f"{check[key]:.4f}" for key in ("p", "adjusted"))
        mark = "[red]alarm[/]" if check["alarm"] else ""
        table.add_row(escape(check["name"]), before, f"{check['now']:.3g}", *numbers, mark)
    out.print(table)
    told = f"{found['images']} images against {found['reference_images']} held-out ones"
    for count, what in (
        (found["known"], "known to the learner and left out"),
        (found["unreadable"], "cannot be read"),
        (sum(found["unknown_classes"].values()), "of classes that the model does not know"),
    ):
        told += f"; {count} {what}" if count else ""
    out.print(Text(told), soft_wrap=True)
    share = f"{100 * found['false_alarms']:g}%"
    alarms = ", ".join(found["alarms"]) or "none"
    out.print(Text(f"alarms: {alarms} (at most {share} of unchanged batches)"), soft_wrap=True)

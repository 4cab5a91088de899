"""The commands about a learner's plan of changes, and the report on each change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from dynammo.errors import ConfigError
from flows.cli.learner import PANEL, Key, Learner, find, path_of
from flows.cli.main import app, out, readable_errors


@app.command(rich_help_panel=PANEL)
def plan(
    learner: Learner,
    file: Annotated[
        Path | None, typer.Argument(help="plan.yaml; default: show the plan in force.")
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Write a plan to be filled in, for the champion.")
    ] = False,
    key: Key = None,
) -> None:
    """Put a plan of changes into force: what later updates may be, and what each must show.

    The champion is the version that it authorises. From then on every learn, forget and merge is
    judged by it (docs/how-to/change-control.md).
    """
    with readable_errors():
        import yaml

        from tasks.support import plans

        folder = find(learner)
        if draft:
            if file is not None or key is not None:
                raise ConfigError(["--draft writes a plan, and takes none and no --key"])
            typer.echo(plans.draft(folder), nl=False)
            return
        if file is not None:
            plans.set_plan(folder, file, path_of(key))
        held = plans.plan_of(folder)
        if held is None:
            out.print(Text(f"{learner} has no plan: the settings of gate hold"))
            return
        agreed = folder.pointer()["plans"][-1]
        # Not by rich: it would wrap long lines.
        typer.echo(
            f"# version {agreed['authorised']} is authorised; in force since {agreed['at']}; "
            f"SHA-256 {agreed['plan']['sha256']}"
        )
        typer.echo(
            yaml.safe_dump(held.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            nl=False,
        )


@app.command(rich_help_panel=PANEL)
def report(
    learner: Learner,
    version: Annotated[
        int | None, typer.Argument(help="As history shows it; default: the current one.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file; default: in the learner's folder."),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures",
            help="Show the images that became wrong or right, where they are kept; needs --output, "
            "for what is written there is not found by held and purge.",
        ),
    ] = False,
) -> None:
    """Write the change report of a version: what changed, what was required, and the verdict."""
    with readable_errors():
        if pictures and output is None:
            raise ConfigError(["--pictures needs --output: outside the learner's folder"])
        from tasks.report_change import write_change_report

        folder = find(learner)
        number = folder.pointer()["current"] if version is None else version
        written = write_change_report(folder, number, output, pictures=pictures)
        out.print(Text(str(written)), soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def card(
    learner: Learner,
    version: Annotated[
        int | None, typer.Argument(help="As history shows it; default: the current one.")
    ] = None,
) -> None:
    """Print a version's model card and technical documentation, to be completed (Markdown).

    It has the order of Annex IV of the EU's AI Act; what the learner does not know is marked.
    """
    with readable_errors():
        from dynammo.reporting.card import write_card
        from tasks.report_card import card_of

        folder = find(learner)
        number = folder.pointer()["current"] if version is None else version
        typer.echo(write_card(card_of(folder, number)), nl=False)

"""The commands about a learner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynammo.errors import ConfigError, DataError
from flows.cli import server
from flows.cli.main import Params, PublicKey, Set, app, out, percent, readable_errors

if TYPE_CHECKING:
    from dynammo.learner.folder import LearnerFolder

Learner = Annotated[str, typer.Argument(help="Name of the learner: a folder in learners/.")]
Batches = Annotated[
    str | None, typer.Option("--tasks", "-t", help="Numbers of batches, such as 1,2,4.")
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key", "-k", help="File of the private key: signs the learner in the same step."
    ),
]
PANEL = "A learner"
FAILED, OUTSIDE = 3, 4  # exit status of an update in the plan that failed, and of one outside it


@app.command(rich_help_panel=PANEL)
def learn(
    learner: Annotated[
        str,
        typer.Argument(help="Name of the learner, or models:/dynammo-NAME@champion. New: made."),
    ],
    batch: Annotated[
        Path,
        typer.Argument(
            help="Folder with <class>/<image>, or train/<class>/ and test/<class>/; or a CSV with "
            "columns file,class and, if wanted, split and group."
        ),
    ],
    params: Params = None,
    set_: Set = None,
    modification: Annotated[
        list[str] | None,
        typer.Option(
            help="What the batch does not tell by itself: new_site, new_scanner or recalibrate. "
            "May be repeated."
        ),
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Learn a batch of images: new classes, more images of known ones, or both.

    The first batch makes the learner, later ones extend it. Once learnt, the images are not needed
    any more. Killed, the same command goes on. The learner is in learners/NAME, or in the folder
    DYNAMMO_LEARNERS. With a plan (dynammo plan), the exit status is 3 where the new version is in
    the plan and failed, and 4 where it is outside the plan.
    """
    with readable_errors():
        from dynammo.config import parse_overrides
        from tasks.fetch_learner import folder_for

        overrides = parse_overrides(set_ or [])
        folder_for(learner)  # what is wrong with names is said before a server is started
        if not batch.exists():
            raise DataError(f"{batch}: no such file or folder")
        server.ready()
        from flows.learn import learn as flow

        given = str(params) if params else None
        key = path_of(public_key)
        made = flow(learner, str(batch.absolute()), given, overrides, modification, key)
        show(made["learner"], made["version"])


@app.command(rich_help_panel=PANEL)
def history(
    learner: Annotated[str | None, typer.Argument(help="Name; default: all learners.")] = None,
) -> None:
    """List the versions of a learner: what each added, how good it is, which is champion."""
    with readable_errors():
        from dynammo.learner.folder import learners
        from tasks.support.version import learners_root

        if learner is None:
            for name in learners(learners_root()):
                out.print(Text(name))
            return
        out.print(_history(find(learner)))


@app.command(rich_help_panel=PANEL)
def forget(
    learner: Learner,
    tasks: Batches = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", "-c", help="A class. May be repeated.")
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", "-g", help="A patient: the images kept of them go.")
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Take batches, classes or a patient's images out again.

    Without a batch or a class the learner goes on as a new version; old versions still hold them
    (see purge). A patient's images and hashes are removed from all versions.
    """
    with readable_errors():
        if (tasks or class_) and group:
            raise ConfigError(["forget a group by itself, then batches or classes"])
        if not (tasks or class_ or group):
            raise ConfigError(["forget what? --tasks, --class or --group"])
        find(learner)
        server.ready()
        from flows.forget import forget as forget_flow
        from flows.purge import purge as purge_flow

        if group:
            removed = purge_flow(learner, None, group)["removed"]
            out.print(
                f"{removed} images removed from all versions. Adapters, statistics and heads are "
                "of many images together: what they learnt from these stays in them, until the "
                "batch is forgotten (--tasks)."
            )
            return
        made = forget_flow(learner, _numbers(tasks), class_, path_of(public_key))
        for remark in made["remarks"]:
            out.print(Text(f"stays: {remark}"), soft_wrap=True)
        show(learner, made["version"])


@app.command(rich_help_panel=PANEL)
def merge(
    learner: Learner,
    tasks: Batches = None,
    rule: Annotated[
        str | None, typer.Option("--rule", "-r", help="docs/reference/merging.md lists them.")
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Merge the adapters of some batches again, or of all by another rule. Forgets no class."""
    with readable_errors():
        if not (tasks or rule):
            raise ConfigError(["merge what? --tasks, --rule or both"])
        find(learner)
        server.ready()
        from flows.merge import merge as flow

        made = flow(learner, _numbers(tasks), rule, public_key=path_of(public_key))
        show(learner, made["version"])


@app.command(rich_help_panel=PANEL)
def rollback(
    learner: Learner,
    version: Annotated[int, typer.Argument(help="As history shows it.")],
    key: Key = None,
    public_key: PublicKey = None,
) -> None:
    """Go back to a version: it is champion, and learning goes on from it. Nothing is lost.

    It passed the gate, or was champion before (`promote --reason`).
    """
    with readable_errors():
        folder = find(learner)
        folder.version(version)
        server.ready()
        from flows.promote import promote as flow

        flow(learner, version, back=True, public_key=path_of(public_key), key=path_of(key))
        out.print(_history(folder))


@app.command(rich_help_panel=PANEL)
def promote(
    learner: Learner,
    version: Annotated[int, typer.Argument(help="As history shows it.")],
    reason: Annotated[
        str | None, typer.Option(help="Why, against the gate; recorded with the version.")
    ] = None,
    key: Key = None,
    public_key: PublicKey = None,
) -> None:
    """Make a version champion. One that did not pass the gate needs a reason."""
    with readable_errors():
        folder = find(learner)
        folder.version(version)
        server.ready()
        from flows.promote import promote as flow

        flow(learner, version, reason, public_key=path_of(public_key), key=path_of(key))
        out.print(_history(folder))


@app.command(rich_help_panel=PANEL)
def held(learner: Learner) -> None:
    """List all that is still held of single images, and where."""
    with readable_errors():
        from tasks.purge import held as list_held

        table = Table("what", "images", "kB", "versions", "file", box=SIMPLE_HEAD)
        folder = find(learner)
        for own in list_held(folder):
            table.add_row(
                own["what"],
                str(own["images"]),
                f"{own['bytes'] / 1e3:.1f}",
                ", ".join(map(str, own["versions"])),
                escape(str(Path(own["file"]).relative_to(folder.path))),
            )
        out.print(table)
        out.print(Text(f"All of it is in {folder.path}, and in its registered models in MLflow."))


@app.command(rich_help_panel=PANEL)
def purge(
    learner: Learner,
    tasks: Batches = None,
) -> None:
    """Remove the images that are held, from all versions and from MLflow; all, or some batches'.

    What was learnt stays. What can no longer be measured is said.
    """
    with readable_errors():
        find(learner)
        server.ready()
        from flows.purge import purge as flow

        removed = flow(learner, _numbers(tasks), None)["removed"]
        out.print(f"{removed} images removed from all versions.")


def path_of(key: Path | None) -> str | None:
    """As flows take it, which may run elsewhere."""
    return str(key.absolute()) if key else None


def find(name: str) -> LearnerFolder:
    """The folder of a learner that has learnt something."""
    from tasks.support.version import find_learner

    folder = find_learner(name)
    folder.pointer()  # there is one, and it can be read
    return folder


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError([f"--tasks {text!r}: expected numbers, such as 1,2,4"]) from None


def _history(folder: LearnerFolder) -> Table:
    from tasks.support.version import marks, read_version, recall_of

    pointer = folder.pointer()
    table = Table(
        "version", "from", "what", "classes", "recall", "", box=SIMPLE_HEAD, title=folder.name
    )
    for number in folder.numbers():
        document = read_version(folder, number)
        refused = (
            "outside the plan" if document["judgement"]["outcome"] == "outside" else "not passed"
        )
        told = marks(pointer, number, document)
        told += [] if document["gate"]["passed"] else [refused]
        classes = sum(len(own) for own in document["stage"]["tasks"])
        table.add_row(
            str(number),
            str(document["parent"] or "-"),
            escape(document["operation"]),
            str(classes),
            percent(recall_of(folder, document)),
            ", ".join(told),
        )
    return table


def show(name: str, number: int) -> None:
    """The version just made: its classes' recall beside the champion's, and where to look.

    Raises:
        typer.Exit: it did not pass the plan in force, or is outside it.
    """
    from dynammo.evaluation.protocol import IN_WORDS
    from tasks.report_change import report_of
    from tasks.support.version import WAITS, read_version, waits

    folder = find(name)
    document = read_version(folder, number)
    out.print(_history(folder))
    for check in document["gate"]["checks"]:
        if not check["passed"]:
            out.print(Text.assemble(("not champion: ", "yellow"), check["detail"]), soft_wrap=True)
    if not document["gate"]["passed"]:
        again = f"all the same: dynammo promote {name} {number} --reason '...'"
        out.print(Text(again), soft_wrap=True)
    if waits(folder.pointer(), number, document):
        out.print(Text(WAITS % (name, number)), soft_wrap=True)
    model = folder.path / "model"
    if model.is_dir():
        out.print(Text(f"model: dynammo predict --model {model} IMAGE..."), soft_wrap=True)
    judgement = document["judgement"]
    out.print(Text(f"report: {report_of(folder, number)}"), soft_wrap=True)
    if judgement["plan"]:
        outcome = judgement["outcome"]
        out.print(Text(f"version {number} is {IN_WORDS[outcome]}"), soft_wrap=True)
        if outcome != "passed":
            raise typer.Exit({"failed": FAILED, "outside": OUTSIDE}[outcome])

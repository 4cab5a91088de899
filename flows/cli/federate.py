"""The command for sites that share no images."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynammo.errors import ConfigError, DynammoError
from flows.cli import server
from flows.cli.learner import PANEL, show
from flows.cli.main import Params, Set, app, out, readable_errors

if TYPE_CHECKING:
    from dynammo.config import Config
    from dynammo.federated.site import SiteBatch


@app.command(rich_help_panel=PANEL)
def federate(
    learner: Annotated[str, typer.Argument(help="Name of the learner that is made.")],
    sites: Annotated[
        list[Path] | None, typer.Argument(help="Of a simulation: a batch for each site.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Hold the round here, on Flower's simulation.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would leave each site; send nothing.")
    ] = False,
    round_: Annotated[
        Path | None,
        typer.Option(
            "--round",
            help="Folder of the round: one that a server wrote, or where a simulated one goes "
            "(default: rounds/LEARNER).",
        ),
    ] = None,
    min_patients: Annotated[
        int, typer.Option(min=1, help="A class with fewer patients does not leave its site.")
    ] = 5,
    epsilon: Annotated[
        float,
        typer.Option(
            help="Of a simulated round: noise on statistics, differential privacy with this "
            "epsilon."
        ),
    ] = math.inf,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of a simulated round: how often sites train, each time on from what was merged.",
        ),
    ] = 1,
    params: Params = None,
    set_: Set = None,
) -> None:
    """Make a learner from sites that send adapters and class statistics, and no image.

    A simulated round runs in the Python that DYNAMMO_FLOWER_PYTHON names, where Flower is installed
    (docs/how-to/federated.md); without it, in this one.
    """
    with readable_errors():
        batches = [path.absolute() for path in sites or []]
        if simulate + dry_run + (not batches and round_ is not None) != 1:
            raise ConfigError(["one of: --simulate SITE..., --dry-run SITE..., --round FOLDER"])
        if not epsilon > 0:
            raise ConfigError([f"--epsilon must be above 0, got {epsilon:g}"])
        if (simulate or dry_run) and not batches:
            raise ConfigError(["name a folder or CSV for each site"])
        folder = (round_ or Path("rounds") / learner).absolute()
        if simulate or dry_run:
            config = _settings(learner, params, set_)
            if dry_run:
                for path in batches:
                    _list(path, config, min_patients, rounds, epsilon)
                return
        server.ready()
        if simulate:
            _simulate(config, folder, batches, min_patients, learner, epsilon, rounds)
        from flows.federate import federate as flow

        made = flow(learner, str(folder))
        show(made["learner"], made["version"])


def _settings(learner: str, params: Path | None, set_: list[str] | None) -> Config:
    from dynammo.config import parse_overrides
    from dynammo.config.reading import layered
    from dynammo.federated.merge import SETTINGS, check_federated
    from flows.support.arrival import configured
    from tasks.support.version import find_learner

    overrides = layered(SETTINGS, parse_overrides(set_ or []))
    config, _ = configured(find_learner(learner), str(params) if params else None, overrides)
    check_federated(config)
    return config


def _list(path: Path, config: Config, min_patients: int, rounds: int, epsilon: float) -> None:
    """What would leave a site, for whoever has to agree to it."""
    from dynammo.federated.judge import patients_tested
    from dynammo.federated.site import crossings, read_site

    batch = read_site(path, config, min_patients)
    rows = crossings(config, batch, epsilon)
    table = Table(
        *("message", "tensor", "shape", "type", "fewest patients", "bytes"),
        box=SIMPLE_HEAD,
        title=path.name,
    )
    for row in rows:
        shape = " x ".join(map(str, row.shape)) or "1"
        fewest = f"{row.fewest:,}"
        table.add_row(row.message, escape(row.tensor), shape, row.kind, fewest, f"{row.bytes:,}")
    out.print(table)
    smallest = min(batch.patients, key=lambda name: batch.patients[name])
    counts = ", ".join(f"{name} {count}" for name, count in batch.patients.items())
    size = sum(row.bytes * (rounds if row.message == "train" else 1) for row in rows)
    often = f" (those of train {rounds} times)" if rounds > 1 else ""
    lines = [
        f"{len(rows)} tensors{often}, {size:,} bytes; and in words the name "
        f"{path.stem}, the classes' names, and that it has {len(batch.training)} training images"
        + (f"; and {len(config.methods)} temperatures" if math.isinf(epsilon) else ""),
        f"patients by class: {counts}; fewest: {smallest}, {batch.patients[smallest]}",
    ]
    counted = patients_tested(batch.images, batch.patients, min_patients)
    tested = Counter(sample.label for sample in counted)
    if tested:
        told = ", ".join(f"{name} {count}" for name, count in tested.items())
        lines.append(f"counts of the answers to one test image of each patient: {told}")
    if batch.held_back:
        held = ", ".join(f"{name} {count}" for name, count in batch.held_back.items())
        lines.append(f"held back, with fewer than {min_patients} patients: {held}")
    lines += _columns(batch, min_patients, epsilon)
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def _columns(batch: SiteBatch, min_patients: int, epsilon: float) -> list[str]:
    """What is said of clinical columns, and what is not."""
    lines, told = [], batch.columns
    if math.isfinite(epsilon):
        if told.names:
            names = ", ".join(told.names)
            lines.append(f"not told, since statistics have noise (--epsilon): {names}")
    else:
        values = [
            f"{name} {', '.join(sorted(own))}" for name, own in told.counts["categories"].items()
        ]
        if values:
            lines.append(f"values that are named: {'; '.join(values)}")
        held = [
            f"{name} of {label} ({', '.join(own)})"
            for name, of_class in told.held_back.items()
            for label, own in of_class.items()
        ]
        if held:
            why = f"so that no count is of fewer than {min_patients} patients"
            lines.append(f"held back, {why}: {'; '.join(held)}")
    if batch.absent:
        absent = ", ".join(batch.absent)
        lines.append(f"columns that the learner asks for and that are not here: {absent}")
    return lines


def _simulate(
    config: Config,
    folder: Path,
    sites: list[Path],
    min_patients: int,
    learner: str,
    epsilon: float,
    rounds: int,
) -> None:
    """Hold a round in the Python that has Flower: its pins are not those of Prefect."""
    from dynammo.checkpoint import to_json, write_atomically
    from tasks.support.version import find_learner

    python = os.environ.get("DYNAMMO_FLOWER_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory(prefix="dynammo-round-") as temporary:
        settings = Path(temporary) / "config.json"
        write_atomically(settings, to_json(config.model_dump(mode="json")))
        command = [python, "-m", "dynammo.federated", str(settings), str(folder)]
        command += [*map(str, sites), "--min-patients", str(min_patients)]
        command += ["--learner", str(find_learner(learner).path), "--epsilon", str(epsilon)]
        command += ["--rounds", str(rounds)]
        (folder / "round.json").unlink(missing_ok=True)  # of an earlier round
        try:
            ended = subprocess.run(command, check=False).returncode
        except OSError as error:
            raise DynammoError(f"cannot start {python}: {error.strerror}") from None
        if ended or not (folder / "round.json").is_file():
            raise DynammoError("the round has failed; the lines above say why")

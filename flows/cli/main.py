"""The command line `dynammo`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dynammo.errors import ConfigError, DataError, expected_line
from flows.cli.answers import Format, answers_to, format_of

app = typer.Typer(
    name="dynammo",
    help="Teach a deployed image classifier new classes: one adapter a task, all merged into one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

Params = Annotated[
    Path | None,
    typer.Option(
        "--params", "-p", help="YAML configuration; default: params.yaml if there is one."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a setting, such as train.epochs=3. May be repeated.",
    ),
]
Model = Annotated[
    Path, typer.Option("--model", "-m", help="Folder of a model: results/<name>/model.")
]
PublicKey = Annotated[
    Path | None,
    typer.Option(
        envvar="DYNAMMO_PUBLIC_KEY",
        help="File of a public key: what it has not signed (dynammo sign) is refused.",
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        envvar="DYNAMMO_PREDICTION_LOG",
        help="Prediction log: a line is appended for every answer before it is given.",
    ),
]


class Engine(StrEnum):
    """What computes the answers."""

    onnx = "onnx"
    torch = "torch"


@app.callback()
def stop_in_order() -> None:
    """SIGTERM ends the program as Ctrl-C does, so that what it was doing is put in order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@app.command()
def run(params: Params = None, set_: Set = None) -> None:
    """Run the whole pipeline: train, merge, fit heads, evaluate, register. Needs no server.

    Killed or failed, the same command takes up where it stopped.
    """
    with readable_errors():
        from dynammo.config import load_config, parse_overrides

        overrides = parse_overrides(set_ or [])
        config = load_config(_params(params), overrides)  # a bad one is refused at once
        from flows.cli.show import run_locally

        run_locally(config, _params(params), overrides)


@app.command()
def config(
    params: Params = None,
    set_: Set = None,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", help="The reference of all settings, docs/reference/configuration.md."
        ),
    ] = False,
) -> None:
    """Print the configuration that `run` would use, every setting with its meaning."""
    with readable_errors():
        from dynammo.config import load_config, parse_overrides
        from dynammo.config.text import to_markdown, to_yaml

        chosen = load_config(_params(params), parse_overrides(set_ or []))
        # Not by rich: it would wrap long lines.
        typer.echo(to_markdown() if markdown else to_yaml(chosen), nl=False)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model,
    format_: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="Default: as the file's name ends, else csv."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; default: the terminal.")
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="Default: onnx where the model has its graph, else torch."),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="Of ONNX Runtime: cuda, coreml, directml, openvino, cpu or tensorrt. Default: the "
            "first of these that works here, but not tensorrt; dynammo doctor says which."
        ),
    ] = None,
    public_key: PublicKey = None,
    log: Log = None,
    dicom_sr: Annotated[
        Path | None,
        typer.Option(
            "--dicom-sr", help="Folder for a DICOM Structured Report on each image or series."
        ),
    ] = None,
    fhir: Annotated[
        Path | None,
        typer.Option("--fhir", help="Folder for a FHIR R4 DiagnosticReport on each image."),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option("--codes", help="Of classes in reports, CSV: class,code,scheme,meaning."),
    ] = None,
    clinical: Annotated[
        Path | None,
        typer.Option(
            "--clinical", help="CSV with file and columns such as age, which the model has learnt."
        ),
    ] = None,
    fast_jpeg: Annotated[
        bool,
        typer.Option(
            "--fast-jpeg", help="Decode big JPEGs at a part of their size: other answers, somewhat."
        ),
    ] = False,
) -> None:
    """Classify images: the most probable class, and every class's probability.

    An image that cannot be read has its error in its row; the others are classified, and the exit
    status is 1, as where there can be no report on an image. The log has model, answer, time and
    the image's SHA-256, no name (verify-log).
    """
    with readable_errors():
        from dynammo.checkpoint import check_writable
        from dynammo.data.formats.pictures import HashedFile
        from dynammo.deploy.graph import has_graph, load_predictor
        from dynammo.deploy.log import PredictionLog
        from flows.cli.answers import clinical_of
        from flows.cli.reports import Reports

        form = format_of(output, format_)
        if output is not None:
            check_writable(output)  # before all the work, not after it
        predictor = load_predictor(model, engine, public_key=public_key, provider=provider)
        files = list(image_files(images, predictor.form.volumes))
        if engine is None and not has_graph(model):
            err.print(Text(f"{model} has no ONNX graph: torch answers"), soft_wrap=True)
        predictor.fast_jpeg = fast_jpeg
        beside = clinical_of(clinical, predictor, files)
        reports = Reports(dicom_sr, fhir, codes, model, predictor)
        logged = PredictionLog(log, predictor.model_sha256) if log else None
        bad: list[DataError] = []
        unreported: list[DataError] = []
        with (
            answers_to(output, form, predictor.classes, predictor.gives) as write,
            _progress("classify", "image") as progress,
        ):
            # Hashed for the log and reports alone.
            hashed = logged or reports
            sources: list[Path | HashedFile] = [HashedFile(f) if hashed else f for f in files]
            stream = zip(sources, predictor.stream(sources, beside), strict=True)
            for done, (file, answer) in enumerate(stream, start=1):
                if isinstance(answer, DataError):
                    bad.append(answer)
                elif isinstance(file, HashedFile):
                    if logged:
                        logged.append([(file.sha256, answer)])
                    if reports:
                        try:
                            reports.write(file, answer)
                        except DataError as error:
                            unreported.append(error)
                write(str(file), answer)
                progress(done, len(files))
        if output is not None:
            line = f"{len(files) - len(bad)} predictions written to {output}"
            err.print(Text(line), soft_wrap=True)
        problems = [
            f"{len(found)} of {len(files)} images have no {what}; first: {found[0]}"
            for what, found in (("answer", bad), ("report", unreported))
            if found
        ]
        if problems:
            raise DataError(problems)


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="Name of a learner or run: its champion; or models:/NAME/VERSION.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
    host: Annotated[
        str, typer.Option(help="Address to answer at. Whoever reaches it may ask.")
    ] = "127.0.0.1",
) -> None:
    """Answer requests by HTTP with a registered model, until Ctrl-C.

    Requests and answers are those of `mlflow models serve`; docs/how-to/deploying.md has examples.
    """
    with readable_errors():
        from tasks.support.mlflow.serving import make_app, run

        uri = model if model.startswith("models:/") else f"models:/dynammo-{model}@champion"
        application = make_app(uri)
        line = f"{uri} answers at http://{host}:{port}/invocations; Ctrl-C ends it"
        out.print(Text(line), soft_wrap=True)
        run(application, host, port)


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(help="Folder with test/<class>/* or <class>/*, or a CSV manifest."),
    ],
    model: Model,
) -> None:
    """Measure a model on labelled images: accuracy, and recall and precision of every class."""
    with readable_errors():
        from flows.cli.show import evaluate_model

        with _progress("classify", "image") as progress:
            measured = evaluate_model(model, data, progress)
        table = Table("class", "images", "recall", "precision", title=escape(str(data)))
        for name, row in measured["per_class"].items():
            table.add_row(
                escape(name),
                str(row["support"]),
                percent(row["recall"]),
                percent(row["precision"]),
            )
        out.print(table)
        if found := measured.get("per_group"):
            together = Table("classes taken together", "images", "answered with one of them")
            for name, row in found.items():
                named = escape(f"{name} ({', '.join(row['classes'])})")
                together.add_row(named, str(row["support"]), percent(row["recall"]))
            out.print(together)
        out.print(
            f"accuracy {percent(measured['accuracy'])}, "
            f"mean class recall {percent(measured['mean_class_recall'])}"
        )
        if "hierarchical_cost" in measured:
            out.print(
                f"hierarchical cost {measured['hierarchical_cost']:.3f} (0: right; 1: no group in "
                "common with the right class)"
            )
        if sets := measured["prediction_sets"]:
            out.print(
                f"prediction sets hold the class of {percent(sets['coverage'])} of the images, "
                f"with {sets['size']:.1f} classes on average"
            )
        if (unknown := measured["unknown"]) is not None:
            out.print(f"{percent(unknown)} of the images are called unknown, wrongly")


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="Results folders, such as results/digits.")],
) -> None:
    """Put runs side by side: the accuracy, forgetting and cost of every method."""
    with readable_errors():
        from flows.cli.show import comparison

        out.print(comparison(results))


@app.command()
def benchmark(
    grid: Annotated[Path, typer.Argument(help="A grid: benchmarks/grids/*.yaml, or your own.")],
    set_: Set = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Only this data set of the grid. May be repeated.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method of the grid. May be repeated.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="This seed instead of the grid's. May be repeated.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="Where a data set is. May be repeated."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="A column of another program's scores, FOLDER/DATA/SEED.csv "
            "(benchmarks/measurements/methods.md).",
        ),
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(help="sequential, process, dask or ray; default: what the grid says."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Cells at a time.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the cells, what is done, and what the rest may cost."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the log of every cell.")
    ] = False,
) -> None:
    """Run data sets x methods x seeds, and write one report on all of them.

    What is done is not run again: killed or failed, the same command goes on. A cell that fails
    does not stop the others. Results are in results/<grid>/, the report in its folder report/.

    dynammo benchmark benchmarks/grids/medical.yaml --data skin8 --seed 1 --dry-run
    """
    with readable_errors():
        from dynammo.config import parse_overrides

        asked: dict[str, Any] = {
            "overrides": parse_overrides(set_ or []),
            "data": data,
            "methods": method,
            "seeds": seed,
            "paths": {key: str(value) for key, value in parse_overrides(path or []).items()},
            "scores": {key: str(value) for key, value in parse_overrides(scores or []).items()},
            "runner": runner,
            "workers": workers,
        }
        if not verbose:  # read by Prefect when it is imported, also in other processes
            os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
        from flows.cli.grid import run_grid, show_plan

        if dry_run:
            out.print(show_plan(str(grid), asked))
        else:
            out.print(run_grid(str(grid), asked))


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(help="Data set that is fetched: digits, cifar100, medmnist.")
    ],
    folder: Annotated[
        Path, typer.Argument(help="Where to write train/<class>/* and test/<class>/*.")
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="KEY=VALUE",
            help="An option of the set, such as 'sets=[bloodmnist]'. May be repeated.",
        ),
    ] = None,
) -> None:
    """Write a data set as image files: the layout your own images should have."""
    with readable_errors():
        from dynammo.config import parse_overrides
        from dynammo.data.sources.about import written_sources
        from dynammo.data.sources.loading import load_source

        if source not in (known := written_sources()):
            names = ", ".join(known)
            raise ConfigError([f"{source!r} is no data set that can be written; known: {names}"])
        count = len(load_source(source, folder, parse_overrides(option or [])).samples)
        out.print(Text(f"{count} images in {folder}"), soft_wrap=True)


@app.command()
def datasets(
    name: Annotated[str | None, typer.Argument(help="One of them, to see all about it.")] = None,
) -> None:
    """List what data.source may be: licence, size, classes, citation, published protocol."""
    with readable_errors():
        from dataclasses import asdict

        from dynammo.data import DATA_SOURCES
        from dynammo.data.sources.about import about

        for source in DATA_SOURCES if name is None else [name]:
            values = asdict(about(source))
            del values["written"]
            if name is None:
                del values["layout"], values["options"]
            # Not by rich: it would wrap addresses.
            typer.echo(f"{source}: {values.pop('title')}")
            for key, value in values.items():
                typer.echo(f"    {key + ':':10} {value or 'none'}")
        if name is None:
            typer.echo("What data.path must hold, and the options: dynammo datasets NAME")


@app.command("export-model")
def export_model(
    model: Annotated[
        Path, typer.Argument(help="Results folder, or folder of a model: results/<name>/model.")
    ],
    folder: Annotated[Path, typer.Argument(help="Made; an earlier export in it is replaced.")],
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help="safetensors, pt2 or onnx; may be repeated. Default: these three. executorch, for "
            'phones, needs: pip install "dynammo[executorch]".',
        ),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            help="Images, or folders of them, to compare the answers on; may be repeated. "
            "Default: crops of two photographs.",
        ),
    ] = None,
    monai_bundle: Annotated[
        bool, typer.Option("--monai-bundle", help="A MONAI bundle around the program (pt2).")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="The ONNX graph in 8 bits; without -f, it alone."),
    ] = False,
    prune: Annotated[
        float | None,
        typer.Option(
            help="The ONNX graph with fewer channels: with this share of its multiplications, say "
            "0.6; without -f, it alone. With --int8, both."
        ),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            help="For --int8 and --prune, a folder or CSV of labelled images as learn takes them: "
            "by its training images the graph is made, by its test images judged. Default: those "
            "that the learner has kept, if MODEL is one's folder."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Of mean class recall, in points: --int8 and --prune may cost no more. Default: "
            "0.5, with --prune 1."
        ),
    ] = None,
) -> None:
    """Write a model as safetensors, torch.export program and ONNX, and check their answers."""
    with readable_errors():
        from dynammo.deploy import export as forms
        from dynammo.deploy.bundle import export_bundle
        from flows.cli.trial import costs, described, trial_of

        images = list(image_files(check, described(model).form.volumes)) if check else None
        smaller = None
        if int8 or prune is not None:
            most = max_drop if max_drop is not None else 0.5 if prune is None else 1.0
            if not 0 <= most <= 100:  # NaN is neither
                raise ConfigError(["--max-drop: expected a number from 0 to 100"])
            share = 0.6 if prune is None else prune
            if not 0 < share < 1:
                raise ConfigError(["--prune: expected a share between 0 and 1"])
            smaller = forms.Smaller(trial_of(model, labelled), most / 100, share)
        if monai_bundle and (format_ or smaller):
            raise ConfigError(
                ["--monai-bundle has its own format: leave --format, --int8 and --prune out"]
            )
        minutes = "; a smaller model is tried in many ways" if smaller else ""
        with err.status(f"writing, and comparing the answers{minutes} ..."):
            if monai_bundle:
                report = export_bundle(model, folder, images)
            else:
                report = forms.export_model(
                    model,
                    folder,
                    format_ or (["onnx"] if smaller else forms.FORMATS),
                    images,
                    int8=smaller if int8 else None,
                    pruned=smaller if prune is not None else None,
                )
        title = escape(str(folder))
        table = Table("file", "MB", "logits differ by", "probabilities by", title=title)
        for file in report["files"].values():
            differences = (file["logit_difference"], file["probability_difference"])
            size = f"{file['bytes'] / 1e6:.1f}"
            table.add_row(escape(file["name"]), size, *(f"{value:.1e}" for value in differences))
        out.print(table)
        logits, probability = report["tolerance"]["logits"], report["tolerance"]["probability"]
        checked = report["checked_on"]
        out.print(
            f"Compared with the model on {checked['images']} images ({checked['what']}). "
            f"Tolerated: {logits:.0e} of the largest logit, {probability:.0e} of probability"
            f"{' before it was made smaller' if smaller else ''}."
        )
        for line in costs(report):
            out.print(line)


@app.command()
def doctor(params: Params = None) -> None:
    """Check environment, weights, data and servers, and say what is wrong."""
    from flows.cli.doctor import checks

    failed = False
    for name, problem, detail in checks(_params(params)):
        mark = ("problem", "red") if problem else ("     ok", "green")
        out.print(Text.assemble(mark, f"  {name}: {detail}"), soft_wrap=True)
        failed = failed or problem
    raise typer.Exit(1 if failed else 0)


@contextmanager
def readable_errors() -> Iterator[None]:
    """An expected error becomes its message on standard error and exit status 1."""
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads on, as behind `| head`: nobody to tell, either
    except Exception as error:
        line = expected_line(error)
        if line is None:
            raise
        # A name that is not UTF-8 could not be printed.
        line = line.encode(errors="backslashreplace").decode()
        # As text: square brackets in a message are no markup. Not wrapped: paths stay whole.
        err.print(Text.assemble(("error:", "red"), f" {line}"), soft_wrap=True)
        raise typer.Exit(1) from None


@contextmanager
def _progress(what: str, unit: str) -> Iterator[Any]:
    from tasks.support.progress import progress_bar

    with progress_bar(what, unit) as progress:
        yield progress


def _params(given: Path | None) -> str | None:
    default = Path("params.yaml")
    if given is None:
        return str(default) if default.is_file() else None
    return str(given)


def image_files(paths: list[Path], volumes: bool = False) -> Iterator[Path]:
    """The files that are named, and those of the folders that are; of volumes, folders of slices
    as they are.
    """
    from dynammo.data.sources.folder import holds_slices, is_utf8
    from dynammo.data.sources.folder import image_files as files_in

    for path in paths:
        if path.is_dir():
            yield from [path] if volumes and holds_slices(path) else files_in(path, volumes)
        elif path.is_file():
            if not is_utf8(str(path)):
                raise DataError(f"{str(path)!a}: the name is not UTF-8")
            yield path
        else:
            raise DataError(f"{path}: no such file or folder")


def percent(value: float | None) -> str:
    """A share, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}%"

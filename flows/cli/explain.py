"""The command that shows where a class is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dynammo.errors import ConfigError, DataError
from flows.cli.main import Model, PublicKey, app, err, image_files, readable_errors

if TYPE_CHECKING:
    from dynammo.deploy.predictor import Predictor
    from dynammo.deploy.similar import Remembered


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the heat maps.")],
    label: Annotated[
        str | None, typer.Option(help="Class to look for; default: each image's most probable.")
    ] = None,
    dicom: Annotated[
        bool,
        typer.Option("--dicom", help="Of DICOM images: Secondary Captures that refer to them."),
    ] = False,
    similar: Annotated[
        str | None,
        typer.Option(
            metavar="LEARNER",
            help="Below each, the pictures in this learner's memory that the model sees most like "
            "it. They are of patients, and the files yours to look after.",
        ),
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Show where in each image a class is seen: NAME-heat-map.png, or .dcm.

    Red speaks for the class, blue against it. It shows what the model goes by, which may be wrong.
    """
    with readable_errors():
        from dynammo.checkpoint import check_writable, write_atomically
        from dynammo.data.formats.pictures import load_image
        from dynammo.deploy.graph import load_predictor
        from dynammo.deploy.predictor import Predictor
        from dynammo.reporting.figures import to_png
        from dynammo.reporting.heat_map import explain as draw
        from tasks.support.progress import progress_bar

        if similar and dicom:
            raise ConfigError(["--similar shows other patients, which no study may (--dicom)"])
        predictor = load_predictor(model, "torch", public_key=public_key)
        assert isinstance(predictor, Predictor)
        targets: dict[Path, Path] = {}
        for file in image_files(images, predictor.form.volumes):
            stem = file.name if file.is_dir() else file.stem
            target = output / f"{stem}-heat-map.{'dcm' if dicom else 'png'}"
            if target in targets:
                raise DataError(f"{targets[target]} and {file} would share {target}: one at a time")
            check_writable(target)
            targets[target] = file
        if label is not None and label not in predictor.classes:
            raise ConfigError([f"no class {label!r}; the model knows {predictor.classes}"])
        remembered = _remembered(similar, model, output, predictor) if similar else None
        as_file = _as_dicom(model, predictor) if dicom else None
        bad: list[str] = []
        with progress_bar("explain", "image") as progress:
            for done, (target, file) in enumerate(targets.items(), start=1):
                try:
                    picture = load_image(file, predictor.form)
                    figure, shown = draw(predictor, picture, label, remembered)
                    content = to_png(figure)
                    write_atomically(target, as_file(file, content, shown) if as_file else content)
                except DataError as error:
                    bad.append(str(error))
                progress(done, len(targets))
        line = f"{len(targets) - len(bad)} heat maps written to {output}"
        err.print(Text(line), soft_wrap=True)
        if bad:
            raise DataError(f"{len(bad)} of {len(targets)} images have none; first: {bad[0]}")


def _remembered(learner: str, model: Path, output: Path, predictor: Predictor) -> Remembered:
    from dynammo.deploy.similar import remember
    from flows.cli.learner import find
    from tasks.kept_pictures import kept_pictures

    folder = find(learner)
    if output.absolute().resolve().is_relative_to(folder.path.resolve()):
        raise ConfigError(["pictures are written outside the learner's folder only"])
    return remember(predictor, *kept_pictures(folder, model))


def _as_dicom(model: Path, predictor: Predictor) -> Callable[[Path, bytes, str], bytes]:
    """A function of an image's file, its heat map as PNG and the class: a Secondary Capture."""
    from dynammo.data.formats.dicom import read_headers
    from dynammo.data.formats.pictures import HashedFile, decode
    from dynammo.deploy.dicom_report import heat_map_image
    from dynammo.deploy.finding import read_device

    device = read_device(model, predictor.model_sha256)

    def convert(file: Path, png: bytes, label: str) -> bytes:
        try:
            headers = read_headers(HashedFile(file).read())
            if not headers:
                raise DataError("it is no DICOM file, so that no DICOM image can refer to it")
            return heat_map_image(headers, decode(png), device, label)
        except DataError as error:
            raise DataError(f"{file}: {error}") from None

    return convert

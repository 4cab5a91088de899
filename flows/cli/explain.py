"""The command that shows where a class is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from dynammo.errors import ConfigError, DataError
from flows.cli.main import Model, PublicKey, app, err, image_files, readable_errors


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the heat maps.")],
    label: Annotated[
        str | None, typer.Option(help="Class to look for; default: each image's most probable.")
    ] = None,
    public_key: PublicKey = None,
) -> None:
    """Show where in each image a class is seen: NAME-heat-map.png.

    Red speaks for the class, blue against it. It shows what the model goes by, which may be wrong.
    """
    with readable_errors():
        from dynammo.checkpoint import check_writable
        from dynammo.data.formats.pictures import load_image
        from dynammo.deploy.graph import load_predictor
        from dynammo.deploy.predictor import Predictor
        from dynammo.reporting.figures import save_figure
        from dynammo.reporting.heat_map import explain as draw
        from tasks.support.progress import progress_bar

        targets: dict[Path, Path] = {}
        for file in image_files(images):
            target = output / f"{file.stem}-heat-map.png"
            if target in targets:
                raise DataError(f"{targets[target]} and {file} would share {target}: one at a time")
            check_writable(target)
            targets[target] = file
        predictor = load_predictor(model, "torch", public_key=public_key)
        assert isinstance(predictor, Predictor)
        if label is not None and label not in predictor.classes:
            raise ConfigError([f"no class {label!r}; the model knows {predictor.classes}"])
        bad: list[str] = []
        with progress_bar("explain", "image") as progress:
            for done, (target, file) in enumerate(targets.items(), start=1):
                try:
                    picture = load_image(file, predictor.size)
                except DataError as error:
                    bad.append(str(error))
                else:
                    save_figure(draw(predictor, picture, label), target)
                progress(done, len(targets))
        line = f"{len(targets) - len(bad)} heat maps written to {output}"
        err.print(Text(line), soft_wrap=True)
        if bad:
            raise DataError(f"{len(bad)} of {len(targets)} images have none; first: {bad[0]}")

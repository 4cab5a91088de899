"""Call a data source by its name, with its options checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynammo.clinical import check_numbers
from dynammo.data import DATA_SOURCES
from dynammo.data.samples import ImageSet
from dynammo.errors import ConfigError

if TYPE_CHECKING:
    from dynammo.config import Config


def load_data(config: Config) -> ImageSet:
    """The images that a configuration names, with the columns it names beside them.

    Raises as `load_source` does, and `DataError` where a clinical number is none.
    """
    data, path, clinical = config.data, Path(config.data.path), config.clinical
    images = load_source(data.source, path, data.options, config.image.form.volumes, clinical.names)
    check_numbers(path, images, clinical.numbers)
    return images


def load_source(
    name: str,
    path: Path,
    options: Mapping[str, Any] | None = None,
    volumes: bool = False,
    columns: Sequence[str] = (),
) -> ImageSet:
    """`DATA_SOURCES[name](path, **options)`.

    Args:
        name: of the source.
        path: `data.path`.
        options: `data.options`, keyword arguments of the source.
        volumes: images are volumes (`image.slices`), which a source whose listing depends on it is
            told.
        columns: what is known beside the images (`clinical`), which only some sources know.

    Raises:
        ConfigError: an unknown source, or options that it does not take, or
            lacks; columns that it does not know.
        DataError: see the source.
    """
    source = DATA_SOURCES[name]
    takes, told = signature(source).parameters, {"volumes": volumes, "columns": columns}
    if columns and "columns" not in takes:
        raise ConfigError(
            [f"clinical: {name} knows no columns ({', '.join(columns)}); csv and dicom do"]
        )
    known = [own for own in list(takes)[1:] if own not in told]
    if unknown := sorted(set(options or {}) - set(known)):
        other = f"known: {', '.join(known)}" if known else "it takes none"
        raise ConfigError(
            [f"data.options: {name} has no option {key!r}; {other}" for key in unknown]
        )
    for key, parameter in list(takes.items())[1:]:
        if parameter.default is Parameter.empty and key not in (options or {}):
            raise ConfigError([f"data.options: {name} needs {key}; see: dynammo datasets {name}"])
    return source(
        path, **(options or {}), **{key: value for key, value in told.items() if key in takes}
    )

"""Images, their validation, and the order in which their classes arrive.

A data source is a function `source(path: Path, **options) -> ImageSet` that lists files without
decoding them; the options are those of `data.options`. To add one, write a file here and a line
below; a constant `ABOUT` in the file (`dynammo/data/sources/about.py`) says what `dynammo datasets`
shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo.registry import Registry

if TYPE_CHECKING:  # importing the table imports no part
    from dynammo.data.base import DataSource

DATA_SOURCES: Registry[DataSource] = Registry(
    "data source",
    {
        "digits": "dynammo.data.sources.digits:load",
        "folder": "dynammo.data.sources.folder:load",
        "csv": "dynammo.data.sources.csv_manifest:load",
        "dicom": "dynammo.data.sources.dicom:load",
        "cifar100": "dynammo.data.sources.cifar100:load",
        "path16": "dynammo.data.sources.path16:load",
        "skin8": "dynammo.data.sources.skin8:load",
        "medmnist": "dynammo.data.sources.medmnist:load",
    },
    group="dynammo.data_sources",
)

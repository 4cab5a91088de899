"""Images, their validation, and the order in which their classes arrive.

A data source is a function `source(path: Path, **options) -> ImageSet` that lists files without
decoding them; the options are those of `data.options`. To add one, write a file here and a line
below; a constant `ABOUT` in the file (`dynammo/data/about.py`) says what `dynammo datasets` shows.
"""

from dynammo.registry import Registry

DATA_SOURCES = Registry(
    "data source",
    {
        "digits": "dynammo.data.digits:load",
        "folder": "dynammo.data.folder:load",
        "csv": "dynammo.data.csv_manifest:load",
        "dicom": "dynammo.data.dicom:load",
        "cifar100": "dynammo.data.cifar100:load",
        "path16": "dynammo.data.path16:load",
        "skin8": "dynammo.data.skin8:load",
        "medmnist": "dynammo.data.medmnist:load",
    },
)

"""Images, their validation, and the order in which their classes arrive.

A data source is a function `source(path: Path) -> ImageSet` that lists files without decoding them.
To add one, write a file here and a line below.
"""

from dynammo.registry import Registry

DATA_SOURCES = Registry(
    "data source",
    {
        "digits": "dynammo.data.digits:load",
        "folder": "dynammo.data.folder:load",
        "csv": "dynammo.data.csv_manifest:load",
    },
)

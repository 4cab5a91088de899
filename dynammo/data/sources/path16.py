"""PATH16: 16 classes of histology images, put together from seven public sets.

The benchmark of ACL (arXiv 2304.09042). Orders 4 and 5 of its tasks are those of the authors' code
(github.com/GiantJun/CL_Pytorch, `datasets/path16.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dynammo.data.samples import ImageSet, Sample
from dynammo.data.sources import folder
from dynammo.data.sources.about import About
from dynammo.errors import DataError

# Parts and their numbers of classes.
PARTS = {
    "MHIST": 2,
    "breast_cancer": 2,
    "oral_cancer": 2,
    "Patch_Camelyon": 2,
    "TCGA_STD": 4,
    "lung": 2,
    "colon": 2,
}

ABOUT = About(
    title="PATH16, histology of seven organs and diseases",
    source="collected by the authors of ACL, https://github.com/GiantJun/CL_Pytorch; no download "
    "is known to us",
    licence="that of each part; ask the publishers of the seven sets",
    size="about 12,800 train, 1,600 test (800 and 100 a class)",
    classes="16: " + ", ".join(f"{part} {count}" for part, count in PARTS.items()),
    citation="W. Zhang et al.: Adapter Learning in Pretrained Feature Extractor for Continual "
    "Learning of Diseases, MICCAI 2023, arXiv 2304.09042",
    protocol="7 tasks, one a part, memory 80, accuracy: benchmarks/protocols/path16-order4.yaml, "
    "path16-order5.yaml",
    layout="a folder with <part>/train/<class>/* and <part>/test/<class>/* for each part",
)


def load(path: Path) -> ImageSet:
    """The seven parts as one image set, whose classes are named `<part>.<class>`.

    A part's classes are the names of its folders, the same in train and in test; their order is
    that of the names. (The authors' code numbers them as the file system lists them, in train and
    in test separately, which may differ.) A task is all classes of a part:
    `scenario.tasks: [["colon.*"], ["lung.*"], ...]`.

    Args:
        path: folder that holds the parts.

    Raises:
        DataError: a part is missing, has another number of classes, or is not laid out as
            `dynammo.data.sources.folder` wants it. All problems at once.
    """
    root = path.absolute()
    problems: list[str] = []
    samples: list[Sample] = []
    for part, count in PARTS.items():
        if not (root / part).is_dir():
            problems.append(f"{root / part}: no such folder; expected {part}/train/<class>/<image>")
            continue
        try:
            found = folder.load(root / part)
        except DataError as error:
            problems += [
                text if text.startswith(str(root)) else f"{part}: {text}" for text in error.problems
            ]
            continue
        if len(found.classes) != count:
            names = ", ".join(found.classes)
            problems.append(
                f"{root / part}: {len(found.classes)} classes ({names}); expected {count}"
            )
        samples += [
            replace(sample, file=f"{part}/{sample.file}", label=f"{part}.{sample.label}")
            for sample in found.samples
        ]
    if problems:
        raise DataError(problems)
    return ImageSet(root, tuple(samples))

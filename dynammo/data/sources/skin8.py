"""SKIN8: the eight diagnoses of ISIC 2019, dermatoscopic images.

The benchmark of ACL (arXiv 2304.09042) is a selection of ISIC 2019; its lists of images are in the
authors' code (github.com/GiantJun/CL_Pytorch, `datasets/skin8_train_500.txt` and
`skin8_test_500.txt`).
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections import Counter
from pathlib import Path, PurePosixPath

from dynammo.data.samples import ImageSet, list_samples
from dynammo.data.sources.about import About
from dynammo.data.sources.folder import image_files
from dynammo.errors import ConfigError, DataError

ABOUT = About(
    title="SKIN8, dermatoscopic images with eight diagnoses (ISIC 2019)",
    source="https://challenge.isic-archive.com/data/#2019",
    licence="CC BY-NC 4.0",
    size="published lists: 3,555 train, 705 test; all of ISIC 2019: 25,331",
    classes="8: AK, BCC, BKL, DF, MEL, NV, SCC, VASC",
    citation="P. Tschandl et al. 2018, arXiv 1803.10417; N. Codella et al. 2018, arXiv 1710.05006; "
    "M. Combalia et al. 2019, arXiv 1908.02288; lists: W. Zhang et al. 2023, arXiv 2304.09042",
    protocol="4 tasks of 2 classes, memory 40, mean class recall: benchmarks/protocols/skin8.yaml",
    layout="a folder with ISIC_2019_Training_GroundTruth.csv, ISIC_2019_Training_Metadata.csv and "
    "the images, in any folders below it; for split: published also skin8_train_500.txt and "
    "skin8_test_500.txt",
    options="split: lesion (default) or published; per_class: at most so many images a class with "
    "split: lesion (default 600; null: all)",
)

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"
LISTS = {"train": "skin8_train_500.txt", "test": "skin8_test_500.txt"}

_log = logging.getLogger(__name__)


def load(path: Path, split: str = "lesion", per_class: int | None = 600) -> ImageSet:
    """Images of ISIC 2019 with their diagnosis.

    `split: lesion`: a lesion, which often has several images, is wholly in train or wholly in test.
    It is a test lesion if the first 32 bits of the SHA-256 of its id, over 2^32, are below 1/6: the
    share of the published lists, and independent of which other images there are. An image without
    a lesion id counts as a lesion of its own. Of each class at most `per_class` images are taken, a
    sixth of them for test, those whose lesions have the smallest hashes.

    `split: published`: the lists of the authors of ACL. They were not drawn by lesion: how many
    lesions are in both splits is logged, and groups are left out, for otherwise the set would be
    refused.

    Args:
        path: folder with the two CSVs and the images, see `ABOUT.layout`.
        split: "lesion" or "published".
        per_class: the largest number of images a class, at least 6; None: all.

    Raises:
        ConfigError: an unknown split, or a bad number.
        DataError: CSVs, lists or images are missing, or rows are wrong. All problems of a kind at
            once.
    """
    problems = []
    if split not in ("lesion", "published"):
        problems.append(f"data.options.split must be lesion or published, got {split!r}")
    if per_class is not None and (not isinstance(per_class, int) or per_class < 6):
        problems.append(f"data.options.per_class must be at least 6, or null, got {per_class!r}")
    if problems:
        raise ConfigError(problems)
    root = path.absolute()
    truth = _diagnoses(root / TRUTH)
    lesions = _lesions(root / METADATA)
    if unknown := sorted(set(truth) - set(lesions)):
        raise DataError([f"{root / METADATA}: no row for image {name}" for name in unknown[:10]])
    if split == "published":
        chosen = _published(root, truth)
        splits: dict[str, set[str]] = {"train": set(), "test": set()}
        for name, part in chosen.items():
            if lesions[name]:
                splits[part].add(lesions[name])
        if shared := splits["train"] & splits["test"]:
            _log.warning(
                "%d lesions have images in train and in test: so the lists were published",
                len(shared),
            )
    else:
        chosen = _by_lesion(truth, lesions, per_class)
    files = _files(root, set(chosen))
    return list_samples(
        root,
        [
            (files[name], part, truth[name], (lesions[name] or None) if split == "lesion" else None)
            for name, part in chosen.items()
        ],
    )


def _by_lesion(
    truth: dict[str, str], lesions: dict[str, str], per_class: int | None
) -> dict[str, str]:
    """Image -> split."""
    ranked = sorted((_rank(lesions[name] or name), name) for name in truth)
    taken: Counter[tuple[str, str]] = Counter()
    chosen = {}
    for rank, name in ranked:
        split = "test" if rank < 2**32 / 6 else "train"
        if per_class is not None:
            limit = per_class // 6 if split == "test" else per_class - per_class // 6
            if taken[split, truth[name]] == limit:
                continue
        taken[split, truth[name]] += 1
        chosen[name] = split
    return chosen


def _rank(lesion: str) -> int:
    return int.from_bytes(hashlib.sha256(lesion.encode()).digest()[:4], "big")


def _published(root: Path, truth: dict[str, str]) -> dict[str, str]:
    """Image -> split, from lines `Data/<diagnosis>/<image>.jpg <number>`."""
    problems: list[str] = []
    chosen: dict[str, str] = {}
    for split, name in LISTS.items():
        try:
            lines = (root / name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            problems.append(
                f"cannot read {root / name}: {reason}; it is in datasets/ of "
                "https://github.com/GiantJun/CL_Pytorch"
            )
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            file = PurePosixPath(line.split()[0])
            image, label = file.stem, file.parent.name
            if image in chosen:
                problems.append(f"{name} line {number}: {image} is listed twice")
            elif image not in truth:
                problems.append(f"{name} line {number}: {image} is not in {TRUTH}")
            elif label != truth[image]:
                problems.append(
                    f"{name} line {number}: {image} is listed as {label}, but {truth[image]} in "
                    f"{TRUTH}"
                )
            chosen[image] = split
    if problems:
        raise DataError(problems)
    return chosen


def _diagnoses(path: Path) -> dict[str, str]:
    """Image -> diagnosis, from columns of 0.0 and 1.0. Images of unknown diagnosis are left out."""
    found: dict[str, str] = {}
    problems = []
    names = (*CLASSES, "UNK")
    for line, row in _rows(path, ("image", *names)):
        chosen = [name for name in names if row[name] in ("1", "1.0")]
        other = [name for name in names if row[name] not in ("1", "1.0", "0", "0.0")]
        if len(chosen) != 1 or other:
            values = ",".join(row[name] for name in names)
            problems.append(f"{path.name} line {line}: expected one 1.0 among 0.0, got {values}")
        elif row["image"] in found:
            problems.append(f"{path.name} line {line}: {row['image']} is listed already")
        elif chosen != ["UNK"]:
            found[row["image"]] = chosen[0]
    if problems:
        raise DataError(problems)
    return found


def _lesions(path: Path) -> dict[str, str]:
    """Image -> lesion; empty where it is not known."""
    return {row["image"]: row["lesion_id"] for _, row in _rows(path, ("image", "lesion_id"))}


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            rows = [
                (reader.line_num, {name: row[name].strip() for name in columns})
                for row in (reader if not missing else ())
            ]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; it is on {ABOUT.source}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV in UTF-8: {error}") from None
    if missing:
        raise DataError(f"{path} line 1: missing columns {', '.join(missing)}")
    if not rows:
        raise DataError(f"{path}: no images listed")
    return rows


def _files(root: Path, wanted: set[str]) -> dict[str, str]:
    """Image -> file below the folder; the archives unpack into folders of different names."""
    found: dict[str, str] = {}
    problems = []
    for file in image_files(root):
        name = file.relative_to(root).as_posix()
        if file.stem in found:
            problems.append(f"image {file.stem} is there twice: {found[file.stem]} and {name}")
        elif file.stem in wanted:
            found[file.stem] = name
    if missing := sorted(wanted - set(found)):
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        problems.append(f"{root}: {len(missing)} of {len(wanted)} images are missing: {some}")
    if problems:
        raise DataError(problems)
    return found

"""A batch as it arrives: a folder or a CSV, with test images or without."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dynammo.clinical import check_numbers
from dynammo.config import ClinicalConfig
from dynammo.data.marks import mark
from dynammo.data.samples import ImageSet, Sample, list_samples
from dynammo.data.sources import csv_manifest, folder
from dynammo.errors import DataError
from dynammo.learner.ledger import Ledger, check_splits


def load_batch(
    path: Path,
    test_share: float,
    ledger: Ledger,
    key: str,
    subgroups: Sequence[str] = (),
    clinical: ClinicalConfig | None = None,
    volumes: bool = False,
) -> tuple[ImageSet, int]:
    """List a batch's images.

    Args:
        path: a CSV (`file,class` and, if wanted, `split` and `group`), or a folder with
            `manifest.csv`, with `train/<class>/*` and, if wanted, `test/<class>/*`, or with
            `<class>/*`.
        test_share: of the images of a class that comes without test images, so many are split off.
        ledger: what was learnt before.
        key: under which it is written.
        subgroups: columns of the CSV that test images keep.
        clinical: further ones, which all images have until they are counted.
        volumes: images are volumes: files, or folders of slices.

    Returns:
        The batch, and how many of its images were left out since they had been learnt before.

    Raises:
        DataError: see the sources; a class has no training images; an image or a group was of the
            other split before; everything was learnt before; a clinical number is none.
    """
    asked = clinical.names if clinical else []
    listed = list_labelled(path, [*dict.fromkeys([*subgroups, *asked])], volumes)
    check_numbers(path, listed, clinical.numbers if clinical else [])
    seen_files, seen_groups = ledger.seen()
    bare = classes_without_test(listed)

    def again(sample: Sample) -> bool:
        """Whether the image is known, and as what it comes now."""
        was = seen_files.get(mark(key, sample.sha256))
        return was is not None and (sample.label in bare or was == (sample.split == "test"))

    new = tuple(sample for sample in listed.samples if not again(sample))
    left_out = len(listed.samples) - len(new)
    if not new:
        raise DataError(f"{path}: all {left_out} images have been learnt before")
    known = {
        sample.group: seen_groups[group]
        for sample in new
        if sample.group and (group := mark(key, sample.group)) in seen_groups
    }
    result = split_off(ImageSet(listed.root, new), test_share, known)
    if subgroups:  # no more is kept than what versions are measured by
        fewer = [
            replace(
                own, columns=tuple(c for c in own.columns if own.split == "test" or c[0] in asked)
            )
            for own in result.samples
        ]
        result = ImageSet(result.root, tuple(fewer))
    check_splits(result.samples, ledger, key)
    trained = {sample.label for sample in result.samples if sample.split == "train"}
    if untrained := sorted(set(result.classes) - trained):
        raise DataError([f"{path}: class {name!r} has no training images" for name in untrained])
    return result, left_out


def list_labelled(path: Path, columns: Sequence[str] = (), volumes: bool = False) -> ImageSet:
    """Labelled images as `load_batch` takes them, with the splits they come with.

    Raises:
        DataError: see the sources; columns of a folder.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file() or (path / "manifest.csv").is_file():
        return csv_manifest.read(path, default_split="train", columns=columns)
    if columns:
        raise DataError(
            f"{path} is a folder, and the learner asks for {', '.join(columns)} of each image "
            "(retention.subgroups, clinical): expected a CSV with these columns"
        )
    return _folders(path, volumes)


def batch_columns(path: Path) -> list[str]:
    """The columns that a batch's CSV has; none of a folder without one.

    Raises:
        DataError: the CSV cannot be read.
    """
    listing = path if path.is_file() else path / "manifest.csv"
    return csv_manifest.read_table(listing)[0] if listing.is_file() else []


def classes_without_test(image_set: ImageSet) -> set[str]:
    """Classes that come with training images only."""
    tested = {sample.label for sample in image_set.samples if sample.split == "test"}
    return set(image_set.classes) - tested


def split_off(
    image_set: ImageSet, share: float, known: Mapping[str, bool] | None = None
) -> ImageSet:
    """Make some images of every class without test images test images, by group.

    Which ones follows from the images alone: groups (an image without one is its own) are taken in
    the order of a hash, until a class has its share. The last group of a class stays in training.

    Args:
        image_set: a batch.
        share: of the images of a class, in [0, 1).
        known: groups of earlier batches, with whether they were test groups: they stay that.
    """
    known = known or {}
    without = classes_without_test(image_set)
    bare = [name for name in image_set.classes if name in without]
    owner = [sample.group or sample.sha256 for sample in image_set.samples]
    # A group with images of a class that has a split of its own stays where that put it.
    bound = {g for g, s in zip(owner, image_set.samples, strict=True) if s.label not in bare}
    bound |= {group for group, test in known.items() if not test}
    tested = {group for group, test in known.items() if test}
    for name in bare:
        groups = Counter(
            g for g, s in zip(owner, image_set.samples, strict=True) if s.label == name
        )
        wanted = share * groups.total()
        have = sum(groups[group] for group in groups if group in tested)
        free = sorted((g for g in groups if g not in tested | bound), key=_place)
        left = len([group for group in groups if group not in tested])
        for group in free:
            if have >= wanted or left == 1:
                break
            tested.add(group)
            have, left = have + groups[group], left - 1
    samples = [
        replace(sample, split="test") if group in tested and sample.label in bare else sample
        for group, sample in zip(owner, image_set.samples, strict=True)
    ]
    return ImageSet(image_set.root, tuple(samples))


def _place(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()


def _folders(path: Path, volumes: bool) -> ImageSet:
    """`train/<class>/*` and, if wanted, `test/<class>/*`; or `<class>/*`, all training images."""
    split = {path / "train": "train", path / "test": "test"}
    tops = [top for top in split if top.is_dir()] if (path / "train").is_dir() else [path]
    classes = [
        (split.get(top, "train"), own)
        for top in tops
        for own in sorted(top.iterdir())
        if own.is_dir() and own.name[0] != "."
    ]
    if not classes:
        raise DataError(f"{path}: no class folders; expected <class>/<image> or train/<class>/...")
    rows: list[tuple[str, str, str, str | None]] = [
        (file.relative_to(path).as_posix(), part, own.name, None)
        for part, own in classes
        for file in folder.image_files(own, volumes)
    ]
    return list_samples(path, rows)

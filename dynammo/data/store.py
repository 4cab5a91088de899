"""Every image decoded and resized once: a memory-mapped array beside a readable index.

`<key>.npy` holds (N, height, size, 3) uint8, one row for each distinct file; `<key>.json` the
files' SHA-256 in the order of the rows, and the array's own SHA-256. Copies of a file share a row.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from dynammo.checkpoint import to_json, write_atomically
from dynammo.data.checks import Repeats, repeats, warn_of, warn_of_spacing
from dynammo.data.formats.clips import PYAV
from dynammo.data.formats.pictures import (
    DECODER_VERSION,
    Form,
    HashedFile,
    Pixels,
    fitted,
    form_of,
    opened,
)
from dynammo.data.formats.volumes import Volume, read_volume
from dynammo.data.near import Marks, mark, near_repeats
from dynammo.data.samples import ImageSet, Progress, Sample, hash_file
from dynammo.errors import DataError


def build_store(
    image_set: ImageSet,
    form: Form | int,
    directory: Path,
    progress: Progress | None = None,
    repeated: Repeats = "refuse",
) -> Path:
    """Decode and resize all images, or find that it was done before.

    The file's name is a hash of the images, the form and the decoder's version. What is there
    already is used if it is intact, and made anew if not.

    Args:
        image_set: the images.
        form: what they are brought to, or the side of the square in pixels.
        directory: where the store goes; made if missing.
        progress: called with (images done, images).
        repeated: what to do about repeated pictures, see `check_image_set`.

    Returns:
        Path of the `.npy`, for `ImageStore.open`.

    Raises:
        DataError: images that cannot be read, or whose file is not the one that was listed; the
            same picture (equal pixels before resizing) in train and test, or under two classes of
            one split, or nearly the same in train and test (`dynammo.data.near`), unless
            `repeated` is "warn". All of them at once.
    """
    unique = {sample.sha256: sample for sample in reversed(image_set.samples)}
    files = sorted(unique)
    if not files:
        raise DataError(f"{image_set.root}: no images")
    form = form_of(form)
    identity = f"{image_set.content_hash} {form.size} {DECODER_VERSION}"
    if form != Form(form.size):
        identity += f" {form.slices} {form.window} pyav-{PYAV}"
    path = directory.absolute() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"
    if _has(path, files):
        return path

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as temporary:
        draft = Path(temporary) / path.name
        rows = np.lib.format.open_memmap(
            draft, mode="w+", dtype=np.uint8, shape=(len(files), *form.shape)
        )

        def fill(row: int) -> tuple[str, Marks | None, float | None] | DataError:
            """Decode one image into its row; gives a hash of the picture, its mark and spacing."""
            try:
                picture, spacing = _read(image_set.root, unique[files[row]], form)
            except DataError as error:
                return error
            rows[row] = fitted(picture, form)
            digest = hashlib.sha256(repr(picture.shape).encode())
            digest.update(picture.data)
            return digest.hexdigest(), mark(picture, form.slices), spacing

        pictures: dict[str, str] = {}
        marks: dict[str, Marks | None] = {}
        spacings: dict[str, float] = {}
        problems: list[str] = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for row, result in enumerate(pool.map(fill, range(len(files)))):
                if isinstance(result, DataError):
                    problems += result.problems
                else:
                    pictures[files[row]], marks[files[row]], spacing = result
                    if spacing is not None:
                        spacings[unique[files[row]].file] = spacing
                if progress:
                    progress(row + 1, len(files))
        readable = [sample for sample in image_set.samples if sample.sha256 in pictures]
        found = repeats(readable, lambda sample: pictures[sample.sha256])
        where = {file: row for row, file in enumerate(files)}
        found += near_repeats(readable, marks, lambda sample: rows[where[sample.sha256]], pictures)
        problems += warn_of(found, repeated)
        warn_of_spacing(spacings)
        if problems:
            raise DataError(problems)

        rows.flush()
        index = {"sha256": hash_file(draft), "decoder": DECODER_VERSION, "shape": form.shape}
        os.replace(draft, path)
        write_atomically(path.with_suffix(".json"), to_json({**index, "files": files}))
    return path


class ImageStore:
    """Resized images by file, read from disk as they are asked for.

    Attributes:
        files: SHA-256 of the file behind each row.
    """

    def __init__(self, pixels: Pixels, files: Sequence[str]) -> None:
        self.files = list(files)
        self._pixels = pixels
        self._rows = {digest: row for row, digest in enumerate(files)}

    @staticmethod
    def open(path: Path, verify: bool = True) -> ImageStore:
        """Open what `build_store` returned.

        Args:
            path: the `.npy`.
            verify: whether to hash the array, which reads all of it.

        Raises:
            DataError: a file is missing or damaged, or the two do not fit together.
        """
        try:
            index = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            files, shape, digest = index["files"], tuple(index["shape"]), index["sha256"]
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)
            fits = pixels.shape == (len(files), *shape) and pixels.dtype == np.uint8
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"{path} is no usable image store: {error}") from None
        if not fits:
            raise DataError(f"{path} holds {pixels.dtype} {pixels.shape}; its index says otherwise")
        if verify and (found := hash_file(path)) != digest:
            raise DataError(f"{path} is damaged: its SHA-256 is {found}, expected {digest}")
        return ImageStore(pixels, files)

    def load(self, samples: Sequence[Sample]) -> Tensor:
        """The images of some samples, (N, 3, height, size) uint8, contiguous, in the order given.

        Raises:
            DataError: samples whose file is not in the store.
        """
        if missing := [sample.file for sample in samples if sample.sha256 not in self._rows]:
            raise DataError([f"{file} is not in the image store" for file in missing])
        rows = np.array([self._rows[sample.sha256] for sample in samples], dtype=np.intp)
        return torch.from_numpy(self._pixels[rows]).permute(0, 3, 1, 2).contiguous()


def _has(path: Path, files: list[str]) -> bool:
    try:
        return ImageStore.open(path).files == files
    except DataError:
        return False


def _read(root: Path, sample: Sample, form: Form) -> Volume:
    """A volume, or a picture, without a spacing, made sure to be of the file that was listed."""
    file = HashedFile(root / sample.file)
    try:
        content = file.read()
    except OSError as error:
        raise DataError(f"cannot read {sample.file}: {error.strerror}") from None
    if file.sha256 != sample.sha256:
        raise DataError(
            f"{sample.file} has changed: SHA-256 {file.sha256}, listed as {sample.sha256}"
        )
    if form.volumes:
        return read_volume(content, form, sample.file)
    return Volume(opened(content, form, sample.file), None)

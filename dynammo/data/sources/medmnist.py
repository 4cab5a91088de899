"""MedMNIST: medical images of many kinds, in small standard sizes.

The PyPI package `medmnist` is not needed: it brings scikit-image, pandas and a command line along,
and what matters of it is the table below (names, labels, checksums, addresses; release 3.0.2). The
official `.npz` files are read here row by row, pickles refused, so that the large sizes fit in
memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dynammo.data.samples import SPLITS, ImageSet
from dynammo.data.sources.about import About
from dynammo.data.sources.download import fetch
from dynammo.data.sources.fetching import write_pnm, written
from dynammo.errors import ConfigError, DataError

URL = "https://zenodo.org/records/10519652/files/{file}?download=1"
SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class Subset:
    """One of the sets: class names in order of their labels, MD5 for each of SIZES, licence."""

    classes: tuple[str, ...]
    md5: tuple[str, str, str, str]
    licence: str = "CC BY 4.0"


_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
_GRADES = ("0", "1", "2", "3", "4")  # of diabetic retinopathy
SETS = {
    "pathmnist": Subset(
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        (
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ),
    ),
    "dermamnist": Subset(
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        (
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ),
        "CC BY-NC 4.0",
    ),
    "octmnist": Subset(
        (
            "choroidal neovascularization",
            "diabetic macular edema",
            "drusen",
            "normal",
        ),
        (
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ),
    ),
    "pneumoniamnist": Subset(
        (
            "normal",
            "pneumonia",
        ),
        (
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ),
    ),
    "retinamnist": Subset(
        _GRADES,
        (
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ),
    ),
    "breastmnist": Subset(
        (
            "malignant",
            "normal, benign",
        ),
        (
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ),
    ),
    "bloodmnist": Subset(
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        (
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
    ),
    "tissuemnist": Subset(
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        (
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ),
    ),
    "organamnist": Subset(
        _ORGANS,
        (
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ),
    ),
    "organcmnist": Subset(
        _ORGANS,
        (
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ),
    ),
    "organsmnist": Subset(
        _ORGANS,
        (
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ),
    ),
}

ABOUT = About(
    title="MedMNIST v2 and MedMNIST+, 2-D sets of one label an image",
    source="https://medmnist.com, https://zenodo.org/records/10519652",
    licence="CC BY 4.0; dermamnist CC BY-NC 4.0",
    size="546 (breastmnist) to 165,466 (tissuemnist) train images; 28, 64, 128 or 224 pixels",
    classes="2 to 11: "
    + ", ".join(f"{name} {len(subset.classes)}" for name, subset in SETS.items()),
    citation="J. Yang et al.: MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D "
    "biomedical image classification, Scientific Data 10:41, 2023",
    protocol="none of the method's papers; several sets make a stream of tasks, for instance "
    "scenario.tasks=[['bloodmnist.*'], ['dermamnist.*']]",
    layout="a folder, downloaded and written by the first run; where pictures are in train and in "
    "test, too, it needs data.repeats: warn",
    options="sets: list of the names above; size: 28 (default), 64, 128 or 224",
    written=True,
)


def load(path: Path, sets: list[str], size: int = 28) -> ImageSet:
    """One or several sets of MedMNIST in a folder, fetched and written there first if it is empty.

    `<split>/<class>/<set>-NNNNNN.pgm` (grey) or `.ppm` (RGB), where NNNNNN is the index in the
    official file, and pixels are those of the file. Of one set, classes have their own names; of
    several, `<set>.<class>`, so that `scenario.tasks: [["bloodmnist.*"], ["dermamnist.*"]]` makes
    a task of each. The official training and test images are taken; the validation images are not.

    chestmnist has several labels an image and is left out, for a class-incremental classifier gives
    one answer.

    Args:
        path: the folder.
        sets: names of the sets.
        size: of the images, in pixels; one of SIZES.

    Raises:
        ConfigError: unknown sets or size.
        DataError: the folder holds something else; a file can neither be found nor fetched, or is
            damaged.
    """
    problems = []
    if not isinstance(sets, list) or not sets or len(set(map(str, sets))) < len(sets):
        problems.append(f"data.options.sets must be a list of different sets, got {sets!r}")
    else:
        for name in [name for name in sets if name not in SETS]:
            why = " has several labels an image" if name == "chestmnist" else " is unknown"
            problems.append(f"data.options.sets: {name!r}{why}; known: {', '.join(SETS)}")
    if size not in SIZES:
        problems.append(f"data.options.size must be one of {SIZES}, got {size!r}")
    if problems:
        raise ConfigError(problems)

    files = {name: f"{name}.npz" if size == 28 else f"{name}_{size}.npz" for name in sets}
    md5 = {name: SETS[name].md5[SIZES.index(size)] for name in sets}

    def write(directory: Path) -> None:
        for name in sets:
            archive = fetch(URL.format(file=files[name]), files[name], md5[name])
            prefix = f"{name}." if len(sets) > 1 else ""
            _write(archive, name, prefix, size, directory)

    return written(path, f"MedMNIST {' '.join(sets)}", write, recipe={"md5": md5, "size": size})


def _write(archive: Path, name: str, prefix: str, size: int, directory: Path) -> None:
    classes = SETS[name].classes
    try:
        with zipfile.ZipFile(archive) as npz:
            for split in SPLITS:
                with npz.open(f"{split}_labels.npy") as file:
                    labels = np.array(list(_rows(file))).reshape(-1)
                with npz.open(f"{split}_images.npy") as file:
                    count = 0
                    rows = tqdm(
                        _rows(file), f"write {name} {split}", len(labels), disable=None, leave=False
                    )
                    for count, pixels in enumerate(rows, start=1):
                        if pixels.dtype != np.uint8 or pixels.shape not in (
                            (size, size),
                            (size, size, 3),
                        ):
                            raise ValueError(
                                f"{split}_images has {pixels.dtype} {pixels.shape}; expected uint8 "
                                f"({size}, {size}) or ({size}, {size}, 3)"
                            )
                        label = int(labels[count - 1]) if count <= len(labels) else -1
                        if not 0 <= label < len(classes):
                            raise ValueError(
                                f"{split} image {count - 1} has no label of 0 to {len(classes) - 1}"
                            )
                        kind = "pgm" if pixels.ndim == 2 else "ppm"
                        where = directory / split / f"{prefix}{classes[label]}"
                        write_pnm(where / f"{name}-{count - 1:06}.{kind}", pixels)
                if count != len(labels):
                    raise ValueError(f"{split} has {len(labels)} labels and {count} images")
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise DataError(f"{archive} is no MedMNIST file of {name}: {error}") from None


def _rows(file: IO[bytes]) -> Iterator[NDArray[Any]]:
    """The rows of a `.npy` file, one at a time: `numpy.load` would read all of it into memory.

    Raises:
        ValueError: no such file, an array of Python objects (a pickle), or a truncated one.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"a .npy of version {version}; expected 1.0 or 2.0")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which no picture is made of")
    if fortran or not shape:
        raise ValueError("expected rows one after another (C order)")
    length = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    for index in range(shape[0]):
        content = file.read(length)
        if len(content) < length:
            raise ValueError(f"it ends after {index} of {shape[0]} rows")
        yield np.frombuffer(content, dtype).reshape(shape[1:])

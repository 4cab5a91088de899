"""What a report to another system says of an image: coded, with its model, and no date of its own.

The same image, model, codes and version of DynaMMo give the same finding, and this the same report
byte for byte, with the same unique identifiers.
"""

from __future__ import annotations

import csv
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import dynammo
from dynammo.checkpoint import to_json
from dynammo.deploy.answers import Answer
from dynammo.errors import CheckpointError, DataError

OWN = "99DYNAMMO"  # designators of private schemes begin with 99 (DICOM PS3.16, section 8)
# Unique identifiers are made of names in this space (RFC 9562, version 5).
SPACE = uuid.uuid5(uuid.NAMESPACE_OID, OWN)
_LONGEST = 64  # characters of a meaning, in DICOM


class Code(NamedTuple):
    """A concept of a coding scheme, named as in DICOM: `SCT` is SNOMED CT."""

    value: str
    scheme: str
    meaning: str


# Own codes where DICOM has none; 122157 is of PS3.16 Annex D, as pydicom's dictionary has it.
NONE = Code("none-of-these", OWN, "None of the known classes")
PREDICTED = Code("predicted", OWN, "Predicted class")
POSSIBLE = Code("not-excluded", OWN, "Class that cannot be excluded")
PROBABILITY = Code("122157", "DCM", "Probability")


class Device(NamedTuple):
    """The model that answered, and what it is made of, as SHA-256 where not said otherwise."""

    software: str  # DynaMMo and its version
    model: str  # of model.json, which tells versions apart
    weights: str
    data: str  # training data; these two are empty where model.json has none

    @property
    def parts(self) -> dict[str, str]:
        """What the model is made of: SHA-256 by name."""
        named = {"weights": self.weights, "training data": self.data}
        return {name: value for name, value in named.items() if value}


class Finding(NamedTuple):
    """What is said of an image."""

    input: str  # SHA-256 of the file's bytes
    label: Code
    percent: str  # probability of the label
    possible: list[Code] | None  # what cannot be excluded, NONE too; None: nothing is said of it
    device: Device

    def identifier(self, kind: str) -> uuid.UUID:
        """The same for the same finding, another for any other."""
        return identifier(kind, to_json(self).decode())


def identifier(kind: str, *of: str) -> uuid.UUID:
    """A unique identifier that depends on nothing else."""
    return uuid.uuid5(SPACE, "\n".join([kind, *of]))


def dicom_uid(unique: uuid.UUID) -> str:
    """An identifier as a DICOM UID (PS3.5, B.2)."""
    return f"2.25.{unique.int}"


def find(answer: Answer, digest: str, codes: Mapping[str, Code], device: Device) -> Finding:
    """The finding of an answer to an image with this SHA-256."""
    known = answer.prediction_set
    possible = None if known is None else [codes[name] for name in known]
    if possible is not None and (answer.unknown or not possible):
        possible.append(NONE)
    percent = f"{100 * answer.probability:.2f}"
    return Finding(digest, codes[answer.label], percent, possible, device)


def read_device(folder: Path, sha256: str) -> Device:
    """What `model.json` says of a model that was loaded.

    Args:
        folder: of the model.
        sha256: of the `model.json` that was loaded.

    Raises:
        CheckpointError: it is another one by now.
    """
    content = (folder / "model.json").read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{folder} holds another model than the one that was loaded")
    said = json.loads(content)
    return Device(
        f"DynaMMo {dynammo.__version__}",
        sha256,
        str(said.get("weights_sha256", "")),
        str(said.get("provenance", {}).get("data", "")),
    )


def own_codes(classes: Sequence[str]) -> dict[str, Code]:
    """Class names as codes of the private scheme.

    Raises:
        DataError: a name is too long for the meaning of a code.
    """
    if long := [name for name in classes if len(name) > _LONGEST]:
        raise DataError(
            [f"class {name!r} has more than {_LONGEST} characters: give it a code" for name in long]
        )
    return {name: Code(name, OWN, name) for name in classes}


def read_codes(file: Path, classes: Sequence[str]) -> dict[str, Code]:
    """Codes of classes from a CSV with the columns class, code, scheme and meaning.

    It may have more classes than the model knows.

    Raises:
        DataError: it cannot be read, a class of the model is missing or there twice, a value is
            missing or too long. All mistakes at once.
    """
    columns = ["class", "code", "scheme", "meaning"]
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", skipinitialspace=True)
            rows, found = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {file}: {reason}") from None
    if found != columns:
        raise DataError(f"{file}: its columns are {', '.join(found)}; expected {','.join(columns)}")
    problems: list[str] = []
    codes: dict[str, Code] = {}
    for line, row in enumerate(rows, start=2):
        name, code = row["class"], Code(row["code"], row["scheme"], row["meaning"])
        if None in row or not all((name, *code)):
            problems.append(f"{file}: row {line}: expected {len(columns)} values")
        elif len(code.meaning) > _LONGEST:
            problems.append(f"{file}: row {line}: a meaning has at most {_LONGEST} characters")
        elif len(code.scheme) > 16:
            problems.append(f"{file}: row {line}: a scheme has at most 16 characters, such as SCT")
        elif name in codes:
            problems.append(f"{file}: row {line}: {name} is there twice")
        codes.setdefault(name, code)
    problems += [f"{file}: no code for the class {name}" for name in classes if name not in codes]
    if problems:
        raise DataError(problems)
    return {name: codes[name] for name in classes}

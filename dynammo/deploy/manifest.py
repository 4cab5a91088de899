"""`model.json`: what a model folder says of itself, and whether its weights are the ones meant.

Its hashes cover everything that decides an answer, so nothing in a folder changes unnoticed. Who
changes a model on purpose can make them anew; against that a signature helps, not a hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from safetensors.torch import save

from dynammo import __version__
from dynammo.checkpoint import unsealed
from dynammo.clinical import Evidence
from dynammo.config import AdapterConfig, ArchitectureConfig
from dynammo.config.sections import Section
from dynammo.data.checks import problems_of_names
from dynammo.data.formats.pictures import Form
from dynammo.errors import CheckpointError
from dynammo.hierarchy import problems_of_parents
from dynammo.state import State


class DeployedAdapter(Section):
    """The kind of the adapters that are left in a model."""

    name: str
    options: dict[str, Any]

    @property
    def config(self) -> AdapterConfig:
        """What builds them."""
        return AdapterConfig(name=self.name, options=self.options)


class PredictionSets(Section):
    """From which probability on a class cannot be excluded (`dynammo.evaluation.honesty`).

    Class c is in an image's prediction set if 1 - p_c <= thresholds[c]; always, where too few
    images were at hand for a threshold (None). Of further images of any class, such as those were,
    at most a share `miss` have sets without it.
    """

    miss: float = Field(gt=0, lt=1)
    thresholds: list[Annotated[float, Field(ge=0, le=1)] | None]


class Appearance(Section):
    """The pictures that the model is made for (`dynammo.evaluation.appearance`), and how far from
    them one is of another kind.
    """

    means: list[list[float]]
    precision: list[list[float]]
    threshold: float = Field(ge=0)


class Unknown(Section):
    """From which `dynammo.evaluation.strangeness` on an answer is "none of the classes I know", and
    from which distance of its appearance an image is.

    Of further images of known classes, such as those were that set them, at most a share `alarm`
    exceed one of the two.
    """

    alarm: float = Field(gt=0, lt=1)
    threshold: float = Field(le=0)
    appearance: Appearance | None = None


class Clinical(Section):
    """What columns beside the image say of each class (`dynammo.clinical.Evidence`)."""

    weight: float
    categories: dict[str, dict[str, list[float]]]
    numbers: dict[str, list[list[float]]]
    uncounted: dict[str, list[int]] = Field(default_factory=dict)


class Manifest(Section):
    """What `model.json` says."""

    format: Literal[2] = 2
    weights_sha256: str
    backbone: ArchitectureConfig
    adapter: DeployedAdapter | None
    image_size: int = Field(ge=16, le=1024)
    image_slices: int = Field(1, ge=1)
    image_window: list[float] | None = Field(None, min_length=2, max_length=2)
    classes: list[str] = Field(min_length=1)
    prediction_sets: PredictionSets | None = None  # none where no test image was kept
    unknown: Unknown | None = None  # none likewise, or of too few
    clinical: Clinical | None = None
    parents: dict[str, str] | None = None  # what classes belong to (`dynammo.hierarchy`)
    provenance: dict[str, Any]

    @field_validator("classes")
    @classmethod
    def _names(cls, classes: list[str]) -> list[str]:
        if problems := problems_of_names(classes):
            raise ValueError("; ".join(problems))
        return classes

    @property
    def form(self) -> Form:
        """What every image is brought to."""
        return Form.of(self.image_size, self.image_slices, self.image_window)

    @model_validator(mode="after")
    def _one_threshold_a_class(self) -> Manifest:
        if self.prediction_sets and len(self.prediction_sets.thresholds) != len(self.classes):
            raise ValueError("prediction_sets: expected a threshold a class")
        if self.clinical:
            Evidence.read(self.clinical.model_dump(), len(self.classes))
        if self.parents is not None and (problems := problems_of_parents(self.parents)):
            raise ValueError(f"parents: {'; '.join(problems)}")
        return self


def parse_manifest(content: bytes) -> Manifest:
    """Read `model.json`, which is a `Manifest` and sealed (`dynammo.checkpoint.sealed`).

    Raises:
        CheckpointError: any byte of it was changed, it is of another format, or a value is wrong or
            missing.
    """
    try:
        document = unsealed(content)
        if document.get("format") != 2:
            raise CheckpointError("format 2 expected")
        return Manifest.model_validate(document, strict=True)
    except ValidationError as error:
        newer = ""
        if any(item["type"] == "extra_forbidden" for item in error.errors()):
            newer = f"; DynaMMo {__version__} does not know this, a later one may"
        raise CheckpointError(f"model.json: {problems_in(error)}{newer}") from None
    except CheckpointError as error:
        raise CheckpointError(f"model.json: {error}") from None


def problems_in(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    found = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found)


def hash_tensors(tensors: State) -> str:
    """SHA-256 of `model.safetensors` as `save_model` writes it, whatever texts a file adds."""
    return hashlib.sha256(save({k: v.contiguous() for k, v in tensors.items()})).hexdigest()


def check_finite(tensors: State) -> None:
    """Refuse weights that are no numbers: their answers would be none either.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    if wrong := [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise CheckpointError(f"{_some(wrong)}: values that are not finite numbers")


def check_exact(expected: State, found: State) -> None:
    """Refuse tensors that are not the network's own, one by one: name, shape and type.

    Raises:
        CheckpointError: one is missing, superfluous, or of another shape or type.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"it lacks {_some(missing)}")
    if superfluous := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"it holds {_some(superfluous)}, which the network does not have")
    for name, own in expected.items():
        given = found[name]
        if (own.shape, own.dtype) != (given.shape, given.dtype):
            raise CheckpointError(
                f"{name} is {given.dtype} {tuple(given.shape)}, "
                f"expected {own.dtype} {tuple(own.shape)}"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

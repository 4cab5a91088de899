"""The deployable model: one folder with weights, class names and preprocessing; images in, classes
out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dynammo.checkpoint import sealed, write_atomically
from dynammo.clinical import Evidence
from dynammo.config import AdapterConfig, ArchitectureConfig
from dynammo.data.formats.pictures import Form, Pixels, form_of
from dynammo.deploy.answers import Answering
from dynammo.deploy.manifest import (
    Clinical,
    DeployedAdapter,
    Manifest,
    PredictionSets,
    Unknown,
    check_exact,
    check_finite,
    hash_tensors,
    parse_manifest,
    problems_in,
)
from dynammo.errors import CheckpointError, DynammoError
from dynammo.evaluation.strangeness import UnknownLimits
from dynammo.heads.scaling import power_normalise
from dynammo.network.folding import fold_adapters
from dynammo.network.network import Network, build_network
from dynammo.state import State

_WEIGHTS = "model.safetensors"
_MANIFEST = "model.json"


class Classifier(nn.Module):
    """The merged network and its head: pixels in, logits out. One pass, whatever the number of
    tasks.
    """

    def __init__(self, network: Network, head: State) -> None:
        super().__init__()
        self.network = network
        classes, features = head["weight"].shape
        self.head = nn.Linear(features, classes)
        self.head.load_state_dict({name: head[name] for name in ("weight", "bias")})
        self.power = float(head["power"]) if "power" in head else None
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, S) RGB pixels in 0..255 -> logits (B, C)."""
        return self.logits(self.network(images))

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) features of the network -> (B, C)."""
        if self.power is not None:
            features = power_normalise(features, self.power)
        logits: Tensor = self.head(features)
        return logits

    @property
    def head_state(self) -> State:
        """The head that it was made with, on the CPU."""
        state = {name: value.cpu() for name, value in self.head.state_dict().items()}
        power = (
            {} if self.power is None else {"power": torch.tensor(self.power, dtype=torch.float64)}
        )
        return {**state, **power}


def save_model(
    folder: Path,
    *,
    backbone: ArchitectureConfig,
    form: Form | int,
    adapter: AdapterConfig,
    backbone_weights: State,
    adapter_weights: State,
    head: State,
    classes: Sequence[str],
    provenance: Mapping[str, Any],
    prediction_sets: PredictionSets | None = None,
    unknown: Unknown | None = None,
    clinical: Clinical | None = None,
    parents: Mapping[str, str] | None = None,
) -> list[str]:
    """Write a self-contained model: `model.safetensors` and `model.json`.

    Adapters that can be folded into the backbone are (`dynammo.network.folding`): where all can,
    the model is a bare backbone with a head.

    Args:
        folder: made if missing; a model already there is replaced.
        backbone: name of the network, and the positions of the adapters.
        form: of the images, or the side of pictures in pixels.
        adapter: kind of the adapters.
        backbone_weights: the frozen network's.
        adapter_weights: the merged adapter's.
        head: as a head rule makes it; what it holds for its successor is left out.
        classes: names in the order of the head's outputs.
        provenance: readable facts (data hash, parents, versions) kept in `model.json`.
        prediction_sets: their thresholds, where there were images to find them on.
        unknown: the threshold of "none of the classes I know", likewise.
        clinical: what columns beside the image say, where they are counted.
        parents: what classes belong to, where that is known.

    Returns:
        What kept adapters from being folded, a line each; nothing where all were.

    Raises:
        CheckpointError: a weight is no finite number, or the class names do not fit or cannot be
            told apart. Nothing is written.
    """
    form = form_of(form)
    network = build_network(backbone, backbone_weights, form, adapter)
    network.load_adapter_state(adapter_weights)
    folded = fold_adapters(network)
    left = {
        name: value
        for name, value in adapter_weights.items()
        if any(name.startswith(f"{position}.") for position in folded.kept)
    }
    if folded.kept and list(folded.kept) != network.positions:
        backbone = backbone.model_copy(update={"positions": list(folded.kept)})
    tensors = {
        name: value.contiguous() for name, value in _named(folded.weights, left, head).items()
    }
    check_finite(tensors)
    if len(head["weight"]) != len(classes):
        raise CheckpointError(f"{len(classes)} class names do not fit the head")
    try:
        manifest = Manifest(
            weights_sha256=hash_tensors(tensors),
            backbone=backbone.architecture,
            adapter=DeployedAdapter(name=adapter.name, options=adapter.options)
            if folded.kept
            else None,
            image_size=form.size,
            image_slices=form.slices,
            image_window=[*form.window] if form.window else None,
            classes=list(classes),
            prediction_sets=prediction_sets,
            unknown=unknown,
            clinical=clinical,
            parents=dict(parents) if parents else None,
            provenance=dict(provenance),
        )
    except ValidationError as error:
        raise CheckpointError(f"no model can be made of this: {problems_in(error)}") from None
    write_atomically(folder / _WEIGHTS, save(tensors))
    write_atomically(folder / _MANIFEST, sealed(manifest.model_dump(mode="json")))
    return [f"{name}: {problem}" for name, kept in folded.kept.items() for problem in kept]


class Predictor(Answering):
    """A model loaded in torch from the folder that `save_model` wrote.

    Args:
        folder: with `model.safetensors` and `model.json`.
        device: a torch device.

    Attributes:
        manifest: what `model.json` says.
        classes: names in the order of the outputs.
        form: what images are brought to.
        model: the `Classifier`.

    Raises:
        CheckpointError: a file is missing, damaged or changed, or the two do not fit together.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        folder = Path(folder)
        try:
            described = (folder / _MANIFEST).read_bytes()
            self.manifest = parse_manifest(described)
            self.model_sha256 = hashlib.sha256(described).hexdigest()
            tensors = load((folder / _WEIGHTS).read_bytes())
            if hash_tensors(tensors) != self.manifest.weights_sha256:
                raise CheckpointError(f"{_WEIGHTS} is not the one of this {_MANIFEST}")
            model = self._load(tensors)
        except (DynammoError, SafetensorError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder} holds no usable model: {reason}") from None
        self.device = torch.device(device)
        self.model = model.to(self.device)

    def _load(self, tensors: State) -> Classifier:
        self.classes = self.manifest.classes
        self.form = self.manifest.form
        sets = self.manifest.prediction_sets
        self.thresholds = sets.thresholds if sets else None
        unknown = self.manifest.unknown
        self.unknown = UnknownLimits.read(unknown.model_dump()) if unknown else None
        beside = self.manifest.clinical
        self.clinical = Evidence.read(beside.model_dump(), len(self.classes)) if beside else None
        self.parents = self.manifest.parents
        adapter = self.manifest.adapter
        network = build_network(
            self.manifest.backbone,
            _part(tensors, "backbone/"),
            self.form,
            adapter.config if adapter else None,
        )
        network.load_adapter_state(_part(tensors, "adapter/"))
        head = _part(tensors, "head/")
        check_exact(
            _named(
                network.backbone_state(),
                network.adapter_state(),
                _empty_head(len(self.classes), network.feature_size, power="power" in head),
            ),
            tensors,
        )
        check_finite(tensors)
        return Classifier(network, head)

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, S) pixels in 0..255 -> class probabilities (B, C), float64 on the CPU."""
        logits: Tensor = self.model(pixels.to(self.device))
        return logits.double().softmax(1).cpu()

    def scores(self, batch: Pixels) -> NDArray[np.float64]:
        """(B, H, S, 3) uint8 RGB -> class probabilities (B, C)."""
        scores: NDArray[np.float64] = self.probabilities(
            torch.from_numpy(batch).permute(0, 3, 1, 2)
        ).numpy()
        return scores


def _named(backbone: State, adapter: State, head: State) -> State:
    """The tensors of a model under the names that they have in its file."""
    answers = {name: value for name, value in head.items() if name in ("weight", "bias", "power")}
    parts = {"backbone/": backbone, "adapter/": adapter, "head/": answers}
    return {f"{part}{name}": value for part, of in parts.items() for name, value in of.items()}


def _empty_head(classes: int, features: int, power: bool) -> State:
    head = {"weight": torch.empty(classes, features), "bias": torch.empty(classes)}
    return head | ({"power": torch.empty((), dtype=torch.float64)} if power else {})


def _part(tensors: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

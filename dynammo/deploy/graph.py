"""The model as an ONNX graph: what `dynammo predict` and the served model answer with.

A published model folder holds `model.onnx` beside the weights. `graph.json`, sealed, has its
SHA-256 and that of the `model.json` it was made from, so a graph that was changed, or is another
model's, is refused as changed weights are. Neither torch nor pydantic is loaded here.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynammo.checkpoint import unsealed
from dynammo.clinical import Evidence
from dynammo.data.checks import problems_of_names
from dynammo.data.formats.pictures import Form, Pixels
from dynammo.deploy.answers import Answering
from dynammo.errors import CheckpointError, ConfigError, DynammoError
from dynammo.evaluation.strangeness import UnknownLimits
from dynammo.hierarchy import problems_of_parents

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

GRAPH, RECORD, MANIFEST = "model.onnx", "graph.json", "model.json"
ENGINES = ("onnx", "torch")

# What ONNX Runtime may compute with, in the order in which `dynammo predict` takes them. TensorRT
# is taken only if asked for: it compiles a graph for minutes.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_ASKED_FOR = ("tensorrt",)
_TOLERANCE = 1e-3  # of probability, between a provider and the processor


def load_predictor(
    folder: str | Path,
    engine: str | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    public_key: str | Path | None = None,
    provider: str | None = None,
) -> Answering:
    """Load a model folder with the engine that answers fastest there.

    Args:
        folder: with model.json, and model.onnx with graph.json or model.safetensors.
        engine: "onnx" or "torch"; none: ONNX Runtime where the folder has a graph, else torch.
        device: where torch computes.
        threads: of ONNX Runtime; default: as many as there are cores. torch's number is its own.
        public_key: file of the key that must have signed the folder; none: whoever made it.
        provider: of `PROVIDERS`, for ONNX Runtime; none: the first of them that works here.

    Raises:
        CheckpointError: the folder holds no usable model, or no graph where that was asked for.
        ConfigError: no such engine, or the provider does not work here.
        SignatureError: it is not signed by that key (`dynammo.deploy.signature`).
    """
    if engine not in (None, *ENGINES):
        raise ConfigError([f"unknown engine {engine!r}; known: {', '.join(ENGINES)}"])
    if provider is not None and (engine == "torch" or not has_graph(folder)):
        raise ConfigError([f"the provider {provider} is ONNX Runtime's, and torch would answer"])
    if public_key is not None:
        from dynammo.deploy.signature import verify_model

        verify_model(folder, public_key)
    if engine == "onnx" or (engine is None and has_graph(folder)):
        return GraphPredictor(folder, threads, provider)
    from dynammo.deploy.predictor import Predictor

    return Predictor(folder, device)


def has_graph(folder: str | Path) -> bool:
    """Whether a model folder holds an ONNX graph."""
    return Path(folder, GRAPH).is_file()


class Stored(NamedTuple):
    """The files `model.json`, `model.onnx` and, read, `graph.json` of a model folder."""

    manifest: bytes
    graph: bytes
    record: dict[str, Any]


def read_graph(folder: Path) -> Stored:
    """The graph of a model folder, if it is the one made from this model.

    Raises:
        CheckpointError: it is not, or something is missing or damaged.
        OSError: a file cannot be read.
    """
    manifest = (folder / MANIFEST).read_bytes()
    if not has_graph(folder):
        raise CheckpointError(f"no {GRAPH} in it; use the engine torch, or dynammo export-model")
    try:
        record = unsealed((folder / RECORD).read_bytes())
    except CheckpointError as error:
        raise CheckpointError(f"{RECORD}: {error}") from None
    graph = (folder / GRAPH).read_bytes()
    if record.get("model_sha256") != hashlib.sha256(manifest).hexdigest():
        raise CheckpointError(f"{GRAPH} was exported from another {MANIFEST}")
    if record.get("sha256") != hashlib.sha256(graph).hexdigest():
        raise CheckpointError(f"{GRAPH} is not the one of this {RECORD}")
    return Stored(manifest, graph, record)


def copy_graph(source: Path, folder: Path) -> bool:
    """Take the graph of another folder that holds the same model; whether there is one."""
    files = [source / name for name in (MANIFEST, GRAPH, RECORD)]
    if not all(file.is_file() for file in files):
        return False
    if files[0].read_bytes() != (folder / MANIFEST).read_bytes():
        return False
    for file in files[1:]:
        shutil.copy2(file, folder / file.name)
    return True


class GraphPredictor(Answering):
    """A model's ONNX graph, loaded in ONNX Runtime.

    Answers differ from those of torch by rounding: what `dynammo.deploy.export` tolerates.

    Args:
        folder: with `model.onnx`, `graph.json` and `model.json`.
        threads: for one image; default: as many as there are cores.
        provider: of `PROVIDERS`; none: the first that is there, loads the graph, and on noise gives
            the probabilities that the processor gives, to 1e-3.

    Attributes:
        session: the `onnxruntime.InferenceSession`.
        provider: with which it answers.

    Raises:
        CheckpointError: a file is missing, damaged or changed, or they do not fit together.
        ConfigError: the provider that was asked for does not work here.
    """

    def __init__(
        self, folder: str | Path, threads: int | None = None, provider: str | None = None
    ) -> None:
        folder = Path(folder)
        try:
            stored = read_graph(folder)
            document = _unsealed(stored.manifest)
            described = _described(document)
            self.classes, self.form, self.thresholds, self.unknown, self.clinical = described
            self.parents = _parents(document)
            self.model_sha256 = hashlib.sha256(stored.manifest).hexdigest()
            self.session, self.provider = open_session(stored.graph, threads), "cpu"
            self._check_shapes()
            self._choose(stored.graph, threads, provider)
        except ConfigError:
            raise
        except (DynammoError, OSError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder} holds no usable model: {reason}") from None

    def scores(self, batch: Pixels) -> NDArray[np.float64]:
        """(B, H, S, 3) uint8 RGB -> class probabilities (B, C)."""
        images = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        (logits,) = self.session.run(["logits"], {"images": images})
        return softmax(logits)

    def _choose(self, graph: bytes, threads: int | None, asked: str | None) -> None:
        for name in [asked] if asked else providers():
            if name == "cpu":
                return
            try:
                session = open_session(graph, threads, name)
                self._check_answers(session)
            except CheckpointError as error:
                if asked:
                    raise ConfigError([f"provider {name}: {error}"]) from None
                _log.warning("%s is not used: %s", name, error)
                continue
            self.session, self.provider = session, name
            return

    def _check_answers(self, session: Any) -> None:
        shape = (2, 3, self.form.height, self.form.size)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        found = [own.run(["logits"], {"images": noise})[0] for own in (self.session, session)]
        gap = np.abs(softmax(found[0]) - softmax(found[1])).max()
        if not gap <= _TOLERANCE:  # NaN is more, too
            raise CheckpointError(f"its probabilities differ from the processor's by {gap:.1e}")

    def _check_shapes(self) -> None:
        """The sealed files fit each other; does the graph fit them?"""
        given = {value.name: value.shape[1:] for value in self.session.get_inputs()}
        made = {value.name: value.shape[1:] for value in self.session.get_outputs()}
        wanted = [3, self.form.height, self.form.size]
        if given != {"images": wanted} or made.get("logits") != [len(self.classes)]:
            raise CheckpointError(
                f"{GRAPH} takes {given} and gives {made}; expected images {wanted} and "
                f"{len(self.classes)} logits"
            )


def providers() -> list[str]:
    """Those of `PROVIDERS` that this ONNX Runtime has and that are taken unasked, in their order;
    the last is the processor.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    return [name for name, own in PROVIDERS.items() if own in there and name not in _ASKED_FOR]


def open_session(graph: bytes, threads: int | None = None, provider: str = "cpu") -> Any:
    """An ONNX Runtime session, on the processor or another provider.

    Its threads sleep while they wait: spinning takes a core from whoever decodes the next images
    or answers the next client.

    Raises:
        CheckpointError: ONNX Runtime cannot load it, or not with this provider.
        ConfigError: no such provider.
    """
    import onnxruntime

    if provider not in PROVIDERS:
        raise ConfigError([f"unknown provider {provider!r}; known: {', '.join(PROVIDERS)}"])
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise CheckpointError(f"this ONNX Runtime has no {name}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # what it cannot do is an exception
    own: dict[str, str] = {}
    if provider == "cuda":
        own = {"use_tf32": "0"}  # which would round to 10 bits
    if provider == "openvino":
        own = {"device_type": "CPU", "precision": "FP32"}
        own |= {"num_of_threads": str(threads)} if threads else {}
    if provider == "directml":
        options.enable_mem_pattern = False  # which it does not allow
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=[(name, own)])
    except Exception as error:  # its exceptions have no base class of their own
        raise CheckpointError(f"ONNX Runtime cannot load {GRAPH}: {error}") from None
    if name not in session.get_providers():  # without a driver, it goes to the processor by itself
        raise CheckpointError(f"{name} does not start")
    return session


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(B, C) logits -> probabilities (B, C), computed in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _unsealed(content: bytes) -> dict[str, Any]:
    """What `model.json` says."""
    try:
        return unsealed(content)
    except CheckpointError as error:
        raise CheckpointError(f"{MANIFEST}: {error}") from None


def _described(
    document: Mapping[str, Any],
) -> tuple[list[str], Form, list[float | None] | None, UnknownLimits | None, Evidence | None]:
    """Class names, form of the images, thresholds of prediction sets and of "none of the classes I
    know", and what columns beside the image say, from `model.json`.
    """
    classes, size = document.get("classes"), document.get("image_size")
    if document.get("format") != 2:
        raise CheckpointError(f"{MANIFEST}: format 2 expected")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{MANIFEST}: classes: expected a list of names")
    if not isinstance(size, int) or not classes:
        raise CheckpointError(f"{MANIFEST}: expected class names and image_size, a number")
    if problems := problems_of_names(classes):
        raise CheckpointError(f"{MANIFEST}: {'; '.join(problems)}")
    slices, window = document.get("image_slices", 1), document.get("image_window")
    if not isinstance(slices, int) or not _is_window(window):
        raise CheckpointError(f"{MANIFEST}: image_slices, image_window: expected a number, a range")
    form = Form.of(size, slices, window)
    unknown = document.get("unknown")
    try:
        limit = None if unknown is None else UnknownLimits.read(unknown)
        beside = document.get("clinical") and Evidence.read(document["clinical"], len(classes))
    except CheckpointError as error:
        raise CheckpointError(f"{MANIFEST}: {error}") from None
    sets = document.get("prediction_sets")
    if sets is None:
        return classes, form, None, limit, beside
    thresholds = sets.get("thresholds") if isinstance(sets, dict) else None
    if not isinstance(thresholds, list) or len(thresholds) != len(classes):
        raise CheckpointError(f"{MANIFEST}: prediction_sets: expected a threshold a class")
    if not all(t is None or (isinstance(t, float) and 0 <= t <= 1) for t in thresholds):
        raise CheckpointError(f"{MANIFEST}: prediction_sets: thresholds are in 0..1, or null")
    return classes, form, thresholds, limit, beside


def _is_window(window: Any) -> bool:
    numbers = isinstance(window, list) and all(isinstance(own, int | float) for own in window)
    return window is None or (numbers and len(window) == 2 and window[0] < window[1])


def _parents(document: Mapping[str, Any]) -> dict[str, str] | None:
    """What classes belong to, from `model.json`."""
    found: Any = document.get("parents")
    if found is None:
        return None
    named = isinstance(found, dict) and all(isinstance(own, str) for own in found.values())
    problems = problems_of_parents(found) if named else ["expected by class a name"]
    if problems:
        raise CheckpointError(f"{MANIFEST}: parents: {'; '.join(problems)}")
    parents: dict[str, str] = found
    return parents

"""Write a model in the forms that other programs run: safetensors, torch.export, ONNX.

Each is written, read again by the program that will run it, and held against the source on real
pictures; only then does the folder appear under its name. See docs/how-to/deploying.md.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

import dynammo
from dynammo.checkpoint import sealed, to_json, write_atomically
from dynammo.data.formats.pictures import Form, form_of, load_image
from dynammo.deploy.graph import GRAPH, MANIFEST, RECORD, has_graph, open_session, read_graph
from dynammo.deploy.predictor import Classifier, Predictor
from dynammo.deploy.pruning import prune
from dynammo.deploy.quantisation import quantise
from dynammo.deploy.trial import Trial, judged
from dynammo.errors import CheckpointError, ConfigError, ExportError
from dynammo.extras import needs
from dynammo.network.folding import cheapen
from dynammo.network.fusion import Fusion, batch_norms, fuse_batch_norms

with needs("export", "onnx"):
    import onnx

OPSET = 18
LOGIT_TOLERANCE = 1e-4  # of the largest logit of the source
PROBABILITY_TOLERANCE = 1e-3  # or what the source's own rounding makes of it, if that is more
_ROUNDINGS = 4  # of the source's own that a form's may amount to: its sums are in another order

_EXPORT = "export.json"
_FILES = {
    "safetensors": "model.safetensors",
    "pt2": "model.pt2",
    "onnx": GRAPH,
    "executorch": "model.pte",
}
FORMATS = ("safetensors", "pt2", "onnx")  # by default
_PREPROCESSING = (
    "RGB as uint8, EXIF orientation applied, transparency on black; resized to image_size x "
    "image_size with Pillow's BICUBIC, the aspect squashed; (batch, 3, height, width). The graph "
    "normalises."
)
_Outputs = tuple[Tensor, Tensor]


class Smaller(NamedTuple):
    """The images by which a smaller model is made and judged, the `max_drop` of mean class recall,
    in [0, 1], that is accepted, and the `share` of the multiplications that pruning leaves.
    """

    trial: Trial
    max_drop: float
    share: float = 0.6


class Deployed(nn.Module):
    """A classifier whose graph needs no code around it: pixels in, logits and probabilities out."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> _Outputs:
        """(B, 3, H, S) uint8 RGB -> logits (B, C) and their softmax, both of the weights' type."""
        logits = self.model(images)
        return logits, logits.softmax(1)


def export_model(
    source: str | Path,
    folder: str | Path,
    formats: Sequence[str] = FORMATS,
    images: Sequence[Path] | None = None,
    template: Path | None = None,
    int8: Smaller | None = None,
    pruned: Smaller | None = None,
) -> dict[str, Any]:
    """Write a model folder in other forms, checked, or change nothing.

    `folder` gets `model.json` (class names, size, provenance), `export.json` (what this returns)
    and a file a form; beside `model.onnx` also `graph.json`, by which `dynammo.deploy.graph` knows
    it. `model.safetensors` with `model.json` is again a model folder, and so is `model.onnx` with
    `graph.json` and `model.json`. `model.pt2` and `model.onnx` take `images`, (B, 3, S, S) uint8
    RGB with any B, and give `logits` and `probabilities`, (B, C) float32; adapters and BatchNorms
    are in their convolutions as far as that goes (`dynammo.network.folding.cheapen`,
    `dynammo.network.fusion`). So does `model.pte`, one image at a time
    (`dynammo.deploy.executorch`).

    Args:
        source: a model folder, or a results folder with one called `model`.
        folder: made; an earlier export there is replaced, anything else refused.
        formats: safetensors, pt2, onnx, executorch.
        images: pictures to check with, at least two; default: crops of the two photographs that
            come with scikit-learn.
        template: a model folder with the graph of a like network, the `formats` being `onnx` alone:
            that graph gets this model's weights, and the network is not traced.
        int8: the ONNX graph has its convolutions in 8 bits (`dynammo.deploy.quantisation`), if
            that costs no more than is said here.
        pruned: it has fewer channels (`dynammo.deploy.pruning`), likewise; with `int8`, both
            together may cost no more than is said here.

    Returns:
        `files` (form -> name, bytes, SHA-256, largest difference in logits relative to the source's
        largest logit, and in probability), `checked_on`, `opset`, `tolerance`, `versions` and so
        on; `int8`, `pruned` and `both`, what each costs and saves.

    Raises:
        CheckpointError: the source holds no usable model.
        ConfigError: an unknown form.
        DataError: a picture cannot be read.
        ExportError: `folder` holds something else or cannot be written, torch cannot export the
            network, the template is another network's, or a form's answers differ from those of
            the source in float64 by more than `LOGIT_TOLERANCE` of the largest logit or
            `PROBABILITY_TOLERANCE` (or four times what the source's own float32 differs by, where
            its logits are so large that this is more), or are another class; or 8 bits
            or pruning cost too much.
    """
    if unknown := [name for name in formats if name not in _FILES]:
        raise ConfigError(
            [f"unknown format {name!r}; known: {', '.join(_FILES)}" for name in unknown]
        )
    if not formats:
        raise ConfigError([f"no format to export to; known: {', '.join(_FILES)}"])
    for name, smaller in (("int8", int8), ("prune", pruned)):
        if smaller is not None and "onnx" not in formats:
            raise ConfigError([f"{name} is for the format onnx, which is not among those chosen"])
    target = Path(folder).resolve()
    _refuse_foreign(target)
    model = model_folder(Path(source))
    predictor = Predictor(model)
    pixels, checked_on = _pixels(images, predictor.form)
    manifest = (model / MANIFEST).read_bytes()
    metadata = _metadata(predictor, manifest)
    with appearing(target, _refuse_foreign) as temporary:
        (temporary / MANIFEST).write_bytes(manifest)
        fusions: dict[str, Fusion] = {}
        remaining = None
        if template is None and set(formats) - {"safetensors"}:
            fused, fusions = _fused(predictor.model, predictor.form)
            remaining = batch_norms(fused)
        if template is None and {"pt2", "onnx"} & set(formats):
            program = _program(fused, predictor.form)
        for name in _FILES:
            path = temporary / _FILES[name]
            if name not in formats:
                continue
            if name == "safetensors":
                # One text: several would be written in any order.
                text = {"dynammo": json.dumps(metadata, sort_keys=True)}
                path.write_bytes(save(load_file(model / path.name), text))
            elif name == "pt2":
                torch.export.save(program, path, extra_files=metadata)
            elif name == "executorch":
                path.write_bytes(_executorch(fused, predictor.form, metadata))
            elif template is None:
                path.write_bytes(_onnx(program, metadata))
            else:
                content, fusions = _filled(template, predictor, metadata)
                path.write_bytes(content)
        exact = _in_two_batches(Deployed(copy.deepcopy(predictor.model).double()), pixels)
        rounded = _in_two_batches(Deployed(predictor.model), pixels)
        tolerated = max(PROBABILITY_TOLERANCE, _ROUNDINGS * _largest(rounded[1] - exact[1]))
        report: dict[str, Any] = {
            "format": 1,
            "files": {},
            "checked_on": checked_on,
            "tolerance": {"logits": LOGIT_TOLERANCE, "probability": tolerated},
            "source_sha256": _sha256(model / _FILES["safetensors"]),
            "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "timm")},
        }
        if "onnx" in formats:
            report["opset"] = OPSET
        if remaining is not None:
            report["batch_norms_left"] = remaining
        for name in (name for name in _FILES if name in formats):
            path = temporary / _FILES[name]
            answer = _in_two_batches(_loaded(name, temporary), pixels)
            report["files"][name] = {
                **_file(path),
                **_differences(name, exact, answer, tolerated),
            }
        if int8 is not None or pruned is not None:
            path = temporary / GRAPH
            about = report["files"]["onnx"]
            path.write_bytes(
                _made_smaller(path.read_bytes(), predictor.classes, int8, pruned, report)
            )
            answer = _in_two_batches(_loaded("onnx", temporary), pixels)
            report["float"] = about
            report["files"]["onnx"] = {
                **_file(path),
                "logit_difference": _relative(answer, exact),
                "probability_difference": _largest(answer[1] - exact[1]),
            }
            fusions = {}  # no later version's weights fit in
        write_atomically(temporary / _EXPORT, to_json(report))
        if "onnx" in formats:
            write_atomically(temporary / RECORD, _record(report, manifest, fusions))
    return report


def _made_smaller(
    graph: bytes,
    classes: Sequence[str],
    int8: Smaller | None,
    pruned: Smaller | None,
    report: dict[str, Any],
) -> bytes:
    """The graph with fewer channels, then in 8 bits; what that costs goes into the report."""
    made = graph
    if pruned is not None:
        found = prune(made, pruned.trial, classes, pruned.share, pruned.max_drop)
        made, report["pruned"] = found.graph, found.report
    if int8 is not None:
        quantised = quantise(made, int8.trial, classes, int8.max_drop)
        made, report["int8"] = quantised.graph, quantised.report
    if int8 is not None and pruned is not None:
        report["both"], _ = judged(
            "pruning with int8", "both", (graph, made), pruned.trial, classes, pruned.max_drop
        )
    return made


def _file(path: Path) -> dict[str, Any]:
    """What the report says of a file itself."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _record(report: Mapping[str, Any], manifest: bytes, fusions: Mapping[str, Fusion]) -> bytes:
    """What ties the graph to its model, how it was checked, and what its weights are made of."""
    about = ("checked_on", "opset", "tolerance", "versions")
    checked = {name: report[name] for name in about} | report["files"]["onnx"]
    made_of = {name: fusion._asdict() for name, fusion in fusions.items()}
    document = {"model_sha256": hashlib.sha256(manifest).hexdigest(), "fusions": made_of, **checked}
    for way in ("pruned", "int8", "both"):
        if way in report:
            document[way] = {name: report[way][name] for name in ("drop", "max_drop", "images")}
    return sealed(document)


def add_graph(folder: Path, earlier: Path | None = None) -> dict[str, Any]:
    """Put the ONNX graph and its record into a model folder, checked as `export_model` does.

    Args:
        folder: of the model.
        earlier: a folder of a model that may be of a like network: its graph is taken, if it has
            one that gives this model's answers with this model's weights in it. That spares
            tracing the network, most of the time an export takes.

    Raises:
        ExportError, CheckpointError: as `export_model` does; the folder is as it was.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made, report = Path(temporary) / "export", None
        if earlier is not None and has_graph(earlier):
            with suppress(ExportError):  # it does not fit
                report = export_model(folder, made, ["onnx"], template=earlier)
        report = report or export_model(folder, made, ["onnx"])
        for name in (GRAPH, RECORD):
            os.replace(made / name, folder / name)
    return report


def sample_pixels(form: Form | int, count: int = 16) -> NDArray[np.uint8]:
    """(count, height, size, 3): real pictures that are always at hand, or strips of them.

    Squares of growing side, along the diagonals of the two photographs that come with scikit-learn.
    """
    form = form_of(form)
    photographs: list[NDArray[np.uint8]] = load_sample_images().images
    crops = []
    for index in range(count):
        photograph = photographs[index % 2]
        height = photograph.shape[0]
        side = height // 4 + index * height // (2 * count)
        start = (height - side) * index // count
        crops.append(load_image(photograph[start : start + side, start : start + side], form.size))
    order = (np.arange(count)[:, None] + np.arange(form.slices)) % count
    strips: NDArray[np.uint8] = np.stack(crops)[order].reshape(count, *form.shape)
    return strips


def _pixels(images: Sequence[Path] | None, form: Form) -> tuple[Tensor, dict[str, Any]]:
    """(N, 3, H, S) uint8, and what they are."""
    if images is None:
        array, what = sample_pixels(form), "crops of scikit-learn's two photographs"
    elif len(images) < 2:
        raise ExportError(f"{len(images)} images to check with are too few: give two or more")
    else:
        array, what = np.stack([load_image(i, form) for i in images]), "given images"
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()
    return tensor, {"images": len(array), "what": what}


def model_folder(source: Path) -> Path:
    """A model's folder, given it or a folder that has it as `model`."""
    inner = source / "model"
    return inner if not (source / MANIFEST).is_file() and inner.is_dir() else source


def _metadata(predictor: Predictor, manifest: bytes) -> dict[str, str]:
    """The texts that travel inside every file."""
    slices = predictor.form.slices
    return {
        "classes": json.dumps(predictor.classes, ensure_ascii=False),
        "image_size": str(predictor.form.size),
        "preprocessing": _PREPROCESSING
        if slices == 1
        else f"{slices} slices of a volume, one below the other; each: {_PREPROCESSING}",
        "dynammo": dynammo.__version__,
        MANIFEST: manifest.decode(),
    }


def _cheapened(model: Classifier) -> Deployed:
    return Deployed(Classifier(cheapen(model.network), model.head_state))


def _fused(model: Classifier, form: Form) -> tuple[GraphModule, dict[str, Fusion]]:
    """The network with adapters and BatchNorms in its convolutions; these."""
    fused, fusions = fuse_batch_norms(_trace(_cheapened(model), form))
    # Its weights are laid out plainly: what torch.export.save cannot write otherwise it warns of.
    for owner in fused.modules():
        for parameter in owner.parameters(recurse=False):
            parameter.data = parameter.data.contiguous()
    return fused, fusions


def _program(fused: GraphModule, form: Form, batch: int | None = None) -> ExportedProgram:
    """It traced, without what is this machine's; for any number of images at a time, or for one."""
    program = _trace(fused, form, batch)
    # Kept, they would be saved as a pickle.
    program.example_inputs = None
    for node in program.graph.nodes:
        # Paths and lines of this machine's files have no business in a published model.
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(name, None)
    return program


def _trace(module: nn.Module, form: Form, batch: int | None = None) -> ExportedProgram:
    blank = torch.zeros(batch or 2, 3, form.height, form.size, dtype=torch.uint8)
    shapes = None if batch else {"images": {0: Dim("batch")}}
    try:
        with torch.no_grad():
            return torch.export.export(module, (blank,), dynamic_shapes=shapes)
    except Exception as error:  # the network's own code ran, on stand-ins for tensors
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"torch.export cannot trace this network: {reason}") from None


def _executorch(fused: GraphModule, form: Form, metadata: Mapping[str, str]) -> bytes:
    from dynammo.deploy.executorch import to_executorch

    texts = {name: text for name, text in metadata.items() if name.isidentifier()}
    return to_executorch(_program(fused, form, batch=1), texts)


def _onnx(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # torch's own code
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits", "probabilities"],
                verbose=False,
            )
        except Exception as error:  # whatever the conversion of any operation raises
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"torch.onnx cannot convert this network: {reason}") from None
    assert exported is not None
    return _finished(exported.model_proto, metadata)


def _finished(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The graph with a batch of any size and its texts, and nothing of this machine; checked."""
    del proto.graph.value_info[:]  # shapes of intermediate values: not needed
    for node in proto.graph.node:
        del node.metadata_props[:]  # lines of this machine's files
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del value.metadata_props[:]
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _filled(
    template: Path, predictor: Predictor, metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Fusion]]:
    """The template's graph with this model's weights, and what they are made of. Whether it then
    gives this model's answers is for the caller to see.

    Raises:
        ExportError: there is no sound graph, or its weights have other names or shapes.
    """
    try:
        stored = read_graph(template)
        fusions = {name: Fusion(**fields) for name, fields in stored.record["fusions"].items()}
        values = _cheapened(predictor.model).state_dict()
        for name, fusion in fusions.items():
            parts = fusion.fused(values).items()
            values |= {f"{name}_{part}": value for part, value in parts}
    except (CheckpointError, OSError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{template} holds no graph to fill: {error!r}") from None
    proto = onnx.load_from_string(stored.graph)
    for tensor in proto.graph.initializer:
        if (value := values.get(tensor.name)) is None:
            continue  # a constant of the network
        if list(tensor.dims[1:]) != list(value.shape[1:]):
            raise ExportError(f"{template} holds the graph of another network")
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.cpu().numpy(), tensor.name))
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = len(predictor.classes)
    return _finished(proto, metadata), fusions


def _loaded(name: str, folder: Path) -> Callable[[Tensor], _Outputs]:
    """The form as its users read it."""
    if name == "safetensors":
        return Deployed(Predictor(folder).model)
    if name == "pt2":
        program = torch.export.load(folder / _FILES[name]).module()
        return lambda images: program(images)
    if name == "executorch":
        from dynammo.deploy.executorch import load_executorch

        return load_executorch(folder / _FILES[name])
    session = open_session((folder / _FILES[name]).read_bytes())

    def run(images: Tensor) -> _Outputs:
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return run


@torch.inference_mode()
def _in_two_batches(model: Callable[[Tensor], _Outputs], pixels: Tensor) -> _Outputs:
    """One image, then all others: the size of a batch must not be fixed in the file."""
    first, others = model(pixels[:1]), model(pixels[1:])
    return torch.cat([first[0], others[0]]), torch.cat([first[1], others[1]])


def _differences(
    name: str, exact: _Outputs, answer: _Outputs, tolerated: float
) -> dict[str, float]:
    """The largest differences from what the source computes in float64.

    Args:
        name: of the form.
        exact: of the source, float64.
        answer: of the form.
        tolerated: difference in probability.

    Raises:
        ExportError: larger than tolerated, another class where the source is sure beyond that, or
            no numbers.
    """
    logits = _relative(answer, exact)
    probability = _largest(answer[1] - exact[1])
    if not (logits <= LOGIT_TOLERANCE and probability <= tolerated):  # NaN fails too
        raise ExportError(
            f"the {name} export does not predict what the model predicts: logits differ by "
            f"{logits:.1e} of the largest (tolerated {LOGIT_TOLERANCE:.0e}), probabilities by "
            f"{probability:.1e} (tolerated {tolerated:.1e}); nothing was written"
        )
    chosen = exact[1].gather(1, answer[0].argmax(1, keepdim=True))[:, 0]
    if others := int((exact[1].amax(1) - chosen > 2 * tolerated).sum()):
        raise ExportError(
            f"the {name} export names another class than the model on {others} of the images; "
            "nothing was written"
        )
    return {"logit_difference": logits, "probability_difference": probability}


def _relative(answer: _Outputs, exact: _Outputs) -> float:
    """The largest difference of logits, of the largest exact one."""
    scale = exact[0].abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return _largest(answer[0] - exact[0]) / float(scale)


def _largest(differences: Tensor) -> float:
    return float(differences.abs().max())


def _refuse_foreign(folder: Path) -> None:
    """Raises `ExportError` unless the folder is missing, empty, or an earlier export."""
    if folder.is_dir():
        found = {path.name for path in folder.iterdir()}
        strange = sorted(found - {*_FILES.values(), MANIFEST, RECORD, _EXPORT})
        if found and (strange or _EXPORT not in found):
            what = strange[0] if strange else f"no {_EXPORT}"
            raise ExportError(
                f"{folder} is no earlier export ({what} in it): choose another folder"
            )
    elif folder.exists():
        raise ExportError(f"{folder} is no folder: choose another one")


@contextmanager
def appearing(folder: Path, refuse: Callable[[Path], None]) -> Iterator[Path]:
    """A temporary folder beside, which takes the folder's place if all goes well.

    Args:
        folder: missing, or to be replaced.
        refuse: raises `ExportError` if it must not be.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error.strerror}") from None
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        refuse(folder)  # nothing may have come meanwhile
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Warnings about what does not concern a model, such as packages that are not installed."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

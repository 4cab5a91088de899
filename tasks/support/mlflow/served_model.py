"""Log the deployable model in MLflow and register it, for `mlflow models serve` to serve."""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TypedDict

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Map
from numpy.typing import NDArray
from PIL import Image

import dynammo
from dynammo.data.formats.pictures import Form, Source, as_given, decode
from dynammo.reporting.figures import thumbnail
from tasks.support.mlflow.runs import RUN_KEY, mlflow_client

SHA256, LEARNER = "dynammo.sha256", "learner"  # tags of a registered version

_CODE = Path(__file__).with_name("pyfunc_model.py")
_PACKAGES = (
    "cryptography",
    "mlflow",
    "numpy",
    "onnxruntime",
    "pandas",
    "pillow",
    "pydantic",
    "pydicom",
    "pyyaml",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)
_OF_VOLUMES = ("av", "nibabel")  # of the extra "volumes", which is not always installed
# An image is an array or a text, and no other of MLflow's types admits both.
_ANY = AnyType()  # type: ignore[no-untyped-call]
_OUTPUTS = Schema(
    [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
        ColSpec(Array(DataType.string), "prediction_set", required=False),
        ColSpec(DataType.boolean, "unknown", required=False),
        ColSpec(DataType.string, "heat_map", required=False),
    ]
)
_PARAMS = ParamSchema([ParamSpec("heat_map", DataType.boolean, False)])
_EXAMPLE_SIDE = 128
_ABOUT = (
    "Tells classes of images apart that it learnt one task after another (DynaMMo, arXiv "
    "2404.14099). Input: a column `image`, each an array (H x W x 3 or H x W) or a base64-encoded "
    "image file. Output: for each image `label`, `probability`, `probabilities` by class name, "
    "`prediction_set`, the classes that cannot be excluded, and `unknown`, whether it seems to be "
    "of none; with the parameter `heat_map`, a PNG as base64 of what speaks for the label."
)


class ModelInfo(TypedDict):
    """A model logged in MLflow. `uri` can be loaded and served; `sha256` is of its files."""

    model_id: str
    uri: str
    sha256: str


def plain_example(form: Form) -> NDArray[np.uint8]:
    """A grey image: an example is seen by everybody who sees the model, so not a patient's."""
    grey = np.full(form.shape, 128, dtype=np.uint8)
    return as_given(grey, form)


def log_model(
    run_id: str, folder: Path, name: str, example: Source, learner: Path | None = None
) -> ModelInfo:
    """Log the model folder of `dynammo.deploy.predictor.save_model` as an MLflow model.

    It carries the dynammo package, so it can be served from anywhere, and no pickle. A run that has
    a model of the same content already keeps it.

    Args:
        run_id: the run of the merged variant.
        folder: with model.safetensors and model.json.
        name: shown in MLflow.
        example: a picture to send to the model, shown with it to everybody who sees the model: take
            none of a patient's. It is shrunk to at most 128 pixels a side.
        learner: a learner's folder that the model carries along, to go on learning from it.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
        DataError: the example cannot be read.
    """
    digest = hash_folder(folder)
    artifacts = {"model": str(folder)}
    if learner is not None:
        artifacts["learner"] = str(learner)
        digest = hashlib.sha256(
            f"{digest} {hash_folder(learner / 'versions')}".encode()
        ).hexdigest()
    input_example = pd.DataFrame({"image": [_encode_example(example)]})
    columns = _columns(folder)
    with mlflow_client() as client:
        model = _logged(client, run_id, digest)
        if model is None:
            run = client.get_run(run_id)
            model = client.create_logged_model(
                run.info.experiment_id,
                name=name,
                source_run_id=run_id,
                tags={SHA256: digest},
                params=run.data.params,
                model_type="image classifier",
            )
            with tempfile.TemporaryDirectory() as temporary:
                local = str(Path(temporary) / "model")
                mlflow.pyfunc.save_model(
                    path=local,
                    python_model=str(_CODE),
                    artifacts=artifacts,
                    code_paths=[str(Path(dynammo.__file__).parent)],
                    pip_requirements=_requirements(folder),
                    signature=ModelSignature(
                        inputs=Schema([ColSpec(_ANY, "image"), *columns]),
                        outputs=_OUTPUTS,
                        params=_PARAMS,
                    ),
                    input_example=input_example,
                    mlflow_model=Model(
                        artifact_path=model.artifact_location,
                        run_id=run_id,
                        model_uuid=model.model_id,
                        model_id=model.model_id,
                    ),
                )
                client.log_model_artifacts(model.model_id, local)
            client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return {"model_id": model.model_id, "uri": f"models:/{model.model_id}", "sha256": digest}


def _columns(folder: Path) -> list[ColSpec]:
    """What a model folder's answers go by beside the image; each row may leave it out."""
    document = json.loads((folder / "model.json").read_bytes()).get("clinical") or {}
    names = [*document.get("categories", ()), *document.get("numbers", ())]
    return [ColSpec(_ANY, name, required=False) for name in names]


def register(
    model_name: str,
    run_id: str,
    model: ModelInfo,
    *,
    data_hash: str,
    classes: Sequence[str],
    summary: Mapping[str, float | None],
    learner: str | None = None,
) -> str:
    """Register a logged model, once: the same content from the same run keeps its version.

    Args:
        model_name: such as dynammo-skin8; made if missing.
        run_id: the run that made it.
        model: what `log_model` returned.
        data_hash: of the data it was measured on.
        classes: that it tells apart.
        summary: its summary metrics. All three are kept as tags to compare champions by:
            `data_hash`, `classes`, `last_mean_class_recall` and so on.
        learner: of which it is a version; kept as a tag, too.

    Returns:
        The version.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
    """
    metrics = {name: repr(float(value)) for name, value in summary.items() if value is not None}
    tags = {
        SHA256: model["sha256"],
        "data_hash": data_hash,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        **metrics,
        **({LEARNER: learner} if learner else {}),
    }
    with mlflow_client() as client:
        if not client.search_registered_models(f"name = '{model_name}'"):
            client.create_registered_model(model_name, description=_ABOUT)
        number = next(
            (
                str(known.version)
                for known in client.search_model_versions(f"name = '{model_name}'")
                if known.run_id == run_id and known.tags.get(SHA256) == model["sha256"]
            ),
            None,
        )
        if number is None:
            made = client.create_model_version(
                model_name,
                # Not models:/<id>, which MLflow looks up wherever its global tracking URI points.
                client.get_logged_model(model["model_id"]).artifact_location,
                run_id=run_id,
                tags=tags,
                description=_describe(classes, summary, data_hash),
                model_id=model["model_id"],
            )
            number = str(made.version)
        # Shows the version on the logged model's page, as MLflow's own log_model does. Of a known
        # version, too: who registered it may have been killed before this.
        link = [{"name": model_name, "version": int(number)}]
        client.set_logged_model_tags(model["model_id"], {"mlflow.modelVersions": json.dumps(link)})
        return number


def versions_from(model_name: str, run_key: str) -> set[str]:
    """The versions of a registered model that runs of one key made; none where there is no model.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
    """
    with mlflow_client() as client:
        versions = list(client.search_model_versions(f"name = '{model_name}'"))
        runs = {known.run_id for known in versions if known.run_id}
        own = {run for run in runs if client.get_run(run).data.tags.get(RUN_KEY) == run_key}
    return {str(known.version) for known in versions if known.run_id in own}


def hash_folder(folder: Path) -> str:
    """SHA-256 of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{file.name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _logged(client: MlflowClient, run_id: str, digest: str) -> LoggedModel | None:
    """The complete model of this content that the run has already.

    One that is not complete was being logged by a process that was killed, and ends as FAILED.
    """
    experiment_id = client.get_run(run_id).info.experiment_id
    found: Iterable[LoggedModel] = client.search_logged_models(
        [experiment_id], filter_string=f"tags.`{SHA256}` = '{digest}'"
    )
    ready = None
    for model in found:
        if model.source_run_id != run_id:
            continue
        if model.status == LoggedModelStatus.READY:
            ready = model
        elif model.status == LoggedModelStatus.PENDING:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
    return ready


def _encode_example(example: Source) -> str:
    """A small PNG, of a volume a TIFF, as base64: short enough to read past, and ready to be
    sent.
    """
    if isinstance(example, np.ndarray) and example.ndim == 4:
        pages, file = [Image.fromarray(own) for own in example], BytesIO()
        for page in pages:
            page.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
        first, *others = pages
        first.save(file, "tiff", save_all=True, append_images=others, compression="tiff_deflate")
        return base64.b64encode(file.getvalue()).decode()
    return base64.b64encode(thumbnail(decode(example), _EXAMPLE_SIDE)).decode()


def _requirements(folder: Path) -> list[str]:
    """What answering with a model folder needs; of volumes, also what of the extra is there."""
    names = [*_PACKAGES]
    if json.loads((folder / "model.json").read_bytes()).get("image_slices", 1) > 1:
        names += [name for name in _OF_VOLUMES if find_spec(name)]
    return [f"{name}=={_version(name)}" for name in names]


def _version(package: str) -> str:
    """As installed, less a local suffix such as +cpu, which no index has."""
    return version(package).partition("+")[0]


def _describe(classes: Sequence[str], summary: Mapping[str, float | None], data_hash: str) -> str:
    names = ("last_mean_class_recall", "last_accuracy")
    shown = [f"{n.replace('_', ' ')} {v:.1%}" for n in names if (v := summary.get(n)) is not None]
    return f"{len(classes)} classes; {', '.join(shown)} on data {data_hash[:12]}."

"""A model as a MONAI bundle: a folder that MONAI's programs run without DynaMMo."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dynammo
from dynammo.checkpoint import to_json
from dynammo.deploy import bundle_network
from dynammo.deploy.export import appearing, export_model
from dynammo.deploy.manifest import Manifest, parse_manifest
from dynammo.errors import ExportError

MONAI = "1.6.1"  # what it was tried with
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)


def export_bundle(
    source: str | Path, folder: str | Path, images: Sequence[Path] | None = None
) -> dict[str, Any]:
    """Write a bundle: `configs/`, `scripts/network.py`, and `models/` as `export_model` makes it.

    The network is the program `models/model.pt2`; there is no `model.pt`, which would be a pickle.

    Args:
        source: a model folder, or a results folder with one called `model`.
        folder: made; one with anything in it is refused.
        images: pictures to check the answers on, see `export_model`.

    Returns:
        What `export_model` does.

    Raises:
        ExportError: the folder holds something or cannot be written, or as `export_model`.
        CheckpointError, DataError: as `export_model`.
    """
    target = Path(folder).resolve()
    _refuse_filled(target)
    with appearing(target, _refuse_filled) as made:
        report = export_model(source, made / "models", ["pt2"], images)
        manifest = parse_manifest((made / "models" / "model.json").read_bytes())
        if manifest.form.volumes:
            raise ExportError("a bundle reads pictures, and this model is of volumes")
        for name in ("configs", "scripts"):
            (made / name).mkdir()
        (made / "configs" / "metadata.json").write_bytes(to_json(_metadata(manifest)))
        (made / "configs" / "inference.json").write_bytes(to_json(_inference(manifest)))
        (made / "scripts" / "__init__.py").touch()
        shutil.copyfile(bundle_network.__file__, made / "scripts" / "network.py")
    return report


def _refuse_filled(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is no empty folder: choose another one")


def _metadata(manifest: Manifest) -> dict[str, Any]:
    """`metadata.json`, by MONAI's schema. What nobody has told DynaMMo is not stated."""
    size, classes = manifest.image_size, manifest.classes
    return {
        "schema": _SCHEMA,
        "version": f"0+{manifest.weights_sha256[:12]}",
        "monai_version": MONAI,
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "pillow": version("pillow"),
            "pytorch-ignite": "0.5.5",
        },
        "task": f"Classification of images into {len(classes)} classes",
        "description": f"A network made with DynaMMo {dynammo.__version__}; models/model.json says "
        "what it is made of.",
        "authors": "not stated",
        "copyright": "not stated",
        "data_type": "PNG, JPEG and other pictures that Pillow reads; RGB",
        "pred_classes": ", ".join(classes),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "RGB",
                    "num_channels": 3,
                    "spatial_shape": [size, size],
                    "dtype": "float32",
                    "value_range": [0, 255],
                    "is_patch_data": False,
                    "channel_def": {"0": "red", "1": "green", "2": "blue"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(classes),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(number): name for number, name in enumerate(classes)},
                }
            },
        },
    }


def _inference(manifest: Manifest) -> dict[str, Any]:
    """`inference.json`: pictures of `dataset_dir` in, `output_dir`/predictions.csv out."""
    read = {
        "_target_": "scripts.network.read_picture",
        "_mode_": "callable",
        "size": manifest.image_size,
    }
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cpu')",
        "network_def": {
            "_target_": "scripts.network.Exported",
            "file": "$@bundle_root + '/models/model.pt2'",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Lambdad", "keys": "image", "func": read},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': f, 'file': f} for f in sorted(glob.glob(@dataset_dir + '/*.*'))]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 8},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "batch_transform": "$lambda batch: [{'filename_or_obj': b['file']} for b in batch]",
                "output_transform": "$lambda output: [one['pred'] for one in output]",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }

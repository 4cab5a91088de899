"""DynaMMo: class-incremental learning by merging one adapter a task (arXiv 2404.14099).

The names in `__all__` are what other code is meant to use. Each is imported when it is first asked
for: `import dynammo` alone loads neither torch nor anything of the pipeline.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynammo.adapters import ADAPTERS
    from dynammo.config import load_config
    from dynammo.data import DATA_SOURCES
    from dynammo.data.sources.loading import load_source
    from dynammo.deploy.export import export_model
    from dynammo.deploy.graph import load_predictor
    from dynammo.deploy.predictor import Predictor
    from dynammo.evaluation.metrics import evaluate_stage
    from dynammo.heads import HEAD_RULES
    from dynammo.learner.folder import LearnerFolder
    from dynammo.memory.herding import herd
    from dynammo.merging import MERGE_RULES
    from dynammo.methods import METHODS
    from dynammo.network.network import build_network
    from dynammo.training.loop import train_adapter

__version__ = "0.1.0"

__all__ = [
    "ADAPTERS",
    "DATA_SOURCES",
    "HEAD_RULES",
    "MERGE_RULES",
    "METHODS",
    "LearnerFolder",
    "Predictor",
    "build_network",
    "evaluate_stage",
    "export_model",
    "herd",
    "load_config",
    "load_predictor",
    "load_source",
    "train_adapter",
]

_MODULES = {
    "ADAPTERS": "dynammo.adapters",
    "DATA_SOURCES": "dynammo.data",
    "HEAD_RULES": "dynammo.heads",
    "MERGE_RULES": "dynammo.merging",
    "METHODS": "dynammo.methods",
    "LearnerFolder": "dynammo.learner.folder",
    "Predictor": "dynammo.deploy.predictor",
    "build_network": "dynammo.network.network",
    "evaluate_stage": "dynammo.evaluation.metrics",
    "export_model": "dynammo.deploy.export",
    "herd": "dynammo.memory.herding",
    "load_config": "dynammo.config",
    "load_predictor": "dynammo.deploy.graph",
    "load_source": "dynammo.data.sources.loading",
    "train_adapter": "dynammo.training.loop",
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dynammo' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

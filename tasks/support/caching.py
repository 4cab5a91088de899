"""Steps: Prefect tasks that run once for given inputs and code, and never again.

A step's cache key is the hash of its name, its arguments (references to checkpoints count by their
content's hash), the device, the code it runs and the versions of the libraries that do the
arithmetic. What a step depends on of the configuration is what its signature names: sections, or
single values. Of a `Context`, which holds places and labels, the device counts, and whose
learner it is. So a changed setting, image or line of code re-runs exactly the steps that depend on
it, and a killed flow, started again, takes up where it was.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import grimp
from prefect import Task, task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from pydantic import BaseModel

from dynammo.adapters import ADAPTERS
from dynammo.checkpoint import CheckpointStore, references_in
from dynammo.config import AdapterConfig, Config, HeadConfig, MergeConfig
from dynammo.heads import HEAD_RULES
from dynammo.merging import MERGE_RULES
from dynammo.methods import METHODS
from tasks.support.workspace import RESULTS, Context, versions

R = TypeVar("R")

# What metrics depend on; a run is the same run while these and the settings stay the same.
CODE = (
    *("tasks.train_adapter", "tasks.merge_adapters", "tasks.select_exemplars", "tasks.fit_head"),
    *("tasks.evaluate", "tasks.merge_inputs", "tasks.learn_method", "tasks.extract_features"),
    *("tasks.update_statistics", "tasks.version_data", "tasks.prepare_backbone"),
    *("tasks.keep_images", "tasks.trust_adapter", "tasks.count_columns"),
)
# What these say is in the key by value already: settings, and the names of the parts chosen.
_BY_VALUE = {
    "dynammo.config",
    "dynammo.config.documents",
    "dynammo.config.presets",
    "dynammo.config.reading",
    "dynammo.config.sections",
    "dynammo.errors",
    "dynammo.registry",
    "dynammo.adapters",
    "dynammo.heads",
    "dynammo.merging",
    "dynammo.methods",
    "dynammo.data",
    "tasks.support.caching",
    "tasks.support.workspace",
}


@dataclass
class StepCache(CachePolicy):
    """The cache policy of a step.

    Args:
        modules: where the step's code is; what they import counts too.
    """

    modules: tuple[str, ...] = ()

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The cache key. A result whose files are gone or damaged is forgotten first."""
        (context,) = (value for value in inputs.values() if isinstance(value, Context))
        arguments = {k: v for k, v in inputs.items() if not isinstance(v, Context)}
        arguments["device"] = context.device
        if context.key:  # what a learner keeps is named under its own key
            arguments["key"] = hashlib.sha256(context.key.encode()).hexdigest()
        key = step_key(task_ctx.task.name, arguments, self.modules)
        _forget_unless_intact(RESULTS / key, context.checkpoints)
        if journal := context.journal:
            with journal.open("a", encoding="utf-8") as file:
                file.write(f"{key}\n")
        return key


def step(name: str, *modules: str, **options: Any) -> Callable[[Callable[..., R]], Task[..., R]]:
    """Decorate a function as a step.

    Args:
        name: shown by Prefect; part of the cache key.
        modules: of dynammo, whose code the step runs (with all that they import).
        options: further arguments of `prefect.task`.
    """

    def decorate(function: Callable[..., R]) -> Task[..., R]:
        return task(
            name=name,
            persist_result=True,
            result_storage=RESULTS,
            result_serializer="json",  # the default would pickle
            cache_policy=StepCache(modules=(function.__module__, *modules)),
            **options,
        )(function)

    return decorate


def step_key(name: str, arguments: dict[str, Any], modules: Sequence[str]) -> str:
    """The hash that names a step's result."""
    parts = sorted(set(_parts(arguments)))
    document = [name, _plain(arguments), code_version(*modules, *parts), versions()]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def code_version(*modules: str) -> str:
    """Hash of the code of some modules and of all that they import, directly or not, from here.

    Comments and layout do not count. A module from elsewhere (a part that a user registered) counts
    by itself.
    """
    graph = _import_graph()
    wanted = set(modules)
    for module in modules:
        if module in graph.modules:
            wanted |= graph.find_upstream_modules(module)
    digests = [f"{module}:{_code_hash(module)}" for module in sorted(wanted)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Sections of the configuration as the values that they hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", warnings=False)
    return (
        {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value
    )


def _parts(arguments: dict[str, Any]) -> Iterator[str]:
    """Modules of the registered parts that a step's arguments choose by name."""
    for value in arguments.values():
        if isinstance(value, AdapterConfig):
            yield ADAPTERS.module(value.name)
        elif isinstance(value, MergeConfig):
            yield MERGE_RULES.module(value.rule)
        elif isinstance(value, HeadConfig):
            yield HEAD_RULES.module(value.rule)
        elif isinstance(value, Config):
            held = {name: getattr(value, name) for name in value.model_fields_set}
            yield from _parts(held)
            for method in held.get("methods", ()):
                yield METHODS.module(method)


@lru_cache(maxsize=1)
def _import_graph() -> grimp.ImportGraph:
    graph = grimp.build_graph(
        "dynammo", "tasks", cache_dir=None, exclude_type_checking_imports=True
    )
    for module in _BY_VALUE:
        for importer in graph.find_modules_that_directly_import(module):
            graph.remove_import(importer=importer, imported=module)
    return graph


@cache
def _code_hash(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _forget_unless_intact(record: Path, store: CheckpointStore) -> None:
    """Delete a cached result that refers to a checkpoint which is not there as it was saved."""
    try:
        result = json.loads(json.loads(record.read_text(encoding="utf-8"))["result"])
        intact = all(store.intact(ref) for ref in references_in(result))
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        record.unlink(missing_ok=True)

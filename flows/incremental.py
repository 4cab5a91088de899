"""The flow `dynammo`: learn the tasks of a scenario one after another.

Version the data; then for each task and method learn, select exemplars and evaluate (with adapters:
train one, merge, select, fit heads); finally publish and register. Run it with `dynammo run`,
or as the deployment `dynammo/incremental`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from dynammo.checkpoint import Ref
from dynammo.checks import check_parts
from dynammo.config import Config, load_config
from dynammo.heads import HEAD_RULES
from dynammo.methods import METHODS
from dynammo.methods.base import is_generic
from tasks.adapters import (
    prepare_backbone,
    renormalise_backbone,
    train_adapter,
    weights_hash,
    weights_settings,
)
from tasks.data import DataVersion, TaskData, prepare_images, version_data
from tasks.evaluation import evaluate, extract_test_features
from tasks.exemplars import select_exemplars
from tasks.features import extract_training_features
from tasks.heads import fine_tune_task_heads, fit_head
from tasks.merge_inputs import merge_inputs
from tasks.merging import merge_adapters
from tasks.methods import evaluate_method, learn_task, method_settings, remember
from tasks.publishing import check_output, publish
from tasks.stage import Adapted, Learnt, Peer, Stage, Variant
from tasks.statistics import update_statistics
from tasks.support.logs import shorten_expected_errors
from tasks.support.workspace import Classes, Context, choose_device, settings
from tasks.tracking import close_runs, open_runs, register, track_stage

PARAMS = "params.yaml"
shorten_expected_errors()


def _run_name() -> str:
    """What the run is about, for the list of runs."""
    parameters = flow_run.parameters
    return load_config(parameters.get("params"), parameters.get("overrides")).title


@flow(name="dynammo", flow_run_name=_run_name)
def incremental(
    params: str | None = PARAMS, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Class-incremental learning by each of the configured methods.

    Args:
        params: YAML file of the configuration, relative to the project; none means the defaults.
        overrides: settings that win over the file: {"train.epochs": 3, "data.path": "..."}.

    Returns:
        `output`, the folder of the results, and `summary`, each method's summary metrics.
    """
    config = load_config(params, overrides)
    check_output(config.output_dir)
    check_parts(config)
    data = version_data(config)
    context: Context = {
        "manifest": data["manifest"],
        "images": prepare_images(data["manifest"], config.image.size, config.data.repeats),
        "device": choose_device(config.device),
        "cache_mb": config.train.cache_mb,
        "label": "",
    }
    backbone = prepare_backbone(
        weights_settings(config),
        weights_hash(config.backbone),
        context,
    )
    if config.backbone.renormalise:
        backbone = renormalise_backbone(
            settings(config, "seed", "backbone", "image"),
            config.backbone.renormalise,
            data["tasks"][0]["train"],
            backbone,
            context,
        )
    runs = open_runs(config, data, backbone)
    try:
        stages: list[Stage] = []
        for part in data["tasks"]:
            label = f"{part['number']}/{len(data['tasks'])}"
            here: Context = {**context, "label": label}
            stages.append(learn(config, data, part, backbone, stages, here))
            track_stage(runs, stages[-1], label)
        results = publish(config, data, backbone, stages, runs)
        register(config, data, runs, results)
    except Exception:
        close_runs(runs, "FAILED")
        raise
    close_runs(runs, "FINISHED")
    return {"output": str(config.output_dir), "summary": results["summary"]}


def learn(
    config: Config,
    data: DataVersion,
    part: TaskData,
    backbone: Ref,
    stages: list[Stage],
    context: Context,
) -> Stage:
    """One task: bring every method up to date. Merged and unmerged share the adapters."""
    adapted = None
    if {"merged", "unmerged"} & set(config.methods):
        adapted = adapt(config, part["number"], part["train"], backbone, stages, context)
    variants: dict[str, Variant] = {}
    peers: dict[str, Peer] = {}
    for name in config.methods:
        if is_generic(name):
            peers[name] = learn_peer(config, name, data, part, backbone, stages, context)
            continue
        before = stages[-1]["variants"][name] if stages else None
        learnt = use_features(config, name, data, part, backbone, adapted, before, context)
        evaluated = evaluate(
            settings(config, "backbone", "image", "adapter"),
            name,
            [task["train"]["names"] for task in data["tasks"]],
            part["number"],
            data["tests"],
            learnt["features"],
            learnt["heads"],
            before["evaluated"]["predictions"] if before else None,
            context,
        )
        variants[name] = {**learnt, "evaluated": evaluated}
    return {"number": part["number"], "adapted": adapted, "variants": variants, "peers": peers}


def adapt(
    config: Config,
    number: int,
    classes: Classes,
    backbone: Ref,
    stages: list[Stage],
    context: Context,
) -> Adapted:
    """Train the task's adapter, merge it with the earlier ones, and choose what is remembered.

    After the first `adapter.tasks` tasks nothing is trained and the merged adapter stays.

    The exemplars are the merged network's choice for unmerged, too: every adapter has its own
    features, and what unmerged learns must not depend on whether merged is measured beside it.
    """
    last = stages[-1]["adapted"] if stages else None
    remembered = last["exemplars"] if last else None

    def use(merged: Ref) -> tuple[Ref, Ref]:
        """Features of the task's images under the merged adapter, and the memory they choose."""
        here = named("merged", context)
        features = training_features(config, classes, backbone, merged, here)
        memory = settings(config, "memory")
        return features, select_exemplars(memory, classes, features, remembered, here)

    if last and config.adapter.tasks is not None and number > config.adapter.tasks:
        features, exemplars = use(last["merged"])
        return {**last, "trained": None, "features": features, "exemplars": exemplars}
    trained = train_adapter(
        settings(config, "seed", "backbone", "image", "adapter", "train"),
        number,
        classes,
        backbone,
        last["adapters"][-1] if last and config.adapter.init == "previous" else None,
        remembered,
        context,
    )
    adapters = [*(last["adapters"] if last else []), trained["adapter"]]
    heads = [*(last["heads"] if last else []), trained["head"]]
    inputs = merge_inputs(
        config, last["inputs"] if last else None, classes, backbone, trained, context
    )
    merged = merge_adapters(settings(config, "merge"), adapters, inputs, context)
    features, exemplars = use(merged)
    return {
        "trained": trained,
        "adapters": adapters,
        "heads": heads,
        "inputs": inputs,
        "merged": merged,
        "features": features,
        "exemplars": exemplars,
    }


def takes_statistics(config: Config) -> bool:
    """Whether the head follows from class statistics, not from exemplars."""
    evidence: str = HEAD_RULES[config.head.rule].evidence
    return evidence == "statistics"


def training_features(
    config: Config, classes: Classes, backbone: Ref, adapter: Ref | None, context: Context
) -> Ref:
    """Features of a task's images: both views where statistics are taken of them."""
    network = settings(config, "backbone", "image", "adapter")
    flip = config.head.flip and takes_statistics(config)
    return extract_training_features(network, flip, classes, backbone, adapter, context)


def use_features(
    config: Config,
    name: str,
    data: DataVersion,
    part: TaskData,
    backbone: Ref,
    adapted: Adapted | None,
    before: Variant | None,
    context: Context,
) -> Learnt:
    """Fit what merged, unmerged or frozen puts on its features, and take the test images'."""
    number, classes = part["number"], part["train"]
    here = named(name, context)

    def test_features(label: str, adapter: Ref | None) -> Ref:
        network = settings(config, "backbone", "image", "adapter")
        shown = named(label, context)
        return extract_test_features(network, backbone, adapter, data["tests"], shown)

    if adapted is not None and name == "unmerged":
        sizes = [len(task["train"]["names"]) for task in data["tasks"][:number]]
        heads = [*(before["heads"] if before else []), adapted["heads"][-1]]
        heads = fine_tune_task_heads(
            settings(config, "seed", "backbone", "image", "adapter", "head"),
            sizes,
            backbone,
            adapted["adapters"],
            heads,
            adapted["exemplars"],
            context,
        )
        newest = test_features("adapter", adapted["adapters"][-1])
        return {
            "adapter": None,
            "features": [*(before["features"] if before else []), newest],
            "heads": heads,
            "exemplars": adapted["exemplars"],
            "statistics": None,
        }
    uses_statistics = takes_statistics(config)
    if adapted is not None and name == "merged":
        adapter, task_heads = adapted["merged"], adapted["heads"]
        features, exemplars = adapted["features"], adapted["exemplars"]
    else:
        # The tasks' heads were trained on adapters' features: they are of no use to the bare ones.
        adapter, task_heads = None, []
        features = training_features(config, classes, backbone, None, here)
        exemplars = None  # statistics of features that never change need none
        if not uses_statistics:
            remembered = before["exemplars"] if before else None
            memory = settings(config, "memory")
            exemplars = select_exemplars(memory, classes, features, remembered, here)
    statistics = None
    if uses_statistics:
        statistics = update_statistics(
            settings(config, "backbone", "image", "adapter"),
            config.head.flip,
            config.head.power,
            config.head.drift_ridge,
            classes,
            features,
            backbone,
            adapter,
            before["adapter"] if before else None,
            before["statistics"] if before else None,
            before["exemplars"] if before else None,
            here,
        )
    head = fit_head(
        settings(config, "seed", "backbone", "image", "adapter", "head"),
        name,
        backbone,
        adapter,
        task_heads,
        None if uses_statistics else exemplars,
        statistics,
        classes,
        features,
        context,
    )
    return {
        "adapter": adapter,
        "features": [test_features(name, adapter)],
        "heads": [head],
        "exemplars": exemplars,
        "statistics": statistics,
    }


def learn_peer(
    config: Config,
    name: str,
    data: DataVersion,
    part: TaskData,
    backbone: Ref,
    stages: list[Stage],
    context: Context,
) -> Peer:
    """One task for one of the methods that are all learnt in the same steps."""
    before = stages[-1]["peers"][name] if stages else None
    number, classes, method = part["number"], part["train"], METHODS[name]
    learnt = learn_task(
        method_settings(config, name),
        number,
        classes,
        [task["train"] for task in data["tasks"][: number - 1]],
        backbone,
        before["state"] if before else None,
        before["exemplars"] if before else None,
        context,
    )
    state, exemplars = learnt["state"], None
    if method.about.memory == "exemplars":
        remembered = remember(
            method_settings(config, name, "memory"),
            classes,
            backbone,
            state,
            before["exemplars"] if before else None,
            context,
        )
        state, exemplars = remembered["state"], remembered["exemplars"]
    features = None
    if method.bare:
        network = settings(config, "backbone", "image", "adapter")
        shown = named(name, context)
        features = extract_test_features(network, backbone, None, data["tests"], shown)
    evaluated = evaluate_method(
        method_settings(config, name),
        [task["train"]["names"] for task in data["tasks"]],
        number,
        data["tests"],
        backbone,
        state,
        features,
        before["evaluated"]["predictions"] if before else None,
        context,
    )
    return {
        "state": state,
        "history": learnt["history"],
        "exemplars": exemplars,
        "evaluated": evaluated,
    }


def named(name: str, context: Context) -> Context:
    """The context with a name before its label, for steps that several methods share."""
    return {**context, "label": f"{name} {context['label']}"}

"""The flow `dynammo`: learn the tasks of a scenario one after another.

Version the data; then for each task and method learn, select exemplars and evaluate (with adapters:
train one, merge, select, fine-tune heads); finally publish and register. Run it with `dynammo run`,
with `python -m flows.incremental`, or as the deployment `dynammo/incremental`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from dynammo.adapter_statistics import check_rule
from dynammo.checkpoint import Ref
from dynammo.config import Config, load_config
from dynammo.network import build_network
from flows.logs import shorten_expected_errors
from tasks.adapters import prepare_backbone, train_adapter, weights_hash
from tasks.data import DataVersion, TaskData, prepare_images, version_data
from tasks.evaluation import evaluate, extract_test_features
from tasks.exemplars import select_exemplars
from tasks.heads import fine_tune_head, fine_tune_task_heads
from tasks.merge_inputs import merge_inputs
from tasks.merging import merge_adapters
from tasks.publishing import check_output, publish
from tasks.stage import Adapted, Learnt, Stage, Variant
from tasks.tracking import close_runs, open_runs, register, track_stage
from tasks.workspace import Classes, Context, choose_device, settings

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
    # Wrong names of modules, options of an adapter or of a rule are found before anything is done.
    network = build_network(config.backbone, None, config.image.size, config.adapter)
    check_rule(config.merge, network, config.image.size)
    data = version_data(config)
    context: Context = {
        "manifest": data["manifest"],
        "images": prepare_images(data["manifest"], config.image.size, config.data.repeats),
        "device": choose_device(config.device),
        "cache_mb": config.train.cache_mb,
        "label": "",
    }
    backbone = prepare_backbone(
        config.model_dump(mode="json", include={"backbone", "seed"}),
        weights_hash(config.backbone),
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
    for name in config.methods:
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
    return {"number": part["number"], "adapted": adapted, "variants": variants}


def adapt(
    config: Config,
    number: int,
    classes: Classes,
    backbone: Ref,
    stages: list[Stage],
    context: Context,
) -> Adapted:
    """Train the task's adapter, merge it with the earlier ones, and choose what is remembered.

    The exemplars are the merged network's choice for unmerged, too: every adapter has its own
    features, and what unmerged learns must not depend on whether merged is measured beside it.
    """
    earlier = [stage["adapted"] for stage in stages if stage["adapted"]]
    last = earlier[-1] if earlier else None
    previous = last["trained"]["adapter"] if last and config.adapter.init == "previous" else None
    remembered = last["exemplars"] if last else None
    trained = train_adapter(
        settings(config, "seed", "backbone", "image", "adapter", "train"),
        number,
        classes,
        backbone,
        previous,
        remembered,
        context,
    )
    adapters = [*(adapted["trained"]["adapter"] for adapted in earlier), trained["adapter"]]
    heads = [*(adapted["trained"]["head"] for adapted in earlier), trained["head"]]
    inputs = merge_inputs(
        config, last["inputs"] if last else None, classes, backbone, trained, context
    )
    merged = merge_adapters(settings(config, "merge"), adapters, inputs, context)
    exemplars = select_exemplars(
        settings(config, "backbone", "image", "adapter", "memory"),
        classes,
        backbone,
        merged,
        remembered,
        named("merged", context),
    )
    return {
        "trained": trained,
        "adapters": adapters,
        "heads": heads,
        "inputs": inputs,
        "merged": merged,
        "exemplars": exemplars,
    }


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
    """Fine-tune what merged, unmerged or frozen puts on its features, and take the test images'."""
    number, classes = part["number"], part["train"]
    head_settings = settings(config, "seed", "backbone", "image", "adapter", "head")

    def test_features(label: str, adapter: Ref | None) -> Ref:
        network = settings(config, "backbone", "image", "adapter")
        shown = named(label, context)
        return extract_test_features(network, backbone, adapter, data["tests"], shown)

    if adapted is None or name == "frozen":
        exemplars = select_exemplars(
            settings(config, "backbone", "image", "adapter", "memory"),
            classes,
            backbone,
            None,
            before["exemplars"] if before else None,
            named(name, context),
        )
        # The bare backbone starts anew: the tasks' heads were trained on adapters' features.
        head = fine_tune_head(head_settings, name, backbone, None, [], exemplars, context)
        return {
            "features": [test_features(name, None)],
            "heads": [head],
            "exemplars": exemplars,
        }
    exemplars = adapted["exemplars"]
    if name == "unmerged":
        sizes = [len(task["train"]["names"]) for task in data["tasks"][:number]]
        heads = [*(before["heads"] if before else []), adapted["trained"]["head"]]
        heads = fine_tune_task_heads(
            head_settings, sizes, backbone, adapted["adapters"], heads, exemplars, context
        )
        features = [
            *(before["features"] if before else []),
            test_features("adapter", adapted["trained"]["adapter"]),
        ]
        return {"features": features, "heads": heads, "exemplars": exemplars}
    start = adapted["heads"] if config.head.init == "task_heads" else []
    head = fine_tune_head(
        head_settings, name, backbone, adapted["merged"], start, exemplars, context
    )
    return {
        "features": [test_features(name, adapted["merged"])],
        "heads": [head],
        "exemplars": exemplars,
    }


def named(name: str, context: Context) -> Context:
    """The context with a name before its label, for steps that several methods share."""
    return {**context, "label": f"{name} {context['label']}"}


if __name__ == "__main__":
    import sys

    from flows.cli import app

    app(prog_name="python -m flows.incremental", args=["run", *sys.argv[1:]])

"""The flow `dynammo`: learn the tasks of a scenario one after another.

Version the data; then for each task train an adapter, merge, select exemplars, fine-tune heads and
evaluate; finally publish and register. Run it with `dynammo run`, with `python -m
flows.incremental`, or as the deployment `dynammo/incremental`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from dynammo.checkpoint import Ref
from dynammo.config import Config, load_config
from dynammo.network import build_network
from flows.logs import shorten_expected_errors
from tasks.adapters import prepare_backbone, train_adapter, weights_hash
from tasks.data import DataVersion, TaskData, prepare_images, version_data
from tasks.evaluation import evaluate, extract_test_features
from tasks.exemplars import select_exemplars
from tasks.heads import fine_tune_head, fine_tune_task_heads
from tasks.merging import merge_adapters
from tasks.publishing import check_output, publish
from tasks.stage import Stage, Variant
from tasks.tracking import close_runs, open_runs, register, track_stage
from tasks.workspace import Context, choose_device, settings

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
    """Class-incremental learning with merged adapters, beside its unmerged and frozen counterparts.

    Args:
        params: YAML file of the configuration, relative to the project; none means the defaults.
        overrides: settings that win over the file: {"train.epochs": 3, "data.path": "..."}.

    Returns:
        `output`, the folder of the results, and `summary`, each variant's summary metrics.
    """
    config = load_config(params, overrides)
    check_output(config.output_dir)
    # Wrong names of modules or options of an adapter are found before anything is done.
    build_network(config.backbone, None, config.image.size, config.adapter)
    data = version_data(config)
    context: Context = {
        "manifest": data["manifest"],
        "images": prepare_images(data["manifest"], config.image.size),
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
    """One task: train its adapter, merge it with the earlier ones, and bring every variant up to
    date.
    """
    number, classes = part["number"], part["train"]
    last = stages[-1] if stages else None
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
    adapters = [*(stage["trained"]["adapter"] for stage in stages), trained["adapter"]]
    merged = merge_adapters(settings(config, "merge"), adapters, context)
    exemplars = select_exemplars(
        settings(config, "backbone", "image", "adapter", "memory"),
        classes,
        backbone,
        merged,
        remembered,
        context,
    )

    def test_features(name: str, adapter: Ref | None) -> Ref:
        shown: Context = {**context, "label": f"{name} {context['label']}"}
        network = settings(config, "backbone", "image", "adapter")
        return extract_test_features(network, backbone, adapter, data["tests"], shown)

    head_settings = settings(config, "seed", "backbone", "image", "adapter", "head")
    trained_heads = [*(stage["trained"]["head"] for stage in stages), trained["head"]]
    variants: dict[str, Variant] = {}
    for name in ["merged", *config.compare]:
        before = last["variants"][name] if last else None
        if name == "unmerged":
            sizes = [len(task["train"]["names"]) for task in data["tasks"][:number]]
            heads = [*(before["heads"] if before else []), trained["head"]]
            heads = fine_tune_task_heads(
                head_settings, sizes, backbone, adapters, heads, exemplars, context
            )
            features = [
                *(before["features"] if before else []),
                test_features("adapter", trained["adapter"]),
            ]
        else:
            # The bare backbone starts anew: the tasks' heads were trained on adapters' features.
            adapter = merged if name == "merged" else None
            start = trained_heads if adapter and config.head.init == "task_heads" else []
            heads = [
                fine_tune_head(head_settings, name, backbone, adapter, start, exemplars, context)
            ]
            features = [test_features(name, adapter)]
        evaluated = evaluate(
            settings(config, "backbone", "image", "adapter"),
            name,
            [task["train"]["names"] for task in data["tasks"]],
            number,
            data["tests"],
            features,
            heads,
            before["evaluated"]["predictions"] if before else None,
            context,
        )
        variants[name] = {"features": features, "heads": heads, "evaluated": evaluated}
    return {
        "number": number,
        "trained": trained,
        "merged": merged,
        "exemplars": exemplars,
        "variants": variants,
    }


if __name__ == "__main__":
    import sys

    from flows.cli import app

    app(prog_name="python -m flows.incremental", args=["run", *sys.argv[1:]])

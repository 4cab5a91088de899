"""The flow `dynammo`: learn the tasks of a scenario one after another.

Version the data; make a learner, and let it learn batch after batch; measure it on the test images
of all; publish and register. Run it with `dynammo run`, or as the deployment
`dynammo/incremental`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from dynammo.checks import check_parts
from dynammo.config import load_config
from flows.methods import steps_of
from flows.methods.shared_features import SharedFeatures
from flows.support.learning import at, check_hierarchy, evaluate_methods, learn_batch, start
from tasks.keep_images import keep_images
from tasks.publish import check_output, publish
from tasks.support.logs import shorten_expected_errors
from tasks.support.stage import Stage
from tasks.support.sweep import sweep
from tasks.support.workspace import context_of
from tasks.track import close_runs, open_runs, register, track_stage
from tasks.version_data import prepare_images, version_data

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
    sweep(config.output_dir)
    check_output(config.output_dir)
    check_parts(config)
    others = [name for name in config.methods if not isinstance(steps_of(name), SharedFeatures)]
    if config.clinical.names and others:
        get_run_logger().warning(
            "columns beside images count for merged and frozen alone, not for %s", ", ".join(others)
        )
    data = version_data(config)
    check_hierarchy(config, data["classes"])
    batches = data["tasks"]
    images = prepare_images(data["manifest"], config.image, config.data.repeats)
    places = [
        at(context_of(config), batch, images, f"{batch['number']}/{len(batches)}")
        for batch in batches
    ]
    backbone = start(config, batches[0], places[0])
    runs = open_runs(config, data, backbone)
    try:
        # What each step sees of training images is its own batch; tests are of all tasks.
        tests = [
            keep_images(config.image, "test", batch["test"], here)
            for batch, here in zip(batches, places, strict=True)
        ]
        stages: list[Stage] = []
        for batch, here in zip(batches, places, strict=True):
            before = stages[-1] if stages else None
            learnt = learn_batch(config, batch, backbone, before, here)
            later = [other["train"]["names"] for other in batches[batch["number"] :]]
            stages.append(evaluate_methods(config, backbone, learnt, before, tests, later, here))
            track_stage(runs, stages[-1], here.label)
        results = publish(config, data, backbone, stages, runs)
        register(config, data, runs, results)
    except BaseException as error:  # not as a task: a flow that is told to stop starts none
        close_runs.fn(runs, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    close_runs(runs, "FINISHED")
    return {
        "output": str(config.output_dir),
        "summary": results["summary"],
        "paths": runs["paths"],
    }

"""A Prefect worker that runs the flows of prefect.yaml, and nothing else: `project_worker.py`.

Prefect's own worker runs what the server tells it to: the command and the environment of the work
pool, the pull steps and the file of the deployment. Here the server only says which of this
project's flows to run, with which parameters; all else is known here.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.processutils import command_to_string, setup_signal_handlers_worker
from prefect.workers import process

ROOT = Path(__file__).resolve().parent.parent
POOL = "dynammo"
_PULL = "prefect.deployments.steps.set_working_directory"


class RefusedError(Exception):
    """A run of something else than this project's flows."""


class ProjectJob(process.ProcessJobConfiguration):
    """How a flow run is started here, whatever work pool, deployment and run say."""

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: object = None
    ) -> ProjectJob:
        """The configuration of every run.

        Raises:
            RefusedError: the deployment or the run has job variables.
        """
        if values:
            raise RefusedError(f"job variables are not taken here: {', '.join(sorted(values))}")
        engine = command_to_string([sys.executable, "-m", "prefect.engine"])
        return cls(command=engine, working_dir=ROOT)

    def prepare_for_flow_run(
        self,
        flow_run: FlowRun,
        deployment: DeploymentResponse | None = None,
        *arguments: Any,
        **keywords: Any,
    ) -> None:
        """See the base class.

        Raises:
            RefusedError: the run is not of a flow of prefect.yaml.
        """
        entrypoint = own_entrypoint(deployment)
        super().prepare_for_flow_run(flow_run, deployment, *arguments, **keywords)
        # With it the engine asks the server for no file and no pull step, so it does not matter
        # that these can be changed after they were looked at.
        self.env["PREFECT__FLOW_ENTRYPOINT"] = entrypoint


def own_entrypoint(deployment: DeploymentResponse | None) -> str:
    """The deployment's entrypoint.

    Raises:
        RefusedError: it is none of prefect.yaml, or is to be fetched or prepared first.
    """
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    known = [known["entrypoint"] for known in document["deployments"]]
    entrypoint = deployment.entrypoint if deployment else None
    if deployment is None or entrypoint is None or entrypoint not in known:
        raise RefusedError(f"{entrypoint} is no entrypoint of prefect.yaml: {', '.join(known)}")
    # `make up` registers it, for Prefect's own worker; this one is in the folder already.
    if (deployment.pull_steps or []) not in ([], [{_PULL: {"directory": str(ROOT)}}]):
        raise RefusedError(f"no pull steps but {_PULL}, to {ROOT}, are accepted here")
    return entrypoint


async def own_flow(flow_run: FlowRun) -> Flow[..., Any]:
    """The flow of a run, of which the worker wants to know what to do after a crash."""
    if flow_run.deployment_id is None:
        raise RefusedError("a run without a deployment")
    async with get_client() as client:
        deployment = await client.read_deployment(flow_run.deployment_id)
    return await asyncio.to_thread(load_flow_from_entrypoint, own_entrypoint(deployment))


async def main() -> None:
    """Work until a signal comes, as `prefect worker start` does."""
    # Prefect's own runs the pull steps, within this process.
    process.load_flow_from_flow_run = own_flow  # type: ignore[attr-defined, assignment]
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    worker = process.ProcessWorker(work_pool_name=POOL, name="local")
    worker.job_configuration = ProjectJob
    await worker.start(printer=print)


if __name__ == "__main__":
    os.chdir(ROOT)
    asyncio.run(main())

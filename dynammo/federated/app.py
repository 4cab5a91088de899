"""The Flower app: each site trains and measures, the server merges and adds up.

Three messages a site: `introduce` (its name and the hash of its backbone), `train` (its adapter),
and `measure` (its class statistics under the merged adapter). Who does not answer, or wrongly, is
left out and named; what was merged with it is merged and measured again without it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynammo.config import Config, load_config
from dynammo.errors import DataError, DynammoError
from dynammo.extras import needs
from dynammo.federated.merge import check_adapter, check_federated, check_statistics, merge_sites
from dynammo.federated.round import SiteSent, write_round
from dynammo.federated.site import backbone_hash, measure_site, read_site, train_site
from dynammo.network.network import build_network
from dynammo.state import State

with needs("federated", "flwr"):
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

log = logging.getLogger(__name__)
Answer = Callable[[Mapping[str, Any], RecordDict, Path, Config], RecordDict]


class RoundError(DynammoError):
    """A round without any site that went through."""


def client_app(sites: Sequence[str] = ()) -> ClientApp:
    """The site's part.

    Its node configuration names `site`, the batch (a folder or a CSV); `name`, by default that of
    the batch; and `min-patients`, below which nothing of a class leaves, whatever the server asks.

    Args:
        sites: of a simulation: batches by partition.
    """
    app = ClientApp()

    def answer(message: Message, context: Context, work: Answer) -> Message:
        node = dict(context.node_config)
        path = Path(str(sites[int(node["partition-id"])] if sites else node["site"]))
        asked = message.content["asked"]
        config = load_config(None, json.loads(str(asked["config"])))
        least = max(int(asked["min-patients"]), int(node.get("min-patients", 1)))
        own = {"name": str(node.get("name", path.stem)), "min-patients": least}
        try:
            check_federated(config)
            content = work({**asked, **own}, message.content, path, config)
        except DynammoError as error:
            # The text may name files and patients: it stays here.
            log.error("%s: %s", own["name"], error)
            content = RecordDict({"site": ConfigRecord({"error": type(error).__name__})})
        return Message(content, reply_to=message)

    @app.query("introduce")  # type: ignore[untyped-decorator]
    def introduce(message: Message, context: Context) -> Message:
        return answer(message, context, _introduce)

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, _train)

    @app.query("measure")  # type: ignore[untyped-decorator]
    def measure(message: Message, context: Context) -> Message:
        return answer(message, context, _measure)

    return app


def _introduce(
    asked: Mapping[str, Any], content: RecordDict, path: Path, config: Config
) -> RecordDict:
    told = {"name": asked["name"], "backbone": backbone_hash(config)}
    return RecordDict({"site": ConfigRecord(told)})


def _train(asked: Mapping[str, Any], content: RecordDict, path: Path, config: Config) -> RecordDict:
    batch = read_site(path, config, asked["min-patients"])
    adapter = train_site(config, asked["number"], batch)
    told = ConfigRecord({"classes": sorted(batch.patients), "images": len(batch.training)})
    return RecordDict({"site": told, "adapter": ArrayRecord(adapter)})


def _measure(
    asked: Mapping[str, Any], content: RecordDict, path: Path, config: Config
) -> RecordDict:
    batch = read_site(path, config, asked["min-patients"])
    merged = content["adapter"].to_torch_state_dict()
    found = measure_site(config, merged, batch)
    told = {"site": ConfigRecord({"classes": sorted(batch.patients)})}
    return RecordDict({**told, **{name: ArrayRecord(own.state()) for name, own in found.items()}})


@dataclass(frozen=True)
class Asked:
    """A round: the learner's configuration, the k of classes that cross, how many sites are waited
    for and for how many seconds, and the folder that it is written to.
    """

    config: Config
    min_patients: int
    sites: int
    timeout: float
    out: Path


def server_app(asked: Asked | None = None) -> ServerApp:
    """The server's part; without `asked` the run's configuration says what is wanted: `config` (a
    JSON file), `min-patients`, `sites`, `timeout` and `out`.
    """
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        run = context.run_config
        hold_round(
            grid,
            asked
            or Asked(
                load_config(None, json.loads(Path(str(run["config"])).read_text())),
                int(run["min-patients"]),
                int(run["sites"]),
                float(run["timeout"]),
                Path(str(run["out"])),
            ),
        )

    return app


def hold_round(grid: Grid, asked: Asked) -> None:
    """Ask all sites, and write what they sent: `<out>/objects`, and `<out>/round.json` last.

    Raises:
        RoundError: no site went through.
    """
    began, config = time.monotonic(), asked.config
    check_federated(config)
    backbone, left_out = backbone_hash(config), list[dict[str, str]]()
    sites: dict[int, SiteSent] = {}

    def leave_out(name: str, reason: str) -> None:
        log.warning("%s is left out: %s", name, reason)
        left_out.append({"name": name, "reason": reason})

    nodes = _nodes(grid, asked)
    if len(nodes) < asked.sites:
        leave_out(f"{asked.sites - len(nodes)} of {asked.sites} sites", "did not come")
    answers = _ask(grid, "query.introduce", {node: {} for node in nodes}, asked)
    for node, reply in answers.items():
        if isinstance(reply, str):
            leave_out(f"node {node}", reply)
            continue
        name = str(reply["site"]["name"])
        if reply["site"]["backbone"] != backbone:
            leave_out(name, "has another backbone")
        elif name in {own.name for own in sites.values()}:
            leave_out(name, "another site has this name")
        else:
            sites[node] = SiteSent(name)
    for number, own in enumerate(sorted(sites.values(), key=lambda own: own.name), start=1):
        own.number = number

    numbers = {node: {"number": own.number} for node, own in sites.items()}
    for node, reply in _ask(grid, "train", numbers, asked).items():
        try:
            _take_adapter(config, sites[node], reply)
        except DataError as error:
            leave_out(sites.pop(node).name, str(error))

    complete, merged = False, State()
    while sites and not complete:
        ordered = sorted(sites.values(), key=lambda own: own.number)
        merged = merge_sites(
            config, [own.adapter for own in ordered], [own.images for own in ordered]
        )
        complete = True
        wanted: dict[int, dict[str, Any]] = {node: {} for node in sites}
        for node, reply in _ask(grid, "query.measure", wanted, asked, merged).items():
            try:
                _take_statistics(config, sites[node], reply)
            except DataError as error:  # its adapter is in the merged one: once more without it
                leave_out(sites.pop(node).name, str(error))
                complete = False
    if not sites:
        said = "; ".join(f"{own['name']}: {own['reason']}" for own in left_out)
        raise RoundError(f"no site went through: {said}")
    write_round(
        asked.out,
        config,
        asked.min_patients,
        list(sites.values()),
        merged,
        backbone,
        left_out,
        time.monotonic() - began,
    )


def _nodes(grid: Grid, asked: Asked) -> list[int]:
    """The nodes that are there when all have come, or the time is over."""
    end = time.monotonic() + asked.timeout
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= asked.sites or time.monotonic() > end:
            return nodes
        time.sleep(0.5)


def _ask(
    grid: Grid,
    kind: str,
    wanted: Mapping[int, Mapping[str, Any]],
    asked: Asked,
    merged: State | None = None,
) -> dict[int, RecordDict | str]:
    """Each node's answer, or why there is none; `wanted` is what a node is told beside the rest."""
    settings = {
        "config": json.dumps(asked.config.model_dump(mode="json")),
        "min-patients": asked.min_patients,
    }
    arrays = {"adapter": ArrayRecord(merged)} if merged is not None else {}
    messages = [
        Message(
            RecordDict({"asked": ConfigRecord({**settings, **own}), **arrays}),
            dst_node_id=node,
            message_type=kind,
        )
        for node, own in wanted.items()
    ]
    found: dict[int, RecordDict | str] = dict.fromkeys(
        wanted, f"no answer within {asked.timeout:g} s"
    )
    for reply in grid.send_and_receive(messages, timeout=asked.timeout):
        node = reply.metadata.src_node_id
        if reply.has_error():
            found[node] = f"failed ({reply.error.reason.strip().splitlines()[-1]})"
        elif "error" in reply.content["site"]:
            found[node] = f"failed ({reply.content['site']['error']}; the site's log says why)"
        else:
            found[node] = reply.content
    return found


def _take_adapter(config: Config, site: SiteSent, reply: RecordDict | str) -> None:
    if isinstance(reply, str):
        raise DataError(reply)
    told, record = reply["site"], reply["adapter"]
    adapter = record.to_torch_state_dict()
    check_adapter(config, adapter)
    classes, images = [str(name) for name in told["classes"]], int(told["images"])
    if not classes or classes != sorted(set(classes)) or images < 2:
        raise DataError("classes or images that cannot be")
    site.classes, site.images, site.adapter = classes, images, dict(adapter)
    site.bytes += _size(record)


def _take_statistics(config: Config, site: SiteSent, reply: RecordDict | str) -> None:
    if isinstance(reply, str):
        raise DataError(reply)
    if list(reply["site"]["classes"]) != site.classes:
        raise DataError("other classes than its adapter was trained on")
    size = build_network(config.backbone.architecture, None, config.image.size).feature_size
    for name in config.methods:
        state = dict(reply[name].to_torch_state_dict())
        check_statistics(config, len(site.classes), size, state)
        site.statistics[name] = state
        site.bytes += _size(reply[name])


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


client = client_app()
server = server_app()

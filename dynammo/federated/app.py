"""The Flower app: each site trains and measures, the server merges and adds up.

Four messages a site: `introduce` (its name and the hash of its backbone), `train` (its adapter),
`measure` (its class statistics under the merged adapter, a temperature, and the counts of its
columns), and `evaluate` (what the model that follows answers to its test images, in counts). In
several rounds of training, `train` comes again with the merged adapter, from which the site goes
on. Who does not answer, or wrongly, is left out and named; what was merged with it is merged and
measured again without it. Who has only not judged stays in, and is named.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynammo.clinical import Evidence
from dynammo.config import Config, load_config
from dynammo.errors import ConfigError, DataError, DynammoError
from dynammo.extras import needs
from dynammo.federated.columns import packed, unpacked
from dynammo.federated.judge import (
    Model,
    check_counts,
    clinical_evidence,
    compared_models,
    judge_site,
)
from dynammo.federated.merge import (
    add_columns,
    check_adapter,
    check_federated,
    check_statistics,
    check_temperature,
    head_of,
    merge_sites,
    temperature_of,
)
from dynammo.federated.round import SiteSent, write_round
from dynammo.federated.site import (
    backbone_hash,
    columns_sent,
    measure_site,
    read_site,
    train_site,
)
from dynammo.heads.statistics import ClassStatistics
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import DEPLOYED
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
    the batch; `min-patients`, below which nothing of a class leaves; and `epsilon`, of the noise on
    statistics (`dynammo.federated.noise`). The stricter of these and what the server asks holds.

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
        epsilon = min(float(asked["epsilon"]), float(node.get("epsilon", math.inf)))
        own = {"name": str(node.get("name", path.stem)), "min-patients": least, "epsilon": epsilon}
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

    @app.evaluate()  # type: ignore[untyped-decorator]
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, _evaluate)

    return app


def _introduce(
    asked: Mapping[str, Any], content: RecordDict, path: Path, config: Config
) -> RecordDict:
    told = {"name": asked["name"], "backbone": backbone_hash(config)}
    return RecordDict({"site": ConfigRecord(told)})


def _train(asked: Mapping[str, Any], content: RecordDict, path: Path, config: Config) -> RecordDict:
    batch = read_site(path, config, asked["min-patients"])
    merged = dict(content["adapter"].to_torch_state_dict()) if "adapter" in content else None
    adapter = train_site(config, asked["number"], batch, asked["round"], merged)
    told = ConfigRecord({"classes": sorted(batch.patients), "images": len(batch.training)})
    return RecordDict({"site": told, "adapter": ArrayRecord(adapter)})


def _measure(
    asked: Mapping[str, Any], content: RecordDict, path: Path, config: Config
) -> RecordDict:
    batch = read_site(path, config, asked["min-patients"])
    merged = content["adapter"].to_torch_state_dict()
    found = measure_site(config, merged, batch, asked["epsilon"])
    about = {"classes": sorted(batch.patients), "epsilon": asked["epsilon"]}
    measured = {name: own.temperature for name, own in found.items()}
    told = {"site": ConfigRecord(about), "temperatures": ConfigRecord(measured)}
    if counts := columns_sent(batch, asked["epsilon"]):
        tables, values = packed(counts)
        told |= {"columns": ArrayRecord(tables), "values": ConfigRecord(values)}
    states = {name: ArrayRecord(own.statistics.state()) for name, own in found.items()}
    return RecordDict({**told, **states})


def _evaluate(
    asked: Mapping[str, Any], content: RecordDict, path: Path, config: Config
) -> RecordDict:
    least = asked["min-patients"]
    others = {int(n): _model_in(content, f"other-{n}") for n in asked["others"]}
    batch = read_site(path, config, least)
    counts = judge_site(config, _model_in(content, "model"), others, batch, least)
    return RecordDict({"site": ConfigRecord({}), "counts": ArrayRecord(counts.state())})


def _records(name: str, model: Model) -> dict[str, ArrayRecord | ConfigRecord]:
    beside = json.dumps(model.clinical._asdict()) if model.clinical else ""
    return {
        name: ConfigRecord({"classes": model.classes, "clinical": beside}),
        f"{name}.adapter": ArrayRecord(model.adapter),
        f"{name}.head": ArrayRecord(model.head),
    }


def _model_in(content: RecordDict, name: str) -> Model:
    """What `_records` gave."""
    adapter, head = (
        dict(content[f"{name}.{part}"].to_torch_state_dict()) for part in ("adapter", "head")
    )
    classes, beside = list(content[name]["classes"]), content[name].get("clinical")
    # Of a server of an earlier version there is nothing beside.
    known = Evidence.read(json.loads(beside), len(classes)) if beside else None
    return Model(classes, adapter, head, known)


@dataclass(frozen=True)
class Asked:
    """A round: the learner's configuration, the k of classes that cross, how many sites are waited
    for and for how many seconds, the folder that it is written to, the learner's own, whose
    champion the sites judge beside the new version, the epsilon of the noise on statistics, and how
    many rounds of training there are.
    """

    config: Config
    min_patients: int
    sites: int
    timeout: float
    out: Path
    learner: Path | None = None
    epsilon: float = math.inf
    rounds: int = 1


def server_app(asked: Asked | None = None) -> ServerApp:
    """The server's part; without `asked` the run's configuration says what is wanted: `config` (a
    JSON file), `min-patients`, `sites`, `timeout`, `out`, `learner`, a folder or
    empty, `epsilon`, perhaps `inf`, and `rounds`.
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
                Path(str(run["learner"])) if run["learner"] else None,
                float(run["epsilon"]),
                int(run["rounds"]),
            ),
        )

    return app


def hold_round(grid: Grid, asked: Asked) -> None:
    """Ask all sites, and write what they sent: `<out>/objects`, and `<out>/round.json` last.

    Raises:
        RoundError: no site went through.
        ConfigError: settings that cannot be federated; no round of training.
    """
    began, config = time.monotonic(), asked.config
    check_federated(config)
    if asked.rounds < 1:
        raise ConfigError([f"rounds must be at least 1, got {asked.rounds}"])
    backbone, left_out = backbone_hash(config), list[dict[str, str]]()
    sites: dict[int, SiteSent] = {}

    def leave_out(name: str, reason: str, merged: bool = False) -> None:
        """`merged`: others have trained on from what holds its adapter, which nothing takes out."""
        if merged:
            reason += "; its adapter of an earlier round is in what the others trained on from"
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

    for turn in range(1, asked.rounds + 1):
        numbers = {node: {"number": own.number, "round": turn} for node, own in sites.items()}
        start = {"adapter": ArrayRecord(_merged(config, sites))} if turn > 1 and sites else {}
        for node, reply in _ask(grid, "train", numbers, asked, start).items():
            try:
                _take_adapter(config, sites[node], reply)
            except DataError as error:
                leave_out(sites.pop(node).name, str(error), turn > 1)

    complete, merged = False, State()
    while sites and not complete:
        merged, complete = _merged(config, sites), True
        wanted: dict[int, dict[str, Any]] = {node: {} for node in sites}
        for node, reply in _ask(
            grid, "query.measure", wanted, asked, {"adapter": ArrayRecord(merged)}
        ).items():
            try:
                _take_statistics(config, sites[node], reply, asked.min_patients)
            except DataError as error:  # its adapter is in the merged one: once more without it
                leave_out(sites.pop(node).name, str(error), asked.rounds > 1)
                complete = False
    if not sites:
        said = "; ".join(f"{own['name']}: {own['reason']}" for own in left_out)
        raise RoundError(f"no site went through: {said}")

    silent = []
    for node, reason in _judge(grid, asked, sites, merged).items():
        log.warning("%s has not judged the result: %s", sites[node].name, reason)
        silent.append({"name": sites[node].name, "reason": reason})
    write_round(
        asked.out,
        config,
        asked.min_patients,
        list(sites.values()),
        merged,
        backbone,
        left_out,
        time.monotonic() - began,
        silent,
        asked.rounds,
    )


def _merged(config: Config, sites: Mapping[int, SiteSent]) -> State:
    """What the sites' adapters are merged to."""
    ordered = sorted(sites.values(), key=lambda own: own.number)
    return merge_sites(config, [own.adapter for own in ordered], [own.images for own in ordered])


def _judge(
    grid: Grid, asked: Asked, sites: Mapping[int, SiteSent], merged: State
) -> dict[int, str]:
    """Ask the sites for the counts of what follows from their parts; why one has sent none."""
    config, ordered = asked.config, sorted(sites.values(), key=lambda own: own.number)
    sent = [(own.classes, ClassStatistics.of(own.statistics[DEPLOYED])) for own in ordered]
    temperature = temperature_of([(own.temperatures[DEPLOYED], own.images) for own in ordered])
    names, _, head = head_of(config, sent, temperature)
    counts = add_columns([(own.classes, own.columns) for own in ordered])
    model = Model(names, merged, head, clinical_evidence(config, counts))
    others, found = dict[int, Model](), dict[int, str]()
    if asked.learner is not None:
        others = compared_models(LearnerFolder(asked.learner.parent, asked.learner.name))
    records = _records("model", model)
    for number, other in others.items():
        records |= _records(f"other-{number}", other)
    wanted = {node: {"others": sorted(others)} for node in sites}
    for node, reply in _ask(grid, "evaluate", wanted, asked, records).items():
        own = sites[node]
        try:
            if isinstance(reply, str):
                raise DataError(reply)
            state = dict(reply["counts"].to_torch_state_dict())
            own.tests = check_counts(state, model, others, own.classes, asked.min_patients)
            own.bytes += _size(reply["counts"])
        except DataError as error:
            found[node] = str(error)
    return found


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
    records: Mapping[str, ArrayRecord | ConfigRecord] | None = None,
) -> dict[int, RecordDict | str]:
    """Each node's answer, or why there is none; `wanted` is what a node is told beside the rest,
    `records` what all are.
    """
    settings = {
        "config": json.dumps(asked.config.model_dump(mode="json")),
        "min-patients": asked.min_patients,
        "epsilon": asked.epsilon,
    }
    messages = [
        Message(
            RecordDict({"asked": ConfigRecord({**settings, **own}), **(records or {})}),
            dst_node_id=node,
            message_type=kind,
        )
        for node, own in wanted.items()
    ]
    found: dict[int, RecordDict | str] = dict.fromkeys(
        wanted, f"no answer within {asked.timeout:g} s"
    )
    replies = list(grid.send_and_receive(messages, timeout=asked.timeout))
    # Of a node that is gone the SuperLink answers in its own name: who was meant, the message says.
    asked_of = {it.metadata.message_id: it.metadata.dst_node_id for it in messages}
    for reply in replies:
        node = asked_of[reply.metadata.reply_to_message_id]
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


def _take_statistics(
    config: Config, site: SiteSent, reply: RecordDict | str, min_patients: int
) -> None:
    if isinstance(reply, str):
        raise DataError(reply)
    if list(reply["site"]["classes"]) != site.classes:
        raise DataError("other classes than its adapter was trained on")
    size = build_network(config.backbone.architecture, None, config.image.form).feature_size
    # Measured again without one that failed, it has spent as much again.
    site.epsilon += float(reply["site"]["epsilon"])
    for name in config.methods:
        state = dict(reply[name].to_torch_state_dict())
        check_statistics(config, len(site.classes), size, state)
        site.statistics[name] = state
        site.bytes += _size(reply[name])
        # A site of an earlier version sends none.
        told = reply["temperatures"].get(name, 1.0) if "temperatures" in reply else 1.0
        site.temperatures[name] = check_temperature(float(told))
    if "columns" in reply:  # not from a site without columns, or of an earlier version
        tables, values = reply["columns"].to_torch_state_dict(), reply.get("values", {})
        texts = {str(name): [str(value) for value in own] for name, own in values.items()}
        site.columns = unpacked(
            dict(tables), texts, config.clinical, len(site.classes), site.images, min_patients
        )
        site.bytes += _size(reply["columns"])


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


client = client_app()
server = server_app()

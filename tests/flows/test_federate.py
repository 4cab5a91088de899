"""A round of sites beside a learner that got the same batches one after another."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from dynammo.checkpoint import to_json, write_atomically
from dynammo.deploy.graph import has_graph
from dynammo.deploy.predictor import Predictor
from dynammo.errors import ConfigError, DataError
from dynammo.federated.judge import (
    Counts,
    Model,
    clinical_evidence,
    compared_models,
    judge_site,
)
from dynammo.federated.merge import (
    SETTINGS,
    add_columns,
    add_sites,
    head_of,
    merge_sites,
    temperature_of,
)
from dynammo.federated.round import SiteSent, read_round, write_round
from dynammo.federated.site import (
    backbone_hash,
    columns_sent,
    measure_site,
    read_site,
    train_site,
)
from dynammo.heads.statistics import ClassStatistics
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.learner.settings import first_settings
from flows.cli import app
from flows.federate import APART, NO_SUBGROUPS, UNCALIBRATED, federate
from flows.forget import forget
from flows.learn import learn
from flows.promote import promote
from tasks.support.plans import draft, set_plan
from tasks.support.version import find_learner, read_version, recall_of
from tests.flower import FLOWER, ROOT, environment, needs_flower
from tests.flows.project import CLASSES, GRAPH, PARAMS

OVERRIDES: dict[str, Any] = {
    **{key: PARAMS[key] for key in ("seed", "device", "image", "backbone", "train", "gate")},
    **SETTINGS,
    "tracking.register_model": False,
    "tracking.onnx_graph": False,
}
K = 4  # of each class there are four test images


def statistics(folder: LearnerFolder, method: str) -> ClassStatistics:
    ref = read_version(folder)["stage"]["methods"][method]["statistics"]
    assert ref is not None
    return ClassStatistics.of(folder.store.load(ref))


def merged(folder: LearnerFolder) -> dict[str, torch.Tensor]:
    adapted = read_version(folder)["stage"]["adapted"]
    assert adapted is not None
    return folder.store.load(adapted["merged"])


def hold(
    folder: Path, sites: list[Path], rounds: int = 1, once: tuple[str, ...] = (), **more: object
) -> None:
    """What `dynammo.federated.app` does, in this process; the sites `once` train once, and go."""
    config = first_settings("fed", None, {**OVERRIDES, **more})
    sent, batches = [], [read_site(path, config, K) for path in sites]
    for number, (path, batch) in enumerate(zip(sites, batches, strict=True), start=1):
        adapter = train_site(config, number, batch)
        sent.append(
            SiteSent(path.name, number, sorted(batch.patients), len(batch.training), adapter)
        )
    whole = merge_sites(config, [own.adapter for own in sent], [own.images for own in sent])
    staying = [pair for pair in zip(sent, batches, strict=True) if pair[0].name not in once]
    sent, batches = [own for own, _ in staying], [batch for _, batch in staying]
    for turn in range(2, rounds + 1):
        for own, batch in staying:
            own.adapter = train_site(config, own.number, batch, turn, whole)
        whole = merge_sites(config, [own.adapter for own in sent], [own.images for own in sent])
    for own, batch in zip(sent, batches, strict=True):
        found = measure_site(config, whole, batch)
        own.statistics = {name: value.statistics.state() for name, value in found.items()}
        own.temperatures = {name: value.temperature for name, value in found.items()}
        own.columns = columns_sent(batch, math.inf)
    parts = [(own.classes, ClassStatistics.of(own.statistics["merged"])) for own in sent]
    cooled = temperature_of([(own.temperatures["merged"], own.images) for own in sent])
    names, _, head = head_of(config, parts, cooled)
    counts = add_columns([(own.classes, own.columns) for own in sent])
    model = Model(names, whole, head, clinical_evidence(config, counts))
    others = compared_models(find_learner("fed"))
    for own, batch in zip(sent, batches, strict=True):
        own.tests = judge_site(config, model, others, batch, K)
    write_round(folder, config, K, sent, whole, backbone_hash(config), [], 0.0, rounds=rounds)


@pytest.fixture
def sites(arrive: Callable[..., Path]) -> list[Path]:
    names = ("site_a", "site_b", "site_c")
    return [arrive(name, list(CLASSES[2 * i : 2 * i + 2])) for i, name in enumerate(names)]


@pytest.mark.usefixtures("prefect_server")
def test_the_learner_is_that_of_the_batches_one_after_another(
    here: Path, sites: list[Path]
) -> None:
    hold(here / "round", sites, **GRAPH)
    assert federate("fed", str(here / "round"))["version"] == 1
    assert has_graph(find_learner("fed").path / "model")
    for number, batch in enumerate(sites):
        learn("central", str(batch), None, OVERRIDES if number == 0 else None)
    fed, central = find_learner("fed"), find_learner("central")
    # Bit by bit: the same seeds, the same images, the same running average.
    ours, theirs = merged(fed), merged(central)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for got, wanted in zip(statistics(fed, "frozen"), statistics(central, "frozen"), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    # Under the merged adapter the learner carries old statistics over by a map, and sites measure.
    torch.testing.assert_close(
        statistics(fed, "merged").counts, statistics(central, "merged").counts
    )

    document = read_round(here / "round")
    version = read_version(fed)
    assert fed.store.load_json(version["round"]) == document
    forget("fed", [2])
    sent = [
        (own["classes"], ClassStatistics.of(fed.store.load(own["statistics"]["frozen"])))
        for own in document["sites"]
        if own["number"] != 2
    ]
    names, left = add_sites(sent)
    assert names == ["amber", "birch", "ember", "fern"]
    for got, wanted in zip(statistics(fed, "frozen"), left, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("prefect_server")
def test_what_forgetting_leaves_of_a_site_after_several_rounds_of_training(
    here: Path, sites: list[Path]
) -> None:
    for name, rounds in (("fed", 1), ("further", 2)):
        hold(here / name, sites, rounds=rounds)
        federate(name, str(here / name))
    assert not torch.equal(
        *(merged(find_learner(own))["layer1.mix.weight"] for own in ("fed", "further"))
    )
    left = "adapters were trained on from one that the forgotten site had a part in"
    assert not any(left in remark for remark in forget("fed", [2])["remarks"])
    assert any(left in remark for remark in forget("further", [2])["remarks"])


def answers(folder: LearnerFolder, batches: list[Path]) -> dict[str, tuple[str, str]]:
    """Of each test image: its class, and what the published model says, with its columns."""
    model = Predictor(folder.path / "model")
    files = sorted(file for batch in batches for file in batch.glob("test/*/*.png"))
    said = model.predict(files, columns=columns_of(files))
    return {
        f"{file.parent.name}/{file.name}": (file.parent.name, own.label)
        for file, own in zip(files, said, strict=True)
    }


@pytest.mark.usefixtures("prefect_server")
def test_the_gate_decides_on_what_the_sites_count(here: Path, sites: list[Path]) -> None:
    hold(here / "round", sites)
    assert federate("fed", str(here / "round"))["champion"]
    folder = find_learner("fed")
    first, before = read_version(folder), answers(folder, sites)
    right = sum(true == said for true, said in before.values())
    assert recall_of(folder, first) == pytest.approx(right / 24)  # four images of each class
    assert first["batches"][0]["test_images"] == 8 and not first["tests"]
    with pytest.raises(LearnerError, match="is already of this round"):
        federate("fed", str(here / "round"))

    values = yaml.safe_load(draft(folder))
    values["modifications"] = ["retrain_same_classes"]
    values["limits"] = {
        "sensitivity": {"every_class": 0.0},
        "non_inferiority": {"champion": {"mean": 1.0}, "authorised": {"mean": 1.0}},
        "negative_flips": {"overall": 1.0},
        "ece": 1.0,
    }
    (here / "plan.yaml").write_text(yaml.safe_dump({**values, "locked_test": "0" * 64}))
    with pytest.raises(ConfigError, match="the sites keep the test images"):
        set_plan(folder, here / "plan.yaml")
    (here / "plan.yaml").write_text(yaml.safe_dump(values))
    set_plan(folder, here / "plan.yaml")

    hold(here / "again", sites, **{"train.epochs": 1})
    made = federate("fed", str(here / "again"))
    assert (made["version"], made["champion"], made["outcome"]) == (2, False, "outside")
    second = read_version(folder)
    promote("fed", 2, "to look at its model")
    after = answers(folder, sites)
    flips = [key for key, (true, said) in before.items() if said == true != after[key][1]]
    comparison = second["comparison"]
    assert comparison is not None
    assert comparison["overall"]["images"] == comparison["overall"]["groups"] == 24
    assert comparison["overall"]["negative_flips"] == len(flips)
    assert comparison["overall"]["new"] == pytest.approx(recall_of(folder, second))
    verdicts = {row["name"]: row["verdict"] for row in second["judgement"]["requirements"]}
    assert verdicts["sensitivity.amber"] == verdicts["negative_flips"] == "met"
    assert verdicts["non_inferiority.authorised.mean"] == "met"
    assert verdicts["ece"] == "not met"  # counts tell no confidence: nobody has shown it
    assert second["judgement"]["outside"] == [
        "settings differ from the authorised version's: train.epochs"
    ]
    forget("fed", [2])
    third = read_version(folder)
    assert "counts" not in third and recall_of(folder, third) is None


@pytest.mark.usefixtures("prefect_server")
def test_a_site_that_comes_late_and_alone_is_held_back(
    here: Path, arrive: Callable[..., Path]
) -> None:
    """A round's version is of its sites alone; with the others the late site is taken in."""
    *sites, late = (arrive(name, list(CLASSES[:2])) for name in ("site_a", "site_b", "site_late"))
    hold(here / "round", sites)
    assert federate("fed", str(here / "round"))["champion"]
    hold(here / "late", [late])
    alone = federate("fed", str(here / "late"))
    assert (alone["version"], alone["champion"], alone["outcome"]) == (2, False, "failed")
    version = read_version(find_learner("fed"))
    assert [own["train_images"] for own in version["batches"]] == [16]
    wrong = [row for row in version["judgement"]["requirements"] if row["verdict"] == "not met"]
    assert "learnt from less than champion 1: it has not seen batch 1, 2" in [
        row["detail"] for row in wrong
    ]
    hold(here / "all", [*sites, late])
    assert federate("fed", str(here / "all"))["champion"]
    assert len(read_version(find_learner("fed"))["batches"]) == 3


COLUMNS: dict[str, Any] = {"clinical.categories": ["ward"], "clinical.numbers": ["age"]}
# No class has five training images, so that no temperature is measured; adapters stay as they
# begin, without any effect, so that features do not change from one batch to the next.
PLAIN: dict[str, Any] = {
    **{"train.learning_rate": 1e-30, "train.weight_decay": 0.0},
    **COLUMNS,
}


def noise(
    batch: Path, classes: Sequence[str], train: range = range(4), test: range = range(8, 12)
) -> Path:
    """Pictures that tell no class from another: only what is beside them does."""
    for label in classes:
        for split, numbers in (("train", train), ("test", test)):
            for number in numbers:
                random = np.random.default_rng([CLASSES.index(label), number])
                file = batch / split / label / f"{number:02d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    return batch


def describe(batch: Path, known: bool = True) -> None:
    """List a folder's images, each with a ward and an age of its class's; or with none."""
    lines = ["file,split,class,ward,age"]
    for file in sorted(batch.glob("*/*/*.png")):
        split, label, name = file.relative_to(batch).parts
        place = CLASSES.index(label)
        beside = f"{'north' if place % 2 else 'south'},{30.1 + 10 * place + int(file.stem) % 3}"
        lines.append(f"{split}/{label}/{name},{split},{label},{beside if known else ','}")
    (batch / "manifest.csv").write_text("\n".join([*lines, ""]))


def columns_of(files: list[Path]) -> dict[str, list[str]]:
    """What the listings say of images; nothing where there is none."""
    rows: list[dict[str, str]] = []
    for file in files:
        listing = file.parents[2] / "manifest.csv"
        known = csv.DictReader(listing.open()) if listing.exists() else []
        own = file.relative_to(listing.parent).as_posix()
        rows.append(next((row for row in known if row["file"] == own), {}))
    return {name: [row.get(name, "") for row in rows] for name in ("ward", "age")}


def counts_in(folder: LearnerFolder) -> Any:
    return folder.store.load_json(read_version(folder)["stage"]["clinical"]["counts"])


@pytest.mark.usefixtures("prefect_server")
def test_a_learner_of_sites_answers_with_columns_as_one_of_the_batches(here: Path) -> None:
    """To the last digit; of three sites the second has no columns, and the third leaves again."""
    sites = [
        noise(here / "a", CLASSES[:2]),
        noise(here / "b", CLASSES[2:3]),
        noise(noise(here / "c", CLASSES[1:2], range(4, 8), range(12, 16)), CLASSES[3:5]),
    ]
    describe(sites[0])
    describe(sites[2])
    hold(here / "round", sites, **PLAIN)
    federate("fed", str(here / "round"))
    fed = find_learner("fed")
    notes = read_version(fed)["notes"]
    assert [own for own in notes if "says nothing" in own] == [
        f"b says nothing of ward, age: it has none, or of fewer than {K} patients a value"
    ]
    assert UNCALIBRATED in notes

    listed = shutil.copytree(sites[1], here / "listed")  # a learner asks for the columns
    describe(listed, known=False)
    for number, batch in enumerate((sites[0], listed, sites[2])):
        learn("central", str(batch), None, {**OVERRIDES, **PLAIN} if number == 0 else None)
    central = find_learner("central")
    counts = counts_in(fed)
    assert counts == counts_in(central)
    assert counts["categories"]["ward"] == {"north": [0, 8, 0, 4, 0], "south": [4, 0, 0, 0, 4]}
    assert counts["numbers"]["age"][0] == [4, 8, 0, 4, 4]

    for folder in (fed, central):
        promote(folder.name, folder.pointer()["current"], "to look at its model")
    ours, theirs = (Predictor(own.path / "model") for own in (fed, central))
    assert ours.manifest.clinical is not None
    assert ours.manifest.clinical == theirs.manifest.clinical
    assert ours.manifest.clinical.uncounted == {"ward": [2], "age": [2]}
    files = sorted(file for batch in sites for file in batch.glob("*/*/*.png"))
    beside = columns_of(files)
    alone = ours.predict(files)
    got, wanted = (own.predict(files, columns=beside) for own in (ours, theirs))
    assert [own.label for own in got] == [own.label for own in wanted]
    for image, one, other in zip(alone, got, wanted, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        # A class without counts neither gains nor loses.
        assert one.probabilities["coral"] == pytest.approx(image.probabilities["coral"], abs=1e-6)
    # What the sites have counted are the answers with their columns, which are others than without.
    counted = Counts.of(fed.store.load_json(read_version(fed)["counts"])).confusion
    said = answers(fed, sites)
    assert int(counted.diagonal().sum()) == sum(true == label for true, label in said.values())
    tested = [file for file in files if file.parent.parent.name == "test"]
    without = ours.predict(tested)
    by_image = sum(own.label == f.parent.name for own, f in zip(without, tested, strict=True))
    assert int(counted.diagonal().sum()) > by_image

    for folder in (fed, central):
        forget(folder.name, [3])
    hold(here / "rest", sites[:2], **PLAIN)
    federate("rest", str(here / "rest"))
    assert counts_in(fed) == counts_in(central) == counts_in(find_learner("rest"))
    assert counts_in(fed)["categories"]["ward"] == {"north": [0, 4, 0], "south": [4, 0, 0]}


@pytest.mark.usefixtures("prefect_server")
def test_rounds_of_earlier_versions_and_sites_with_noise_have_no_counts(here: Path) -> None:
    sites = [
        noise(here / name, CLASSES[2 * n : 2 * n + 2], range(8))
        for n, name in enumerate(("site_a", "site_b"))
    ]
    for path in sites:
        describe(path)
    spelt = (sites[1] / "manifest.csv").read_text()
    (sites[1] / "manifest.csv").write_text(
        spelt.replace(",north,", ",N,").replace(",south,", ",S,")
    )
    hold(here / "round", sites, **COLUMNS)
    federate("fed", str(here / "round"))
    notes = read_version(find_learner("fed"))["notes"]
    assert APART in notes and UNCALIBRATED not in notes
    assert [own for own in notes if "in common" in own] == [
        "site_a has no value of ward in common with the others: north, south instead of N, S",
        "site_b has no value of ward in common with the others: N, S instead of north, south",
    ]

    document = json.loads((here / "round/round.json").read_text())
    for own in document["sites"]:
        own["columns"] = None
    document["sites"][0]["epsilon"] = 3.0
    write_atomically(here / "round/round.json", to_json(document))
    federate("noisy", str(here / "round"))
    silent = [own for own in read_version(find_learner("noisy"))["notes"] if "says nothing" in own]
    assert silent == [
        "site_a says nothing of ward, age: where statistics have noise, counts stay",
        f"site_b says nothing of ward, age: it has none, or of fewer than {K} patients a value",
    ]

    for own in document["sites"]:
        del own["columns"], own["temperatures"]
    write_atomically(here / "round/round.json", to_json({**document, "format": 2}))
    federate("earlier", str(here / "round"))
    earlier = find_learner("earlier")
    assert UNCALIBRATED in read_version(earlier)["notes"]
    assert counts_in(earlier) == {"classes": 4, "categories": {}, "numbers": {}}


def test_a_dry_run_lists_the_counts_of_columns(here: Path, sites: list[Path]) -> None:
    describe(sites[0])
    listing = sites[0] / "manifest.csv"
    lines = listing.read_text().splitlines()
    shown = [
        line.replace(",south,", ",rare,") if re.search(r"train/amber/0[0-2]", line) else line
        for line in lines
    ]
    listing.write_text("\n".join([*shown, ""]))
    settings = [part for key in ("image", "backbone") for part in own_settings(key)]
    asked = ["-s", 'clinical.categories=["ward","smoker"]', "-s", 'clinical.numbers=["age"]']

    def said(*more: str) -> str:
        command = ["federate", "fed", "--dry-run", str(sites[0]), "--min-patients", "3"]
        found = CliRunner().invoke(app, [*command, *more, *settings, *asked])
        assert found.exit_code == 0, found.output
        return " ".join(found.output.split())

    told = said()
    assert "measure columns.ward 3 x 2 int64 3 48" in told
    assert "measure columns.age 3 x 2 float64 8 48" in told
    assert "values that are named: ward north, rare, south" in told
    assert "columns that the learner asks for and that are not here: smoker" in told
    assert "2 temperatures" in told and "held back" not in told
    told = said("--min-patients", "4")
    assert "values that are named: ward north, south" not in told
    assert "columns.ward 1 x 2" in told and "rare, " not in told.split("named")[1].split("held")[0]
    assert (
        "held back, so that no count is of fewer than 4 patients: ward of amber (rare, south)"
        in told
    )
    told = said("--epsilon", "3")
    assert "columns.ward" not in told and "temperatures" not in told
    assert "not told, since statistics have noise (--epsilon): ward, age" in told


def test_subgroups_of_a_federated_learner_are_refused_in_a_plan(
    here: Path, sites: list[Path]
) -> None:
    hold(here / "round", sites, **{"retention.subgroups": ["sex"]})
    federate("fed", str(here / "round"))
    folder = find_learner("fed")
    assert NO_SUBGROUPS in read_version(folder)["notes"]
    folder.promote(1, "shown elsewhere")
    values = yaml.safe_load(draft(folder))
    values["limits"] = {"subgroups": [{"column": "sex", "gap": 0.1}]}
    (here / "plan.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="the champion keeps no test image to compare"):
        set_plan(folder, here / "plan.yaml")


def test_a_round_that_was_changed_is_refused(here: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_round(here)
    write_atomically(here / "round.json", to_json({"format": 0}))
    with pytest.raises(DataError, match="format 0"):
        read_round(here)


def same_round(here: Path) -> None:
    """What Flower brought of two sites is what this process made of them; the third is named."""
    got, wanted = read_round(here / "round"), read_round(here / "expected")
    assert (got["merged"], got["rounds"]) == (wanted["merged"], wanted["rounds"])
    for own, expected in zip(got["sites"], wanted["sites"], strict=True):
        assert own["name"] == expected["name"] and own["bytes"] > 0
        assert own["adapter"] == expected["adapter"]
        assert own["statistics"] == expected["statistics"]
        assert own["tests"] == expected["tests"]
        assert own["columns"] == expected["columns"]
        assert own["temperatures"] == pytest.approx(expected["temperatures"])
    assert [own["name"] for own in got["left_out"]] == ["site_c"]


def test_a_dry_run_counts_the_adapter_in_every_round_of_training(sites: list[Path]) -> None:
    settings = [part for key in ("image", "backbone") for part in own_settings(key)]
    rows = {}
    for rounds in (1, 3):
        said = CliRunner().invoke(
            app,
            ["federate", "fed", "--dry-run", str(sites[0]), "--rounds", str(rounds), *settings],
        )
        assert said.exit_code == 0, said.output
        rows[rounds] = said.output
    adapter = sum(
        int(line.split()[-1].replace(",", ""))
        for line in rows[1].splitlines()
        if line.split()[:1] == ["train"]
    )

    def total(rounds: int) -> int:
        (found,) = re.findall(r"tensors.*?, ([\d,]+) bytes", rows[rounds])
        return int(found.replace(",", ""))

    assert total(3) - total(1) == 2 * adapter > 0


def own_settings(section: str) -> list[str]:
    return [
        part
        for name, value in OVERRIDES[section].items()
        for part in ("-s", f"{section}.{name}={json.dumps(value)}")
    ]


def settings_in(here: Path, **more: object) -> Path:
    config = first_settings("fed", None, {**OVERRIDES, **more})
    write_atomically(here / "config.json", to_json(config.model_dump(mode="json")))
    return here / "config.json"


@needs_flower
def test_a_site_that_fails_is_left_out_and_named(here: Path, sites: list[Path]) -> None:
    describe(sites[0])  # the others have no columns
    settings = settings_in(here, **COLUMNS)
    for file in sites[2].rglob("*.png"):
        file.write_bytes(b"no picture")
    subprocess.run(
        [
            *(FLOWER, "-m", "dynammo.federated", settings, here / "round", *sites),
            *("--min-patients", str(K)),
        ],
        check=True,
        env=environment(here),
    )
    hold(here / "expected", sites[:2], **COLUMNS)
    same_round(here)
    first, second = read_round(here / "round")["sites"]
    assert first["columns"] and not second["columns"]


ROUNDS = """
import json
import sys
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from dynammo.config import load_config
from dynammo.errors import ConfigError
from dynammo.federated.app import Asked, client_app, hold_round

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 9
settings, out, least, *sites = sys.argv[1:]
asked_to_train, crossed = [], 0


class Grid:
    # In this process; the last node is gone when it is to train again.
    def __init__(self):
        self.app = client_app(sites)

    def get_node_ids(self):
        return range(len(sites))

    def send_and_receive(self, messages, timeout):
        global crossed
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            if kind == "train":
                asked_to_train.append(node)
            if node == len(sites) - 1 and asked_to_train.count(node) == 2:
                yield Message(Error(3, "Node Unavailable"), reply_to=message)
                continue
            context = Context(7, node, {"partition-id": node}, RecordDict(), {})
            reply = self.app(message, context)
            if node == 0:
                records = reply.content.array_records.values()
                crossed += sum(len(own.data) for it in records for own in it.values())
            yield reply


config = load_config(None, json.loads(Path(settings).read_text()))
for rounds in (3, 0):
    try:
        hold_round(Grid(), Asked(config, int(least), len(sites), 10.0, Path(out), rounds=rounds))
    except ConfigError as error:
        print(json.dumps(error.problems))
    else:
        print(json.dumps([asked_to_train, crossed]))
"""


@needs_flower
def test_several_rounds_of_training_and_a_site_that_goes_between_them(
    here: Path, sites: list[Path]
) -> None:
    settings = settings_in(here)
    done = subprocess.run(
        [FLOWER, "-c", ROUNDS, str(settings), str(here / "round"), str(K), *map(str, sites)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(here),
    )
    assert not done.returncode, done.stderr
    (trained, crossed), refused = map(json.loads, done.stdout.splitlines())
    assert refused == ["rounds must be at least 1, got 0"]
    assert trained == [0, 1, 2, 0, 1, 2, 0, 1]
    hold(here / "expected", sites, rounds=3, once=("site_c",))
    same_round(here)
    document = read_round(here / "round")
    assert document["rounds"] == 3 and document["sites"][0]["bytes"] == crossed
    (left,) = document["left_out"]
    assert left["reason"] == (
        "failed (Node Unavailable); its adapter of an earlier round is in what the others trained "
        "on from"
    )


EARLIER = ROUNDS.replace("for rounds in (3, 0)", "for rounds in (1,)").replace(
    "            yield reply",
    """
            for record in ("temperatures", "columns", "values"):
                if node == 0 and record in reply.content:
                    del reply.content[record]
            yield reply""",
)


@needs_flower
def test_a_site_of_an_earlier_version_is_in_without_counts(here: Path, sites: list[Path]) -> None:
    for path in sites[:2]:
        describe(path)
    settings = settings_in(here, **COLUMNS)
    done = subprocess.run(
        [FLOWER, "-c", EARLIER, str(settings), str(here / "round"), str(K), *map(str, sites[:2])],
        capture_output=True,
        text=True,
        check=False,
        env=environment(here),
    )
    assert not done.returncode, done.stderr
    first, second = read_round(here / "round")["sites"]
    assert first["columns"] is None and first["temperatures"] == {"merged": 1.0, "frozen": 1.0}
    hold(here / "expected", sites[:2], **COLUMNS)
    assert second["columns"] == read_round(here / "expected")["sites"][1]["columns"]


GONE = """
from pathlib import Path

from flwr.app import Error, Message
from dynammo.config import Config
from dynammo.federated.app import Asked, _ask
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 9

class Grid:
    def send_and_receive(self, messages, timeout):
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
        here, gone = messages
        lost = Message(Error(3, "Node Unavailable"), reply_to=gone)
        lost.metadata._src_node_id = 1  # the SuperLink's
        return [lost]

asked = Asked(Config(), 5, 2, 10.0, Path("round"))
print(_ask(Grid(), "train", {11: {}, 12: {}}, asked))
"""


@needs_flower
def test_a_node_that_is_gone_is_told_from_the_superlink_that_says_so() -> None:
    done = subprocess.run(
        [FLOWER, "-c", GONE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == (
        "{11: 'no answer within 10 s', 12: 'failed (Node Unavailable)'}"
    ), done.stderr


@needs_flower
def test_one_superlink_and_three_supernodes_on_loopback(here: Path, sites: list[Path]) -> None:
    for path in sites:
        describe(path)
    settings, port = settings_in(here, **COLUMNS), free_port()
    env, address = environment(here), f"127.0.0.1:{port}"
    sites[2].rename(here / "gone")  # its supernode comes, and has no images
    home = here / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\n'
        f'address = "{address}"\ninsecure = true\n'
    )
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    commands = [[*link, "--disable-runtime-dependency-installation"]]
    for path in sites:
        node = ["flower-supernode", "--insecure", "--superlink", address]
        own = ["--port", str(free_port()), "--node-config", f'site="{path}"']
        commands.append([*node, *own])
    asked = f'config="{settings}" out="{here / "round"}" sites=3 min-patients={K} timeout=200.0'
    started = []
    try:
        for number, command in enumerate(commands):
            log = (here / f"{number}.log").open("wb")
            folder = Path(FLOWER).parent
            started.append(
                subprocess.Popen(
                    [folder / command[0], *command[1:]], env=env, stdout=log, stderr=log
                )
            )
            wait_for(port)
        run = ["run", str(ROOT / "scripts" / "flower"), "loopback", "--stream", "-c", asked]
        subprocess.run([Path(FLOWER).parent / "flwr", *run], check=True, env=env, timeout=250)
        for _ in range(600):
            if (here / "round" / "round.json").is_file():
                break
            time.sleep(0.1)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)
    hold(here / "expected", sites[:2], **COLUMNS)
    same_round(here)
    assert all(own["columns"] for own in read_round(here / "round")["sites"])


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Until somebody listens."""
    for _ in range(600):
        with socket.socket() as own:
            if own.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens on {port}")

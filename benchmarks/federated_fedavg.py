"""FedAvg of the whole network at sites that share no images, beside `dynammo federate`.

Flower's own strategy FedAvg (arXiv 1602.05629) in Flower's simulation, so in an environment with
Flower (docs/how-to/federated.md). In each round every site trains the whole pretrained network with
a softmax head over the classes of all sites, as the method `finetune` does, and the server averages
the networks, weighted by the numbers of training images. The head starts at zero, BatchNorm stays
in eval mode, and momentum starts anew in each round.

Sites are folders or CSVs as `dynammo federate` takes them. Of several rates that one is taken which
has, after the last round, the highest mean class recall on the test images that the sites split off
themselves; only its network is shown on the images of --test.

    python benchmarks/federated_fedavg.py data/skin8/by_class_?.csv --test data/skin8/manifest.csv \
        --rate 0.003 --rate 0.01 -s image.size=64
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynammo.config import Config, load_config, parse_overrides
from dynammo.config.reading import layered
from dynammo.data.samples import ImageSet, Sample
from dynammo.data.store import ImageStore, build_store
from dynammo.device import choose_device
from dynammo.errors import DynammoError
from dynammo.evaluation.metrics import accuracy, mean_class_recall
from dynammo.extras import needs
from dynammo.federated.site import read_site
from dynammo.learner.batch import list_labelled
from dynammo.methods.base import Task, TaskImages, Watch
from dynammo.methods.finetune import Finetune
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import extract_features
from dynammo.seeds import derive_seed
from dynammo.state import State

with needs("federated", "flwr"):
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

# A rate that falls within a site's few epochs would fall anew in every round.
SETTINGS: dict[str, object] = {"train.milestones": []}


class Images(NamedTuple):
    """Some images of a decoded store, and the index of each one's class."""

    store: Path
    samples: Sequence[Sample]
    labels: Tensor

    def load(self) -> TaskImages:
        """Pixels (N, 3, S, S) uint8 and labels (N,)."""
        return TaskImages(ImageStore.open(self.store, verify=False).load(self.samples), self.labels)


def decoded(
    config: Config, images: ImageSet, split: str, names: Sequence[str], folder: Path
) -> Images:
    """Decode the images of a split, once for all rounds."""
    samples = tuple(own for own in images.samples if own.split == split and own.label in names)
    labels = torch.tensor([names.index(own.label) for own in samples]).long()
    chosen = ImageSet(images.root, samples)
    store = build_store(chosen, config.image.form, folder, repeated=config.data.repeats)
    return Images(store, samples, labels)


def network(config: Config, classes: int, rate: float | None = None) -> Finetune:
    """The whole pretrained network and its head over C classes."""
    if rate is not None:
        train = config.train.model_copy(update={"network_learning_rate": rate})
        config = config.model_copy(update={"train": train})
    weights = pretrained_weights(config.backbone, derive_seed(config.seed, "backbone"))
    model = Finetune(config, weights, choose_device(config.device))
    nothing = TaskImages(torch.empty(0), torch.empty(0))
    model.grow(Task(0, 0, classes, nothing, nothing))
    return model


def client_app(config: Config, classes: int, sites: Sequence[Images]) -> ClientApp:
    """A site: trains the network that it is sent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        own, asked = (
            sites[int(context.node_config["partition-id"])].load(),
            message.content["config"],
        )
        model = network(config, classes, float(asked["rate"]))
        model.load_state(message.content["arrays"].to_torch_state_dict())
        history = model.learn(Task(int(asked["server-round"]), 0, classes, own, own), Watch())
        told = {"num-examples": len(own.labels), "loss": history[-1].loss}
        content = {"arrays": ArrayRecord(model.state()), "metrics": MetricRecord(told)}
        return Message(RecordDict(content), reply_to=message)

    return app


def size_of(record: ArrayRecord) -> int:
    """Bytes of a message's tensors, as a round of `dynammo federate` counts them."""
    return sum(len(array.data) for array in record.values())


def counted(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
    """How many sites answered a round, with how many bytes."""
    return MetricRecord(
        {"sites": len(replies), "bytes": sum(size_of(own["arrays"]) for own in replies)}
    )


def measured(model: Finetune, state: State, images: TaskImages) -> dict[str, float]:
    """Accuracy and mean class recall."""
    model.load_state(state)
    said = model.scores(extract_features(model.network, images.images)).predicted.numpy()
    labels = images.labels.numpy()
    recall = mean_class_recall(labels, said, model.weight.shape[0])
    return {"accuracy": accuracy(labels, said), "recall": recall}


class Run(NamedTuple):
    """One rate: what each round gave on both sets of images, and its bytes and seconds."""

    rate: float
    rounds: list[dict[str, Any]]

    @property
    def recall(self) -> float:
        """That the rates are compared by."""
        return float(self.rounds[-1]["validation"]["recall"])


def hold(
    grid: Grid,
    config: Config,
    classes: int,
    sites: int,
    rounds: int,
    rate: float,
    judged: dict[str, TaskImages],
) -> Run:
    """All rounds with one rate.

    Raises:
        DynammoError: a site failed in one of them.
    """
    model, done = network(config, classes), list[dict[str, Any]]()
    sizes, last = list[int](), time.monotonic()

    def evaluate(number: int, arrays: ArrayRecord) -> None:
        nonlocal last
        seconds = round(time.monotonic() - last, 1) if number else 0.0
        state = arrays.to_torch_state_dict()
        found = {name: measured(model, state, images) for name, images in judged.items()}
        done.append({"round": number, "seconds": seconds, "from_sites": 0, "to_sites": 0, **found})
        sizes.append(size_of(arrays))
        recall = 100 * found["validation"]["recall"]
        print(f"rate {rate:g}, round {number}: {recall:.1f} on validation images", file=sys.stderr)
        last = time.monotonic()

    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=sites,
        min_available_nodes=sites,
        train_metrics_aggr_fn=counted,
    )
    result = strategy.start(
        grid,
        ArrayRecord(model.state()),
        rounds,
        train_config=ConfigRecord({"rate": rate}),
        evaluate_fn=evaluate,
    )
    for number, row in enumerate(done[1:], start=1):
        told = result.train_metrics_clientapp.get(number, {"sites": 0})
        if told["sites"] != sites:
            raise DynammoError(f"round {number}: {told['sites']} of {sites} sites answered")
        row |= {"from_sites": told["bytes"], "to_sites": sizes[number - 1] * sites}
    return Run(rate, done)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sites", type=Path, nargs="+", help="a batch for each site")
    parser.add_argument("--test", type=Path, required=True, help="folder or CSV with test images")
    parser.add_argument("--rounds", type=int, default=10, help="R; default: 10")
    parser.add_argument("--epochs", type=int, default=2, help="E, of a site a round; default: 2")
    parser.add_argument(
        "--rate", type=float, action="append", required=True, help="may be repeated"
    )
    parser.add_argument(
        "--min-patients", type=int, default=5, help="of a class at a site; default: 5"
    )
    parser.add_argument("-s", "--set", action="append", default=[], help="a setting, KEY=VALUE")
    return parser.parse_args()


def main() -> None:
    """Hold the rounds of all rates, and print what the chosen one gave."""
    given = arguments()
    own = {**SETTINGS, "train.epochs": given.epochs}
    config = load_config(None, layered(own, parse_overrides(given.set)))
    batches = [read_site(path, config, given.min_patients) for path in given.sites]
    names = sorted({name for batch in batches for name in batch.patients})
    runs = list[Run]()
    with TemporaryDirectory(prefix="dynammo-fedavg-") as temporary:
        folder = Path(temporary)
        sites = [decoded(config, batch.images, "train", names, folder) for batch in batches]
        held = [decoded(config, batch.images, "test", names, folder).load() for batch in batches]
        judged = {
            "validation": TaskImages(*(torch.cat(part) for part in zip(*held, strict=True))),
            "test": decoded(config, list_labelled(given.test), "test", names, folder).load(),
        }
        app = ServerApp()

        @app.main()
        def serve(grid: Grid, context: Context) -> None:
            for rate in given.rate:
                runs.append(hold(grid, config, len(names), len(sites), given.rounds, rate, judged))

        run_simulation(app, client_app(config, len(names), sites), len(sites))
    if len(runs) < len(given.rate):
        sys.exit("error: a rate has failed; the lines above say why")
    chosen = max(runs, key=lambda run: run.recall)
    document = {
        "classes": names,
        "images": {
            "training": [len(own.samples) for own in sites],
            **{name: len(images.labels) for name, images in judged.items()},
        },
        "epochs": given.epochs,
        "settings": given.set,
        "recall on validation images by rate": {str(run.rate): run.recall for run in runs},
        "rate": chosen.rate,
        "rounds": chosen.rounds,
    }
    print(json.dumps(document, indent=2))
    print("\n| round | accuracy | mean class recall | MB from the sites | MB to them | seconds |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in chosen.rounds:
        so_far = chosen.rounds[: row["round"] + 1]
        up, down, seconds = (
            sum(own[key] for own in so_far) for key in ("from_sites", "to_sites", "seconds")
        )
        found = row["test"]
        print(
            f"| {row['round']} | {100 * found['accuracy']:.1f} | {100 * found['recall']:.1f} | "
            f"{up / 1e6:.1f} | {down / 1e6:.1f} | {seconds:.0f} |"
        )


if __name__ == "__main__":
    try:
        main()
    except DynammoError as error:
        sys.exit(f"error: {error}")

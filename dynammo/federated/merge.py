"""What is made of the sites' messages, and which settings allow it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynammo.clinical import NO_COUNTS, Counts, add, nothing
from dynammo.config import Config
from dynammo.errors import ConfigError, DataError
from dynammo.heads import HEAD_RULES
from dynammo.heads.discriminant import (
    HOTTEST,
    discriminant_head,
    mean_temperature,
    weighed_temperature,
)
from dynammo.heads.statistics import ClassStatistics, add_samples
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import inputs_of
from dynammo.network.network import build_network
from dynammo.state import State

METHODS = ("merged", "frozen")
SETTINGS: dict[str, object] = {
    "adapter.init": "fresh",
    "memory.per_class": 0,
    "methods": [*METHODS],
}


def check_federated(config: Config) -> None:
    """Refuse settings under which a site would need what others have.

    Raises:
        ConfigError: all of them.
    """
    needed = inputs_of(MERGE_RULES[config.merge.rule]) - {"samples"}
    others = [name for name in config.methods if name not in METHODS]
    problems = {
        "adapter.init must be fresh": config.adapter.init != "fresh",
        "adapter.tasks must be null: every site trains one": config.adapter.tasks is not None,
        "memory.per_class must be 0: no image crosses": config.memory.per_class != 0,
        "train.replay and train.distil must be 0": bool(config.train.replay or config.train.distil),
        "merge.trust must be full: held-out images stay at their site": (
            config.merge.trust != "full"
        ),
        "backbone.renormalise must be 0: sites share one backbone": bool(
            config.backbone.renormalise
        ),
        f"head.rule {config.head.rule} needs images": (
            HEAD_RULES[config.head.rule].evidence != "statistics"
        ),
        f"merge.rule {config.merge.rule} needs {', '.join(sorted(needed))}": bool(needed),
        f"methods: {', '.join(others)} cannot be federated": bool(others),
    }
    if found := [problem for problem, there in problems.items() if there]:
        raise ConfigError(found)


def merge_sites(config: Config, adapters: Sequence[State], images: Sequence[int]) -> State:
    """The sites' adapters by the configured merge rule.

    Args:
        config: of the learner.
        adapters: in the order of the sites.
        images: that each was trained on; rule `weighted` asks for them.
    """
    rule = MERGE_RULES[config.merge.rule]
    extra = {"samples": list(images)} if "samples" in inputs_of(rule) else {}
    return rule(adapters, **extra, **config.merge.options)


def add_sites(
    parts: Sequence[tuple[Sequence[str], ClassStatistics]],
) -> tuple[list[str], ClassStatistics]:
    """Classes in order of arrival, and their statistics: what all sites' samples measured together
    give. Without one of the parts it is as if that site had never sent anything.

    Args:
        parts: of each site its classes and their statistics, all under the same network.
    """
    names: list[str] = []
    total: ClassStatistics | None = None
    for classes, own in parts:
        names += [name for name in classes if name not in names]
        owner = [names.index(name) for name in classes]
        total = own if total is None else add_samples(total, own, owner)
    if total is None:
        raise ValueError("there are no sites to add up")
    return names, total


def add_columns(parts: Sequence[tuple[Sequence[str], Counts | None]]) -> Counts:
    """What is known beside images, of all sites' classes in order of arrival: as a learner counts
    that gets the sites' batches one after another, to the last digit.

    Args:
        parts: of each site its classes, and their counts if it sent any.
    """
    names: list[str] = []
    total = NO_COUNTS
    for classes, own in parts:
        names += [name for name in classes if name not in names]
        owner = [names.index(name) for name in classes]
        total = add(total, own or nothing(len(classes)), owner, len(names))
    return total


def head_of(
    config: Config,
    parts: Sequence[tuple[Sequence[str], ClassStatistics]],
    temperature: float = 1.0,
) -> tuple[list[str], ClassStatistics, State]:
    """Classes, statistics and the head over all of them, from those of the sites (`add_sites`), its
    outputs divided by a temperature.
    """
    names, total = add_sites(parts)
    head = discriminant_head(total, config.head)
    cooled = {name: value / temperature for name, value in head.items()}
    return names, total, {**cooled, "power": torch.tensor(config.head.power, dtype=torch.float64)}


def temperature_of(sent: Sequence[tuple[float, int]]) -> float:
    """The sites' temperatures as one: their geometric mean, each weighing as its images do. One of
    exactly 1 says that the site could not measure any; without others it is 1.

    Args:
        sent: of each site the temperature and the number of training images.
    """
    weighed = [weighed_temperature(own, images) for own, images in sent]
    return mean_temperature(torch.stack(weighed).sum(0)) if weighed else 1.0


def check_adapter(config: Config, adapter: State) -> None:
    """Find out whether an adapter that was received fits.

    Raises:
        DataError: it does not, or a number in it is not finite.
    """
    network = build_network(config.backbone.architecture, None, config.image.form, config.adapter)
    _fits(adapter, network.adapter_state())


def check_temperature(temperature: float) -> float:
    """A temperature that was received.

    Raises:
        DataError: none that can be.
    """
    if not 1 <= temperature <= HOTTEST:
        raise DataError("a temperature that cannot be")
    return temperature


def check_statistics(config: Config, classes: int, features: int, state: State) -> None:
    """Likewise for statistics of some classes, `features` being D.

    Raises:
        DataError: they do not fit, or are of no samples.
    """
    own = () if config.head.pooling == "samples" else (classes,)
    double = torch.float64
    wanted = {
        "means": torch.empty(classes, features, dtype=double),
        "scatter": torch.empty(*own, features * (features + 1) // 2, dtype=double),
        "counts": torch.empty(classes, dtype=double),
    }
    _fits(state, wanted)
    if bool((state["counts"] < 1).any()):
        raise DataError("a class without samples")


def _fits(state: State, wanted: State) -> None:
    def form(value: Tensor) -> tuple[torch.dtype, torch.Size]:
        return value.dtype, value.shape

    if {n: form(v) for n, v in state.items()} != {n: form(v) for n, v in wanted.items()}:
        raise DataError("other tensors than were asked for")
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise DataError("numbers that are not finite")

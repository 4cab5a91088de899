"""What makes a step run again, and what does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from prefect import Task

from dynammo.adapters import ADAPTERS
from dynammo.checkpoint import Ref
from dynammo.config import Config, MemoryConfig, load_config
from dynammo.config.sections import Section
from flows.methods import adapting, shared_features, task_heads
from flows.methods.base import takes_statistics
from flows.support import learning
from tasks import merge_inputs
from tasks.prepare_backbone import weights_hash
from tasks.support import caching
from tasks.support.caching import StepCache, code_version, step, step_key
from tasks.support.workspace import CHECKPOINTS, RESULTS, Context, provenance
from tasks.train_adapter import train_adapter

# Those that take a whole `Config` have tests of their own: test_learn_method.py.
STEPS = {
    task
    for module in (learning, adapting, shared_features, task_heads, merge_inputs)
    for task in vars(module).values()
    if isinstance(task, Task)
    and isinstance(task.cache_policy, StepCache)
    and Config not in get_type_hints(task.fn).values()
}
HEADS = {"fit head", "fine-tune task heads"}
NETWORK = HEADS | {
    "update statistics",
    "train adapter",
    "trust adapter",
    "extract training features",
    "extract memory features",
    "extract test features",
    "evaluate",
    "initial adapter",
    "adapter statistics",
}
RENORMALISED = {"renormalise backbone"}
BACKBONES = {"prepare backbone", *RENORMALISED}
SEEDED = {*BACKBONES, "train adapter", "initial adapter", *HEADS}
PARENTS = {"file": "p.csv", "sha256": "0" * 64, "content": {"mole": "benign"}}
REF: Ref = {"path": "adapter-0.safetensors", "sha256": "0" * 64}
HERE = Context(label="1/3")


def key(task: Task[..., Any], **inputs: Any) -> str:
    found = task.cache_policy.compute_key(SimpleNamespace(task=task), inputs, {})
    assert found is not None
    return found


def sections(config: Config) -> dict[type, Section]:
    """Each section, as the flow hands it to steps."""
    found = {type(value): value for value in vars(config).values() if isinstance(value, Section)}
    architecture = config.backbone.architecture
    return {**found, type(architecture): architecture, type(config.train): config.train.of_adapters}


def values(config: Config) -> dict[str, Any]:
    """Single settings, under the names that steps have for them."""
    backbone, head = config.backbone, config.head
    return {
        "seed": config.seed,
        "name": backbone.name,
        "pretrained": backbone.pretrained,
        "weights": backbone.weights,
        "weights_hash": weights_hash(backbone),
        "share": backbone.renormalise,
        "flip": head.flip and takes_statistics(config),
        "power": head.power,
        "ridge": head.drift_ridge,
    }


def settings(task: Task[..., Any], config: Config) -> dict[str, Any]:
    """What a step's signature says that it takes of a configuration."""
    own, single = sections(config), values(config)
    found = {}
    for name, kind in get_type_hints(task.fn).items():
        if name in single:
            found[name] = single[name]
        elif inspect.isclass(kind) and issubclass(kind, Section):
            found[name] = own[kind]
    return found


def keys(overrides: dict[str, Any] | None = None, context: Context = HERE) -> dict[str, str]:
    """The keys of all steps, by name, under a configuration."""
    config = load_config(None, overrides)
    return {task.name: key(task, **settings(task, config), context=context) for task in STEPS}


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("module", "affected"),
    [
        ("dynammo.training.loop", {"train adapter"}),
        ("dynammo.memory.herding", {"select exemplars"}),
        ("dynammo.evaluation.metrics", {"evaluate"}),
        ("dynammo.network.network", NETWORK | BACKBONES),
        ("dynammo.merging.average", {"merge adapters"}),
        ("dynammo.merging.blend", {"merge adapters"}),
        ("dynammo.merging.ties", set()),
        ("dynammo.merging.measures", {"adapter statistics", "initial adapter"}),
        ("dynammo.merging.heads", set()),  # the rule that uses it is not chosen
        ("dynammo.heads.discriminant", HEADS | {"trust adapter"}),
        (
            "dynammo.heads.statistics",
            HEADS | {"update statistics", "train adapter", "trust adapter"},
        ),
        ("dynammo.adapters.linear", NETWORK),
        ("dynammo.adapters.conv", set()),
        ("dynammo.adapters", set()),  # the table of names, one line longer
        ("dynammo.config", set()),
        ("dynammo.data.sources.folder", set()),
        ("dynammo.reporting.report", set()),
        ("tasks.fit_head", HEADS),
        ("tasks.publish", set()),
        ("flows.incremental", set()),
    ],
)
def test_changed_code_runs_what_uses_it_again(
    change_code: Callable[[str], None], module: str, affected: set[str]
) -> None:
    before = keys()
    change_code(module)
    assert differing(before, keys()) == affected


@pytest.mark.parametrize(
    ("overrides", "affected"),
    [
        ({"seed": 2}, SEEDED),
        ({"train.epochs": 3}, {"train adapter"}),
        ({"memory.size": 10}, {"select exemplars"}),
        ({"head.epochs": 3}, HEADS | {"trust adapter"}),
        ({"merge.rule": "ties"}, {"merge adapters"}),
        ({"merge.options": {"keep": 0.5}}, {"merge adapters"}),
        ({"classes.parents": PARENTS}, {"evaluate"}),
        ({"image.size": 64}, NETWORK | RENORMALISED | {"keep images"}),
        ({"adapter.name": "conv"}, NETWORK),
        ({"adapter.options": {"bias": False}}, NETWORK),
        ({"preset": "paper"}, NETWORK | RENORMALISED),
        ({"backbone.levels": None}, NETWORK | RENORMALISED),
        # What a network was built from is a checkpoint among the arguments.
        ({"backbone.pretrained": False}, {"prepare backbone"}),
        ({"backbone.renormalise": 0.1}, RENORMALISED),
        (
            {
                "output": "elsewhere",
                "device": "cpu",
                "methods": ["merged"],
                "data.name": "other",
                "gate.min_last_recall": 0.9,
                "tracking.register_model": False,
                "adapter.init": "previous",  # as it is by default
            },
            set(),
        ),
    ],
)
def test_a_changed_setting_runs_what_uses_it_again(
    overrides: dict[str, Any], affected: set[str]
) -> None:
    assert differing(keys(), keys(overrides)) == affected


def test_every_step_is_looked_at() -> None:
    assert {task.name for task in STEPS} == NETWORK | BACKBONES | {
        "count columns",
        "keep images",
        "merge adapters",
        "select exemplars",
    }
    for task in STEPS:
        assert [*get_type_hints(task.fn).values()].count(Context) == 1, task.name


def test_every_argument_but_the_context_counts() -> None:
    given = settings(train_adapter, load_config(None))
    assert given.keys() == {"seed", "architecture", "image", "adapter", "training"}
    arguments = {**given, "number": 1, "previous": None, "context": HERE}
    first = key(train_adapter, **arguments)
    others = [{"number": 2}, {"previous": REF}, {"previous": {**REF, "sha256": "1" * 64}}]
    found = [key(train_adapter, **{**arguments, **other}) for other in others]
    assert len({first, *found}) == 4


def test_of_the_context_the_device_and_whose_it_is_count_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    elsewhere = Context("m.json", "/images", str(tmp_path / "kept"), "cpu", 7, "1/9")
    assert not differing(keys(), keys(context=elsewhere))
    assert differing(keys(), keys(context=replace(HERE, device="cuda"))) == set(keys())
    assert differing(keys(), keys(context=replace(HERE, key="01" * 32))) == set(keys())


def test_a_context_is_known_by_its_type() -> None:
    arguments = settings(train_adapter, load_config(None))
    first = key(train_adapter, **arguments, context=HERE)
    assert key(train_adapter, **arguments, places=replace(HERE, label="1/9")) == first
    assert key(train_adapter, **arguments, places=replace(HERE, device="cuda")) != first
    assert key(train_adapter, **arguments, places=HERE, context_label="1/9") != first


def test_the_name_and_the_versions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    first = step_key("step", {}, ["dynammo.seeds"])
    assert step_key("step", {}, ["dynammo.seeds"]) == first
    assert step_key("another", {}, ["dynammo.seeds"]) != first
    monkeypatch.setattr(caching, "versions", lambda: {"torch": "0"})
    assert step_key("step", {}, ["dynammo.seeds"]) != first


@pytest.fixture
def rewrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write the code of a user's module, as if this process had started only then."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> None:
        (tmp_path / "a_users_part.py").write_text(code)
        caching._code_hash.cache_clear()

    yield write
    caching._code_hash.cache_clear()


def test_comments_and_layout_do_not_count(rewrite: Callable[[str], None]) -> None:
    rewrite("def scale(x):\n    return 2 * x\n")
    first = code_version("a_users_part")
    rewrite("# Twice.\n\ndef scale( x ) :\n\n  return (2*x)  # as much\n")
    assert code_version("a_users_part") == first
    rewrite("def scale(x):\n    return 3 * x\n")
    assert code_version("a_users_part") != first


def test_the_code_of_a_registered_part_counts(
    rewrite: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys()
    monkeypatch.setattr(ADAPTERS, "_targets", dict(ADAPTERS._targets))
    ADAPTERS.add("mine", "a_users_part:Mine")
    rewrite("class Mine: alpha = 1\n")
    assert not differing(before, keys())  # one more file concerns nobody who does not choose it
    mine = keys({"adapter.name": "mine"})
    rewrite("class Mine: alpha = 2\n")
    assert differing(mine, keys({"adapter.name": "mine"})) == NETWORK


def test_the_code_of_an_installed_packages_part_counts(
    rewrite: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys()
    metadata = tmp_path / "a_users_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: a-users-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[dynammo.adapters]\nmine = a_users_part:Mine\n")
    monkeypatch.setattr(ADAPTERS, "_found", None)
    rewrite("class Mine: alpha = 1\n")
    assert not differing(before, keys())
    mine = keys({"adapter.name": "mine"})
    rewrite("class Mine: alpha = 2\n")
    assert differing(mine, keys({"adapter.name": "mine"})) == NETWORK


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        code_version("no_such_module")


runs: list[int] = []


@step("make")
def make(memory: MemoryConfig, context: Context) -> dict[str, Any]:
    runs.append(memory.size or 0)
    saved = {"x": torch.tensor(memory.size)}
    made = context.checkpoints.save("made", saved, provenance(memory))
    return {"made": [made], "note": context.checkpoints.save_json("note", 1)}


def edit(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.usefixtures("prefect_server")
def test_a_result_is_used_again_only_while_its_files_are_intact() -> None:
    def made(size: int = 2) -> dict[str, Any]:
        return make(MemoryConfig(size=size), HERE)

    first = made()
    weights, note = CHECKPOINTS.path(first["made"][0]), CHECKPOINTS.path(first["note"])
    (record,) = [path for path in RESULTS.iterdir() if weights.name in path.read_text()]
    content = weights.read_bytes()
    damages: list[Callable[[], None]] = [
        weights.unlink,
        note.unlink,
        lambda: edit(weights, content[:-1]),
        lambda: edit(weights, content[:-1] + b"\1"),
        lambda: edit(note, b"2\n"),
        lambda: edit(record, b"{"),
        lambda: edit(record, b"[1]"),
        record.unlink,
    ]
    for count, damage in enumerate(damages, start=1):
        assert made() == first
        assert len(runs) == count, "an intact result was made again"
        damage()
        assert made() == first
        assert len(runs) == count + 1, f"damage {count} went unnoticed"
        assert weights.read_bytes() == content
    made(3)
    assert set(runs) == {2, 3}

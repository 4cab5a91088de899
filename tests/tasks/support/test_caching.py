"""What makes a step run again, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prefect import Task

from dynammo.adapters import ADAPTERS
from dynammo.checkpoint import Ref
from dynammo.config import load_config
from tasks.adapters import prepare_backbone, train_adapter, weights_settings
from tasks.evaluation import evaluate, extract_test_features
from tasks.exemplars import select_exemplars
from tasks.features import extract_training_features
from tasks.heads import fine_tune_task_heads, fit_head
from tasks.merging import merge_adapters
from tasks.statistics import update_statistics
from tasks.support import caching
from tasks.support.caching import code_version, step, step_key
from tasks.support.workspace import CHECKPOINTS, RESULTS, provenance, settings

SECTIONS = {
    train_adapter: ("seed", "backbone", "image", "adapter", "train"),
    merge_adapters: ("merge",),
    extract_training_features: ("backbone", "image", "adapter"),
    select_exemplars: ("memory",),
    update_statistics: ("backbone", "image", "adapter"),
    fit_head: ("seed", "backbone", "image", "adapter", "head"),
    fine_tune_task_heads: ("seed", "backbone", "image", "adapter", "head"),
    extract_test_features: ("backbone", "image", "adapter"),
    evaluate: ("backbone", "image", "adapter"),
}
HEADS = {"fit head", "fine-tune task heads"}
ADAPTED = HEADS | {
    "update statistics",
    "train adapter",
    "extract training features",
    "extract test features",
    "evaluate",
}
REF: Ref = {"path": "adapter-0.safetensors", "sha256": "0" * 64}


def key(task: Task[..., Any], **inputs: Any) -> str:
    found = task.cache_policy.compute_key(SimpleNamespace(task=task), inputs, {})
    assert found is not None
    return found


def keys(overrides: dict[str, Any] | None = None) -> dict[str, str]:
    """The keys of all steps, by name, under a configuration."""
    config = load_config(None, overrides)
    chosen = {task: settings(config, *sections) for task, sections in SECTIONS.items()}
    # Where the weights come from counts here alone.
    chosen[prepare_backbone] = weights_settings(config)
    return {
        task.name: key(task, settings=values, context={"label": "1/3"})
        for task, values in chosen.items()
    }


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.fixture
def change_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a module's code look changed."""
    original = caching._code_hash

    def change(changed: str) -> None:
        monkeypatch.setattr(
            caching, "_code_hash", lambda name: "new" if name == changed else original(name)
        )

    return change


@pytest.mark.parametrize(
    ("module", "affected"),
    [
        ("dynammo.training.loop", {"prepare backbone", "train adapter"}),
        ("dynammo.memory.herding", {"select exemplars"}),
        ("dynammo.evaluation.metrics", {"extract test features", "evaluate"}),
        ("dynammo.network.network", ADAPTED | {"prepare backbone"}),
        ("dynammo.merging.average", {"merge adapters"}),
        ("dynammo.merging.blend", {"merge adapters"}),
        ("dynammo.merging.ties", set()),
        ("dynammo.merging.measures", set()),
        ("dynammo.merging.heads", set()),  # the rule that uses it is not chosen
        ("dynammo.heads.discriminant", HEADS),
        ("dynammo.heads.statistics", HEADS | {"update statistics"}),
        ("dynammo.adapters.linear", ADAPTED),
        ("dynammo.adapters.conv", set()),
        ("dynammo.adapters", set()),  # the table of names, one line longer
        ("dynammo.config", set()),
        ("dynammo.data.sources.folder", set()),
        ("dynammo.reporting.report", set()),
        ("tasks.heads", HEADS),
        ("tasks.publishing", set()),
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
        ({"seed": 2}, {"prepare backbone", "train adapter", *HEADS}),
        ({"train.epochs": 3}, {"train adapter"}),
        ({"memory.size": 10}, {"select exemplars"}),
        ({"head.epochs": 3}, HEADS),
        ({"merge.rule": "ties"}, {"merge adapters"}),
        ({"merge.options": {"keep": 0.5}}, {"merge adapters"}),
        ({"image.size": 64}, ADAPTED),
        ({"adapter.name": "conv"}, ADAPTED),
        ({"adapter.options": {"bias": False}}, ADAPTED),
        ({"preset": "paper"}, ADAPTED),
        ({"backbone.levels": None}, ADAPTED),
        # What a network was built from is a checkpoint among the arguments.
        ({"backbone.pretrained": False}, {"prepare backbone"}),
        ({"backbone.renormalise": 0.1}, set()),
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


def test_every_argument_but_the_context_counts() -> None:
    given = settings(load_config(None), *SECTIONS[train_adapter])
    arguments = {"settings": given, "number": 1, "previous": None, "context": {"label": "1/3"}}
    first = key(train_adapter, **arguments)
    elsewhere = {"label": "1/9", "device": "cuda", "images": "/elsewhere"}
    assert key(train_adapter, **{**arguments, "context": elsewhere}) == first
    others = [{"number": 2}, {"previous": REF}, {"previous": {**REF, "sha256": "1" * 64}}]
    found = [key(train_adapter, **{**arguments, **other}) for other in others]
    assert len({first, *found}) == 4


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
    assert differing(mine, keys({"adapter.name": "mine"})) == ADAPTED


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        code_version("no_such_module")


runs: list[float] = []


@step("make")
def make(settings: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    runs.append(settings["value"])
    saved = {"x": torch.tensor(settings["value"])}
    made = CHECKPOINTS.save("made", saved, provenance(settings))
    return {"made": [made], "note": CHECKPOINTS.save_json("note", 1)}


def edit(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.usefixtures("prefect_server")
def test_a_result_is_used_again_only_while_its_files_are_intact() -> None:
    def made(value: float = 2.5) -> dict[str, Any]:
        return make({"value": value}, {"label": "x"})

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
    made(3.5)
    assert set(runs) == {2.5, 3.5}

"""Settings: params files, overrides, grids and plans."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dynammo.config import load_config, parse_overrides
from dynammo.evaluation.grid import load_grid
from dynammo.evaluation.plan import read_plan
from tests.hostile.corpus.judging import Case

DEEP = 200_000
BOMB = "\n".join(
    ["data:", "  options:", "    a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
)
# Documents that no YAML file of this project may be.
DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "an alias bomb": (BOMB.encode(), "more than 100,000 values"),
    "an alias to itself": (b"data: &d\n  options: *d\n", "contains itself"),
    "a list in itself": (b"&a [*a]", "contains itself"),
    "nested 50,000 deep": (b"data: " + b"[" * 50_000 + b"]" * 50_000, "nested too deeply"),
    "maps nested 50,000 deep": (b"{a: " * 50_000 + b"}" * 50_000, "nested too deeply"),
    "a key given twice": (b"seed: 1\nseed: 2\n", "given twice"),
    "Latin-1": ("data:\n  path: caf\u00e9\n".encode("latin-1"), "not UTF-8"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "not UTF-8"),
    "UTF-32": ("seed: 1\n".encode("utf-32"), "not UTF-8"),
    "a NUL": (b"seed: \x00", "not valid YAML"),
    "a control character": (b"seed: \x07", "not valid YAML"),
    "Python objects": (b"seed: !!python/object/apply:os.system [id]", "not valid YAML"),
    "an unknown tag": (b"seed: !secret 1", "not valid YAML"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "not valid YAML"),
    "an undefined alias": (b"seed: *nobody", "not valid YAML"),
    "a tab as indentation": (b"data:\n\tpath: x\n", "not valid YAML"),
    "an open bracket": (b"data: [1, 2", "not valid YAML"),
    "a date that is none": (b"seed: 2024-99-99", "not valid YAML"),
    "an integer of 5,000 digits": (b"seed: " + b"9" * 5000, "not valid YAML"),
    "a list as a key": (b"? [a, b]\n: 1\n", "not valid YAML"),
    "a map as a key": (b"? {a: b}\n: 1\n", "not valid YAML"),
    "merging what is no map": (b"data: {<<: 3}", "not valid YAML"),
    "a list": (b"- a\n- b\n", "must hold|got list"),
    "a number": (b"3", "must hold|got int"),
    "a text": (b"hello", "must hold|got str"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not UTF-8"),
    "binary tag with rubbish": (b"seed: !!binary 'a'", "not valid YAML"),
    "a set": (b"!!set {a, b}", "must hold|got set|unknown|known:|missing"),
}
NUMBERS = {
    "nothing": "null",
    "a text": "many",
    "a list": "[1]",
    "a map": "{a: 1}",
    "not a number": ".nan",
    "infinity": ".inf",
    "minus infinity": "-.inf",
    "negative": "-1",
    "huge": "1.0e+300",
    "a truth value": "true",
    "a date": "2024-01-01",
}
# key: which of NUMBERS it may be.
FIELDS = {
    "train.epochs": set(),
    "train.batch_size": set(),
    "train.learning_rate": set(),
    "train.momentum": set(),
    "train.weight_decay": set(),
    "image.size": set(),
    "memory.size": set(),
    "seed": set(),
    "gate.max_class_loss": set(),
    "data.test_share": set(),
    "head.drift_ridge": set(),
    "retention.max_days": {"nothing", "huge"},
    "adapter.tasks": {"nothing"},
}
VALUES: dict[str, tuple[str, str]] = {
    "a fraction of an epoch": ("train.epochs=1.5", r"train\.epochs"),
    "no epochs": ("train.epochs=0", r"train\.epochs"),
    "a batch of one": ("train.batch_size=1", r"train\.batch_size"),
    "a huge batch": ("train.batch_size=1000000000000", r"train\.batch_size"),
    "a batch beyond 64 bits": ("train.batch_size=" + "9" * 40, r"train\.batch_size"),
    "a rate of nothing": ("train.learning_rate=0", r"train\.learning_rate"),
    "a rate of 1e300": ("train.learning_rate=1.0e+300", r"train\.learning_rate"),
    "images of a pixel": ("image.size=1", r"image\.size"),
    "images of a million pixels a side": ("image.size=1000000", r"image\.size"),
    "a negative seed": ("seed=-1", "seed"),
    "a seed beyond 32 bits": ("seed=4294967296", "seed"),
    "falling milestones": ("train.milestones=[0.9, 0.1]", "milestones"),
    "a milestone that is no number": ("train.milestones=[.nan]", "milestones"),
    "a milestone at 1": ("train.milestones=[1.0]", "milestones"),
    "no methods": ("methods=[]", "methods"),
    "a method twice": ("methods=[merged, merged]", "methods"),
    "an unknown method": ("methods=[magic]", "unknown method 'magic'"),
    "a method that is a map": ("methods=[{a: b}]", "methods"),
    "methods as text": ("methods=merged", "methods"),
    "options of an unknown method": ("method_options={magic: {a: 1}}", "unknown method 'magic'"),
    "an unknown adapter": ("adapter.name=magic", "unknown adapter 'magic'"),
    "an unknown rule": ("merge.rule=magic", "unknown merge rule 'magic'"),
    "an unknown head": ("head.rule=magic", "unknown head rule 'magic'"),
    "an unknown source": ("data.source=magic", "unknown data source 'magic'"),
    "a path as a name": ("data.name=../../etc", r"data\.name"),
    "a name with a line break": ('data.name="a\\nb"', r"data\.name"),
    "a name ending with a line break": ('data.name="ab\\n"', r"data\.name"),
    "an empty name": ("data.name=''", r"data\.name"),
    "a name with a blank": ("data.name=my data", r"data\.name"),
    "a name in Cyrillic": ("data.name=\u0434\u0430\u043d\u043d\u044b\u0435", r"data\.name"),
    "an empty path": ("data.path=''", r"data\.path"),
    "a path with a NUL": ('data.path="a\\0b"', r"data\.path"),
    "results in a path with a NUL": ('output="a\\0b"', "output"),
    "weights in a path with a NUL": ('backbone.weights="a\\0b"', r"backbone\.weights"),
    "an experiment with a NUL": ('tracking.experiment="a\\0b"', r"tracking\.experiment"),
    "a path that is a list": ("data.path=[a]", r"data\.path"),
    "an unknown key": ("colour=red", "colour: unknown key; known: "),
    "an unknown key in a section": ("train.epoch=1", r"train\.epoch: unknown key; known: "),
    "an unknown section": ("trian.epochs=1", "trian: unknown key; known: "),
    "a section that is a number": ("train=3", "train"),
    "a section that is a list": ("train=[1]", "train"),
    "a section that is nothing": ("train=null", "train"),
    "a key below a value": ("seed.x=1", "seed"),
    "a key that begins with a dot": (".seed=1", "unknown key"),
    "a key that ends with a dot": ("train.=1", "unknown key"),
    "a private key": ("__class__=1", "__class__"),
    "an unknown device": ("device=tpu", "device"),
    "a device by number": ("device=0", "device"),
    "an unknown preset": ("preset=fast", "preset"),
    "a preset that is a list": ("preset=[best]", "preset"),
    "two memories": ("memory={size: 4, per_class: 4}", "exactly one"),
    "no memory": ("memory={size: null, per_class: null}", "exactly one"),
    "an empty task": ("scenario.tasks=[[a], []]", "task 2 is empty"),
    "a class in two tasks": ("scenario.tasks=[[a], [a]]", "appears in task 1 and in task 2"),
    "no tasks": ("scenario.tasks=[]", r"scenario\.tasks"),
    "tasks of numbers": ("scenario.tasks=[[1]]", r"scenario\.tasks"),
    "no class a task": ("scenario.classes_per_task=0", "classes_per_task"),
    "an order that is a text": ("scenario.class_order=random", "class_order"),
    "positions of numbers": ("backbone.positions=[1]", r"backbone\.positions"),
    "no positions": ("backbone.positions=[]", r"backbone\.positions"),
    "weights that nobody uses": (
        "backbone={pretrained: false, weights: x.pth}",
        "pretrained is false",
    ),
    "options that are a list": ("adapter.options=[1]", r"adapter\.options"),
    "options by number": ("adapter.options={1: 2}", r"adapter\.options"),
    "images without a place": ("retention.train=statistics", r"memory\.per_class=0"),
    "a limit of a negative size": ("retention.max_mb=-1", r"retention\.max_mb"),
    "repeats as one likes": ("data.repeats=maybe", r"data\.repeats"),
    "precision of eight bits": ("train.precision=int8", r"train\.precision"),
}
ASSIGNMENTS = {
    "no equals sign": "train.epochs",
    "no key": "=3",
    "a blank key": "  =3",
    "a key twice in a map": "data.options={b: 1, b: 2}",
    "itself": "data.options=&a [*a]",
    "an open bracket": "methods=[a",
    "50,000 brackets": "data.options=" + "[" * 50_000,
    "an unknown tag": "seed=!secret 1",
    "Python objects": "seed=!!python/name:os.system",
    "a control character": "seed=\x01",
    "an integer of 5,000 digits": "seed=" + "9" * 5000,
}
GRID = "data: {a: {data.path: x}}\nmethods: [merged]\n"
GRIDS: dict[str, tuple[str, str]] = {
    "no data": ("methods: [merged]\n", "data"),
    "no methods": ("data: {a: {}}\n", "methods"),
    "an unknown method": ("data: {a: {}}\nmethods: [magic]\n", "unknown method 'magic'"),
    "a method twice": ("data: {a: {}}\nmethods: [merged, merged]\n", "twice"),
    "a data set named as a path": ("data: {../a: {}}\nmethods: [merged]\n", "data"),
    "a data set named as the report": ("data: {report: {}}\nmethods: [merged]\n", "report"),
    "a data set that is a number": ("data: {a: 3}\nmethods: [merged]\n", "data"),
    "a data set called by a number": ("data: {1: {}}\nmethods: [merged]\n", "data"),
    "no seeds": (GRID + "seeds: []\n", "seeds"),
    "a seed twice": (GRID + "seeds: [1, 1]\n", "seeds names one twice"),
    "a negative seed": (GRID + "seeds: [-1]\n", "seeds"),
    "no workers": (GRID + "workers: 0\n", "workers"),
    "workers without a runner": (GRID + "workers: 2\n", "workers"),
    "an unknown runner": (GRID + "runner: slurm\n", "runner"),
    "a cluster that nobody uses": (GRID + "address: tcp://x\n", "address"),
    "an unknown reference": (GRID + "reference: magic\n", "reference"),
    "an unknown key": (GRID + "colour: red\n", "colour"),
    "a speed of nothing": (GRID + "gmacs_per_second: 0\n", "gmacs_per_second"),
    "a name that is a path": (GRID + "name: ../a\n", "name"),
    "overrides as a list": (GRID + "overrides: [1]\n", "overrides"),
}
PLAN = {
    "device": "d",
    "intended_use": "u",
    "authorised": ["a", "b"],
    "named": [],
    "modifications": ["retrain_same_classes"],
    "rollback": {"when": "w"},
}
PLANS: dict[str, tuple[dict[str, Any], str]] = {
    "no device": ({"device": None}, "device"),
    "an empty device": ({"device": ""}, "device"),
    "no classes": ({"authorised": []}, "authorised"),
    "a class twice": ({"authorised": ["a", "a"]}, "given twice"),
    "classes by number": ({"authorised": [1]}, "authorised"),
    "no modifications": ({"modifications": []}, "modifications"),
    "an unknown modification": ({"modifications": ["anything"]}, "modifications"),
    "a modification twice": ({"modifications": ["retrain_same_classes"] * 2}, "given twice"),
    "classes that nobody names": (
        {"modifications": ["retrain_same_classes", "add_named_class"]},
        "no class is named",
    ),
    "a locked test that is no hash": ({"locked_test": "abc"}, "locked_test"),
    "confidence of 2": ({"limits": {"confidence": 2}}, "confidence"),
    "confidence that is no number": ({"limits": {"confidence": float("nan")}}, "confidence"),
    "a limit for an unknown class": (
        {"limits": {"sensitivity": {"classes": {"z": 0.5}}}},
        "neither authorised nor named",
    ),
    "a limit of 2": ({"limits": {"sensitivity": {"classes": {"a": 2}}}}, r"\[0, 1\]"),
    "a limit that is no number": (
        {"limits": {"sensitivity": {"classes": {"a": float("nan")}}}},
        r"\[0, 1\]|finite",
    ),
    "a rollback to nowhere": ({"rollback": {"to": "nowhere", "when": "w"}}, "rollback"),
    "a rollback without words": ({"rollback": {"when": ""}}, "rollback"),
    "an unknown key": ({"colour": "red"}, "colour: unknown key; known: "),
    "signatures as text": ({"signatures": "me"}, "signatures"),
}


def cases() -> Iterator[Case]:
    """All about settings."""
    readers = {"params file": load_config, "grid": load_grid, "plan": read_plan}
    for kind, read in readers.items():
        for name, (content, says) in DOCUMENTS.items():
            if (kind, name) != ("plan", "a set"):
                yield Case(f"{kind}s", name, partial(_file, read, content), says)
        yield Case(f"{kind}s", "a folder", lambda folder, read=read: read(folder), "directory")
        yield Case(f"{kind}s", "no file", lambda folder, read=read: read(folder / "no"), "No such")
    for key, allowed in FIELDS.items():
        for name in (name for name in NUMBERS if name not in allowed):
            yield Case("values", f"{key} is {name}", partial(_set, f"{key}={NUMBERS[name]}"), key)
    for name, (assignment, says) in VALUES.items():
        yield Case("values", name, partial(_set, assignment), says)
    for name, assignment in ASSIGNMENTS.items():
        says = "is not key=value|is not a YAML value"
        yield Case("values", f"--set with {name}", partial(_set, assignment), says)
    for name, (text, says) in GRIDS.items():
        yield Case("grids", name, partial(_file, load_grid, text.encode()), says)
    for name, (change, says) in PLANS.items():
        yield Case("plans", name, partial(_plan, change), says)


def _file(read: Any, content: bytes, folder: Path) -> None:
    (folder / "given.yaml").write_bytes(content)
    read(folder / "given.yaml")


def _set(assignment: str, _: Path) -> None:
    load_config(None, parse_overrides([assignment]))


def _plan(change: dict[str, Any], folder: Path) -> None:
    import yaml

    document = {key: value for key, value in (PLAN | change).items() if value is not None}
    _file(read_plan, yaml.safe_dump(document).encode(), folder)

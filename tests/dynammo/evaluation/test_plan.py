"""A plan as a file: what it may say, and all that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dynammo.errors import ConfigError
from dynammo.evaluation.plan import Plan, read_plan

PLAN: dict[str, Any] = {
    "device": "Lesions",
    "intended_use": "second reader",
    "authorised": ["nevus", "melanoma"],
    "named": [{"name": "keratosis", "images": 20, "test_images": 10, "patients": 15}],
    "modifications": ["add_named_class"],
    "rollback": {"to": "authorised", "when": "complaints"},
}


def problems(folder: Path, text: str) -> str:
    file = folder / "plan.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_plan(file)
    return str(caught.value)


def test_a_plan_is_read_with_defaults(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    plan = read_plan(tmp_path / "plan.yaml")
    assert plan == Plan.model_validate(PLAN)
    assert plan.classes == ["nevus", "melanoma", "keratosis"]
    assert plan.limits.confidence == 0.95
    assert plan.limits.sensitivity.of("melanoma") == 0
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "device: x\nauthorised: [a]\nnamed: [{name: b, imges: 3}]\nmodifications: [forgt]\n"
        "locked_test: abc\nlimits: {sensitivity: {clases: {}}, ece: nan}\n",
    )
    for line in (
        "intended_use: is missing",
        "named.0.imges: unknown key; known: name, images, test_images, patients",
        "modifications.0: Input should be 'add_named_class'",
        "locked_test: String should match pattern",
        "limits.sensitivity.clases: unknown key; known: every_class, classes",
        "limits.ece: Input should be a finite number",
        "rollback: is missing",
    ):
        assert line in found


def test_contradictions_are_said_at_once(tmp_path: Path) -> None:
    own = {
        **PLAN,
        "authorised": ["nevus", "keratosis"],
        "modifications": ["forget", "forget"],
        "limits": {
            "sensitivity": {"classes": {"melanoma": 0.5}},
            "negative_flips": {"grave": {"nevus": 1.5}},
        },
    }
    found = problems(tmp_path, yaml.safe_dump(own))
    assert "class 'keratosis' is given twice in authorised and named" in found
    assert "modifications: forget is given twice" in found
    assert "classes are named, but modifications lack add_named_class" in found
    assert "limits.sensitivity.classes: 'melanoma' is neither authorised nor named" in found
    assert "limits.negative_flips.grave.nevus must lie in [0, 1], got 1.5" in found
    assert "no class is named" in problems(tmp_path, yaml.safe_dump({**PLAN, "named": []}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("device: a\ndevice: b\n", "the key 'device' is given twice"), ("- a\n", "got list")],
)
def test_what_is_no_plan(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)

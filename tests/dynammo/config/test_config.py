from pathlib import Path

import pytest
import yaml

from dynammo.adapters import ADAPTERS
from dynammo.config import Config, load_config, parse_overrides
from dynammo.errors import ConfigError
from dynammo.merging import MERGE_RULES


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("seed: 7\ntrain:\n  epochs: 2\n  momentum: 0.5\n")
    config = load_config(file, {"train.epochs": 3, "data": {"name": "skin8"}})
    assert (config.seed, config.train.epochs, config.train.momentum) == (7, 3, 0.5)
    assert config.data.name == "skin8"


def test_all_errors_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            None,
            {
                "train.epocs": 3,
                "train.batch_size": 0,
                "adapter.name": "vit",
                "merge.rule": "max",
                "memory": {"size": 10, "per_class": 2},
                "scenario.tasks": [["a"], ["a"]],
                "scenario.classes_per_task": 2,
            },
        )
    text = str(caught.value)
    for expected in (
        "train.epocs: unknown key; known: epochs, learning_rate",
        "train.batch_size: Input should be greater than or equal to 2 (got 0)",
        f"unknown adapter 'vit'; known: {', '.join(sorted(ADAPTERS))}",
        f"unknown merge rule 'max'; known: {', '.join(sorted(MERGE_RULES))}",
        "exactly one of memory.size and memory.per_class",
        "class 'a' appears in task 1 and in task 2",
        "either scenario.tasks or scenario.classes_per_task, not both",
    ):
        assert expected in text
    assert len(caught.value.problems) == 7


def test_choosing_one_of_two_exclusive_keys_drops_the_files_choice(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("memory:\n  size: 40\nscenario:\n  classes_per_task: 2\n")
    config = load_config(file, {"memory.per_class": 5, "scenario.tasks": [["a", "b"], ["c"]]})
    assert (config.memory.size, config.memory.per_class) == (None, 5)
    assert config.scenario.classes_per_task is None


def test_overrides_change_the_defaults_of_a_section_that_no_file_has(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("seed: 3\n")
    for params in (None, file):
        config = load_config(params, {"scenario.class_order": "sorted"})
        assert config.scenario.class_order == "sorted"
        assert config.scenario.classes_per_task == Config().scenario.classes_per_task
        config = load_config(params, {"memory.per_class": 5, "scenario.tasks": [["a"], ["b"]]})
        assert (config.memory.size, config.memory.per_class) == (None, 5)
        assert config.scenario.classes_per_task is None


def test_a_section_of_the_file_names_its_own_choice(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("scenario:\n  class_order: sorted\n")
    with pytest.raises(ConfigError, match=r"give scenario\.tasks or scenario\.classes_per_task"):
        load_config(file)


def test_options_are_one_value(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("adapter: {options: {bias: false}}\nmerge: {rule: ties, options: {scale: 2}}\n")
    given = {"adapter": {"options": {"alpha": 1.0}}, "merge": {"options": {"keep": 0.5}}}
    config = load_config(file, given)
    assert (config.adapter.options, config.merge.options) == ({"alpha": 1.0}, {"keep": 0.5})
    added = load_config(file, {"merge.options.keep": 0.5}).merge
    assert (added.rule, added.options) == ("ties", {"scale": 2, "keep": 0.5})


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b\n", "must hold sections"), ("a: [", "not valid YAML")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_weights_without_pretrained_contradict() -> None:
    with pytest.raises(ConfigError, match="pretrained is false"):
        load_config(None, {"backbone.weights": "w.safetensors", "backbone.pretrained": False})


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("[merged, mine]", r"methods\.1: unknown method 'mine'; known: .*frozen, .*merged"),
        ("[frozen, frozen]", "methods names one twice: frozen, frozen"),
        ("[]", r"methods: List should have at least 1 item"),
    ],
)
def test_methods_are_known_and_differ(methods: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, parse_overrides([f"methods={methods}"]))
    assert load_config(None, {"methods": ["frozen"]}).methods == ["frozen"]


def test_presets_fill_in_what_is_not_given() -> None:
    best, paper = load_config(None), load_config(None, {"preset": "paper"})
    assert (best.adapter.name, best.head.rule) == ("linear", "discriminant")
    assert (best.backbone.levels, paper.backbone.levels) == (3, None)
    assert load_config(None, {"backbone.levels": None}).backbone.levels is None
    assert (paper.adapter.name, paper.head.rule, paper.head.init) == ("conv", "fine_tune", "new")
    mixed = load_config(None, {"preset": "paper", "head.rule": "discriminant"})
    assert (mixed.adapter.name, mixed.head.rule) == ("conv", "discriminant")


def test_no_images_keeps_none_or_refuses() -> None:
    config = load_config(None, {"preset": "no_images"})
    assert (config.memory.size, config.memory.per_class, config.adapter.tasks) == (None, 0, 1)
    assert config.backbone.levels == 3
    with pytest.raises(ConfigError, match=r"memory\.size is 40 and preset no_images keeps none"):
        load_config(None, {"preset": "no_images", "memory.size": 40})


def test_overrides_stay_as_they_are_given() -> None:
    overrides = {"merge.options": {"scale": 0.5}, "merge.options.keep": 0.5}
    load_config(None, overrides)
    assert overrides == {"merge.options": {"scale": 0.5}, "merge.options.keep": 0.5}


def test_a_dumped_configuration_loads_as_itself(tmp_path: Path) -> None:
    config = Config(seed=3)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(file) == config


def test_the_committed_params_are_valid() -> None:
    assert load_config(Path(__file__).parents[3] / "params.yaml").data.name == "digits"


def test_assignments_carry_yaml_values() -> None:
    parsed = parse_overrides(["train.epochs=3", "scenario.tasks=[[a, b], [c]]", "data.name=x"])
    assert parsed == {"train.epochs": 3, "scenario.tasks": [["a", "b"], ["c"]], "data.name": "x"}


def test_bad_assignments_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["train.epochs", "seed=[1"])
    assert len(caught.value.problems) == 2

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo.config import MemoryConfig, ScenarioConfig
from dynammo.data.samples import ImageSet, Sample
from dynammo.data.scenario import Scenario, Task, build_scenario
from dynammo.errors import DataError


def image_set(classes: str) -> ImageSet:
    """One image of each class and split."""
    rows = [(split, name) for split in ("train", "test") for name in classes]
    samples = (Sample(f"{split}/{name}.png", split, name, None, "") for split, name in rows)
    return ImageSet(Path("/data"), tuple(samples))


def build(classes: str, seed: int = 1, memory: int = 1000, **config: Any) -> Scenario:
    scenario = ScenarioConfig(**config)
    return build_scenario(image_set(classes), scenario, MemoryConfig(size=memory), seed)


def classes_of(scenario: Scenario) -> list[str]:
    return ["".join(task.classes) for task in scenario]


@given(
    st.sets(st.sampled_from("abcdefghijklmnop"), min_size=1),
    st.integers(1, 17),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["seed", "sorted"]),
)
def test_the_tasks_partition_the_classes(names: set[str], k: int, seed: int, order: str) -> None:
    scenario = build("".join(names), seed, classes_per_task=k, class_order=order)
    arrived = [name for task in scenario for name in task.classes]
    assert sorted(arrived) == sorted(names)
    assert [task.number for task in scenario] == list(range(1, len(scenario) + 1))
    assert all(len(task.classes) == k for task in scenario[:-1])
    assert 1 <= len(scenario[-1].classes) <= k
    assert scenario.classes_until(len(scenario)) == tuple(arrived)
    assert scenario == build("".join(names), seed, classes_per_task=k, class_order=order)


def test_the_seed_sets_the_order() -> None:
    # numpy 2.4.6: default_rng(1).permutation(8) is 5 0 1 4 2 6 3 7; of 2, it is 6 5 7 2 3 4 0 1
    assert classes_of(build("hgfedcba", 1, classes_per_task=2)) == ["fa", "be", "cg", "dh"]
    assert classes_of(build("abcdefgh", 2, classes_per_task=2)) == ["gf", "hc", "de", "ab"]


def test_sorted_and_explicit_orders_do_not_depend_on_the_seed() -> None:
    for seed in (1, 2):
        sort = build("dbca", seed, classes_per_task=2, class_order="sorted")
        assert classes_of(sort) == ["ab", "cd"]
        listed = build("abcd", seed, classes_per_task=2, class_order=list("dacb"))
        assert classes_of(listed) == ["da", "cb"]


def test_explicit_tasks_are_taken_as_listed_and_may_leave_classes_out() -> None:
    scenario = build("abcdef", memory=4, tasks=[["f"], ["b", "a"], ["d"]])
    assert classes_of(scenario) == ["f", "ba", "d"]


def test_a_smaller_last_task_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build("abcd", classes_per_task=2)
        assert caplog.messages == []
        assert [len(task.classes) for task in build("abcde", classes_per_task=2)] == [2, 2, 1]
    assert caplog.messages == ["the last task, number 3, has 1 of 2 classes"]


def test_a_scenario_is_a_sequence() -> None:
    scenario = build("abcdef", classes_per_task=2, class_order="sorted")
    assert len(scenario) == 3
    assert scenario[0] == Task(1, ("a", "b")) and scenario[-1] == Task(3, ("e", "f"))
    assert scenario[1] in scenario
    rest = scenario[1:]
    assert isinstance(rest, Scenario)
    assert [task.number for task in rest] == [2, 3]
    assert rest.classes_until(2) == ("c", "d")
    with pytest.raises(IndexError):
        scenario[3]


def test_classes_until_and_samples() -> None:
    scenario = build("abcd", classes_per_task=2, class_order=list("dbca"))
    assert [scenario.classes_until(number) for number in (0, 1, 2)] == [
        (),
        ("d", "b"),
        tuple("dbca"),
    ]
    assert [sample.file for sample in scenario.train(scenario[0])] == ["train/d.png", "train/b.png"]
    assert [sample.file for sample in scenario.test(scenario[1])] == ["test/c.png", "test/a.png"]


def test_all_problems_of_an_order_are_reported_at_once() -> None:
    with pytest.raises(DataError) as caught:
        build("abcd", memory=2, classes_per_task=2, class_order=list("abax"))
    assert caught.value.problems == [
        "scenario.class_order: unknown class 'x'; known: a, b, c, d",
        "scenario.class_order: class 'a' is named 2 times",
        "scenario.class_order: missing classes c, d; expected all classes",
        "memory.size 2 cannot hold one exemplar of each of 3 classes",
    ]


def test_unknown_classes_in_tasks_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        build("ab", tasks=[["a", "y"], ["x"]])
    assert caught.value.problems == [
        f"scenario.tasks: unknown class '{name}'; known: a, b" for name in "xy"
    ]


def test_no_classes() -> None:
    with pytest.raises(DataError, match="/data: no images"):
        build("", classes_per_task=2)


def test_the_memory_must_hold_one_exemplar_of_each_class() -> None:
    message = "^memory.size 4 cannot hold one exemplar of each of 8 classes$"
    with pytest.raises(DataError, match=message):
        build("abcdefgh", memory=4, classes_per_task=2)
    build("abcdefgh", memory=8, classes_per_task=2)
    scenario = ScenarioConfig(classes_per_task=2)
    build_scenario(image_set("abcdefgh"), scenario, MemoryConfig(per_class=1), 1)


def test_a_star_stands_for_any_text() -> None:
    classes = ["colon.b", "colon.a", "lung.a", "lung", "a*b", "axb"]
    rows = [(split, name) for split in ("train", "test") for name in classes]
    parts = ImageSet(
        Path("/data"),
        tuple(Sample(f"{split}/{name}.png", split, name, None, "") for split, name in rows),
    )

    def tasks(*names: list[str]) -> list[tuple[str, ...]]:
        config = ScenarioConfig(tasks=list(names))
        return [task.classes for task in build_scenario(parts, config, MemoryConfig(size=9), 1)]

    assert tasks(["lung.*"], ["colon.*"]) == [("lung.a",), ("colon.a", "colon.b")]
    assert tasks(["lung*", "a*b"]) == [("lung", "lung.a", "a*b")]  # a class's own name wins
    with pytest.raises(DataError, match=r"unknown class 'skin\.\*'"):
        tasks(["skin.*"])
    with pytest.raises(DataError, match=r"class 'colon\.a' is named 2 times"):
        tasks(["*.a"], ["colon.*"])

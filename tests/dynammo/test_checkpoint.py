import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynammo.checkpoint import CheckpointStore, Ref, to_json, write_atomically
from dynammo.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(7)}
META = {"parents": ["ab" * 32], "versions": {"dynammo": "0.1.0"}}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "store")


@pytest.fixture
def ref(store: CheckpointStore) -> Ref:
    return store.save("adapter", WEIGHTS, META)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(store: CheckpointStore, ref: Ref) -> None:
    loaded = store.load(ref)
    assert loaded.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
    assert store.meta(ref) == {"kind": "adapter", "sha256": ref["sha256"], **META}


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(
            lambda name: name != "__metadata__"
        ),
        st.tuples(
            st.sampled_from(
                [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]
            ),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=4,
    )
)
def test_any_tensors_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    layout: dict[str, tuple[torch.dtype, list[int]]],
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in layout.items()}
    loaded = store.load(store.save("any", tensors, {}))
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape)
        assert torch.equal(loaded[name], value)


def test_views_of_one_tensor_are_saved(store: CheckpointStore) -> None:
    whole = torch.arange(6.0).view(2, 3)
    views = {"whole": whole, "row": whole[1], "turned": whole.T}
    loaded = store.load(store.save("views", views, {}))
    for name, value in views.items():
        assert torch.equal(loaded[name], value)


def test_files_are_named_by_their_content(store: CheckpointStore, ref: Ref) -> None:
    content = store.path(ref).read_bytes()
    assert ref["sha256"] == hashlib.sha256(content).hexdigest()
    assert ref["path"] == f"adapter-{ref['sha256'][:16]}.safetensors"
    assert files(store.folder) == [ref["path"].replace(".safetensors", ".json"), ref["path"]]
    # The same content is the same file, other content another one.
    assert store.save("adapter", WEIGHTS, META) == ref
    assert len(files(store.folder)) == 2
    other = store.save("adapter", {**WEIGHTS, "a.count": torch.tensor(8)}, META)
    assert other["path"] != ref["path"]
    assert store.intact(ref) and store.intact(other)


def test_a_store_can_be_moved(store: CheckpointStore, ref: Ref, tmp_path: Path) -> None:
    os.rename(store.folder, tmp_path / "moved")
    assert CheckpointStore(tmp_path / "moved").load(ref).keys() == WEIGHTS.keys()


def test_a_missing_checkpoint_is_named(store: CheckpointStore, ref: Ref) -> None:
    store.path(ref).unlink()
    assert not store.intact(ref)
    with pytest.raises(CheckpointError, match=rf"cannot read .*{ref['path']}: No such file"):
        store.load(ref)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "longer"])
def test_a_damaged_checkpoint_is_named(store: CheckpointStore, ref: Ref, damage: str) -> None:
    path = store.path(ref)
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(
        {"truncated": content[:-5], "one bit": flipped, "empty": b"", "longer": content + b"\0"}[
            damage
        ]
    )
    assert not store.intact(ref)
    with pytest.raises(CheckpointError, match=rf"{ref['path']} has changed: .*{ref['sha256']}"):
        store.load(ref)


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"])
def test_metadata_that_cannot_be_read_is_named(
    store: CheckpointStore, ref: Ref, content: bytes | None
) -> None:
    path = store.path(ref).with_suffix(".json")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"cannot read .*{path.name}"):
        store.meta(ref)
    assert not store.intact(ref)


def test_changed_metadata_is_noticed(store: CheckpointStore, ref: Ref) -> None:
    path = store.path(ref).with_suffix(".json")
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not store.intact(ref), place
        with pytest.raises(CheckpointError, match=rf"cannot read .*{path.name}"):
            store.meta(ref)
    path.write_bytes(content)
    assert store.intact(ref)


def test_metadata_of_other_weights_is_noticed(store: CheckpointStore, ref: Ref) -> None:
    other = store.save("adapter", {"x": torch.ones(1)}, META)
    content = store.path(other).with_suffix(".json").read_bytes()
    store.path(ref).with_suffix(".json").write_bytes(content)
    assert not store.intact(ref)


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_not_run(store: CheckpointStore, tmp_path: Path) -> None:
    """Even one whose hash is the reference's."""
    content = pickle.dumps({"a.weight": Bomb(tmp_path / "ran")})
    path = "adapter-0123456789abcdef.safetensors"
    store.folder.mkdir()
    (store.folder / path).write_bytes(content)
    ref: Ref = {"path": path, "sha256": hashlib.sha256(content).hexdigest()}
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        store.load(ref)
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)  # the bomb is live
    assert (tmp_path / "ran").exists()


def test_json_round_trip(store: CheckpointStore) -> None:
    document = {"classes": ["mélanome", "naevus"], "loss": 0.1, "none": None}
    ref = store.save_json("results", document)
    assert ref["path"] == f"results-{ref['sha256'][:16]}.json"
    assert store.load_json(ref) == document
    assert files(store.folder) == [ref["path"]]
    store.path(ref).write_text("{}")
    assert not store.intact(ref)
    with pytest.raises(CheckpointError, match=f"{ref['path']} has changed"):
        store.load_json(ref)


def test_weights_are_no_json(store: CheckpointStore, ref: Ref) -> None:
    with pytest.raises(CheckpointError, match=rf"{ref['path']} is damaged"):
        store.load_json(ref)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan(store: CheckpointStore, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": [value]})
    # Nor are weights left behind whose metadata could not be written.
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save("adapter", WEIGHTS, {"loss": value})
    assert not store.folder.exists() or files(store.folder) == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False).filter(lambda x: abs(x) != float("inf")),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.dictionaries(st.text(), json_values, max_size=5), st.randoms())
def test_json_is_the_same_bytes_for_the_same_content(document: dict[str, Any], random: Any) -> None:
    items = list(document.items())
    random.shuffle(items)
    assert to_json(dict(items)) == to_json(document)
    assert json.loads(to_json(document)) == document
    assert to_json(document).endswith(b"\n")


def test_json_is_pinned_and_readable() -> None:
    assert to_json({"b": [1], "a": 0.5}) == b'{\n  "a": 0.5,\n  "b": [\n    1\n  ]\n}\n'


def test_a_write_makes_its_folder_and_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file"
    write_atomically(path, b"a long first content")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert files(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644  # a temporary file's own mode is 0600


def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"first")
    seen: list[list[str]] = []

    def killed(source: str, target: Path) -> None:
        seen.append(files(tmp_path))
        assert Path(source).read_bytes() == b"second"  # whole, before it gets its name
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"second")
    (during,) = seen
    assert len(during) == 2  # the old file and the temporary one, in the same folder
    assert path.read_bytes() == b"first"
    assert files(tmp_path) == ["file"]


def test_a_checkpoint_that_was_not_finished_is_not_there(
    store: CheckpointStore, ref: Ref, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: dict[str, Tensor] = {"other": torch.ones(3)}
    expected = store.save("adapter", weights, META)
    for path in (store.path(expected), store.path(expected).with_suffix(".json")):
        path.unlink()
    replace = os.replace

    def killed(source: str, target: Path) -> None:
        if target.suffix == ".safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save("adapter", weights, META)
    assert not store.intact(expected)
    assert store.intact(ref)

"""A model as its difference from the version before: what comes out, and what is refused."""

from __future__ import annotations

import hashlib
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save

from dynammo.checkpoint import sealed
from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.deploy import delta as deltas
from dynammo.deploy.delta import FILES, Delta, apply_delta, is_new, make_delta, read_delta
from dynammo.deploy.export import add_graph
from dynammo.deploy.predictor import save_model
from dynammo.errors import CheckpointError
from dynammo.heads.linear import new_head
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network
from tests.models import graph_folder, record


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of a learner: other adapters, folded, and one class more; each with its graph."""
    root = tmp_path_factory.mktemp("versions")
    config = BackboneConfig(name="test_efficientnet", pretrained=False)
    adapter = AdapterConfig(name="linear", options={"bias": False})
    weights = pretrained_weights(config, seed=0)
    network = build_network(config, weights, 64, adapter)
    folders = root / "1", root / "2"
    for number, folder in enumerate(folders, start=1):
        chance = torch.Generator().manual_seed(number)
        trained = {
            name: 0.05 * torch.randn(value.shape, generator=chance)
            for name, value in network.adapter_state().items()
        }
        kept = save_model(
            folder,
            backbone=config,
            form=64,
            adapter=adapter,
            backbone_weights=weights,
            adapter_weights=trained,
            head=new_head(network.feature_size, number + 1, seed=number),
            classes=["a", "b", "c"][: number + 1],
            provenance={"number": number},
        )
        assert not kept
        add_graph(folder, folders[0] if number == 2 else None)
    return folders


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def sent(old: Path, new: Path, place: Path) -> Delta:
    """A delta as it arrives."""
    (place / "update.delta").write_bytes(make_delta(old, new).content)
    return read_delta(place / "update.delta")


def test_the_new_version_comes_out_byte_for_byte(
    versions: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = versions
    for before, after in ((old, new), (new, old), (old, old)):
        delta = sent(before, after, tmp_path)
        target = tmp_path / f"{before.name}{after.name}"
        target.mkdir()
        apply_delta(delta, before, target)
        assert contents(target) == contents(after)
        assert is_new(delta, after)
        assert is_new(delta, before) == (before == after)


def test_folded_adapters_are_sent_as_maps(versions: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = versions
    delta = sent(old, new, tmp_path)
    used = {
        name: [piece[-1] for piece in about["pieces"] if piece[0] == "map"]
        for name, about in delta.document["new"].items()
    }
    assert delta.document["maps"] == [16, 24, 32, 48]  # the channels at the adapters
    assert used["model.safetensors"] == [0, 1, 2, 3]
    assert used["model.onnx"] == [0, 1, 2, 3]  # nothing is sent for them twice
    # Few bytes beside those of what changed: the weights differ by units in the last place.
    before, after = (load_file(folder / "model.safetensors") for folder in versions)
    changed = b"".join(
        value.tobytes()
        for name, value in after.items()
        if name not in before or value.tobytes() != before[name].tobytes()
    )
    parts = ("model.safetensors", "maps")
    assert sum(len(delta.packed[name]) for name in parts) < len(lzma.compress(changed)) / 3


def test_onnx_is_read_as_onnx_reads_it(versions: tuple[Path, Path]) -> None:
    content = (versions[0] / "model.onnx").read_bytes()
    regions = deltas._regions("model.onnx", content)
    assert b"".join(content[r.start : r.stop] for r in regions.values()) == content
    tensors = onnx.load_from_string(content).graph.initializer
    assert len(tensors) > 10
    for tensor in tensors:
        found = regions[tensor.name]
        assert content[found.start : found.stop] == tensor.raw_data
        is_float = tensor.data_type == onnx.TensorProto.FLOAT
        assert found.shape == (tuple(tensor.dims) if is_float else None)


def test_a_map_by_hand() -> None:
    weight = np.array([[[1], [2]], [[3], [4]]], np.float32)  # (O, I, K) = (2, 2, 1)
    map_ = np.array([[1, 0], [0.5, -1]], np.float32)
    expected = [[1 + 1 + 1, 2 - 2], [3 + 3 + 2, 4 - 4]]  # K + K M
    np.testing.assert_array_equal(deltas._mapped(weight, map_)[:, :, 0], expected)
    three = np.concatenate([weight, -weight, 2 * weight], axis=2)  # K positions, one at a time
    by_hand = np.stack([expected, np.negative(expected), np.multiply(2, expected)], 2)
    np.testing.assert_array_equal(deltas._mapped(three, map_), by_hand)


words = arrays(np.uint32, 17, elements=st.integers(0, 2**32 - 1))


@given(words, words)
def test_words_come_back(old: Any, new: Any) -> None:
    planes = np.frombuffer(deltas._change(old, new), np.uint8).reshape(4, -1)
    changes = np.ascontiguousarray(planes.T).view("<u4").ravel()
    np.testing.assert_array_equal(deltas._unchanged(old, changes), new)


def test_small_changes_of_either_sign_are_small_numbers() -> None:
    old = np.array([7, 7, 7, 7, 7], np.uint32)
    new = np.array([7, 6, 8, 5, 9], np.uint32)
    assert list(deltas._change(old, new)[:5]) == [0, 1, 2, 3, 4]
    assert not any(deltas._change(old, new)[5:])


def test_files_may_come_and_go(tmp_path: Path) -> None:
    """A signature that was made, a marker that is gone, weights that were not there."""
    old, new = graph_folder(tmp_path / "old"), graph_folder(tmp_path / "new")
    (old / "version.json").write_text("1\n")
    (new / "signature.json").write_text("signed\n")
    model = onnx.load(new / "model.onnx")
    weights = np.array([[0.2, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.save(model, new / "model.onnx")
    record(new)
    (tmp_path / "target").mkdir()
    apply_delta(sent(old, new, tmp_path), old, tmp_path / "target")
    assert contents(tmp_path / "target") == contents(new)
    assert set(contents(new)) <= set(FILES)


def test_another_version_is_refused(versions: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = versions
    delta = sent(old, new, tmp_path)
    (tmp_path / "target").mkdir()
    with pytest.raises(
        CheckpointError, match=r"is not the version .*: model\.\w+ has SHA-256"
    ) as e:
        apply_delta(delta, new, tmp_path / "target")
    assert "\n" not in str(e.value)
    with pytest.raises(CheckpointError, match=r"is not the version .*: graph\.json is missing"):
        apply_delta(delta, graph_less(old, tmp_path), tmp_path / "target")
    assert not contents(tmp_path / "target")


def graph_less(folder: Path, place: Path) -> Path:
    made = place / "graph-less"
    made.mkdir()
    for name in ("model.json", "model.safetensors"):
        (made / name).write_bytes((folder / name).read_bytes())
    return made


def test_what_is_no_version_is_not_sent(versions: tuple[Path, Path], tmp_path: Path) -> None:
    old, folder = versions[0], graph_folder(tmp_path / "new")
    (folder / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"new holds 'notes\.txt', which a delta does not"):
        make_delta(old, folder)
    (folder / "notes.txt").unlink()
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"new holds no usable model"):
        make_delta(old, folder)
    (folder / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model folder: there is no model\.json in it"):
        make_delta(old, folder)
    with pytest.raises(FileNotFoundError):
        make_delta(tmp_path / "nowhere", old)


def test_a_hundred_flipped_bits_are_found(tmp_path: Path) -> None:
    old, new = graph_folder(tmp_path / "old"), graph_folder(tmp_path / "new", size=32)
    content, chance = make_delta(old, new).content, random.Random(0)
    file = tmp_path / "update.delta"
    for _ in range(100):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"update\.delta is no delta, or damaged: ") as e:
            read_delta(file)
        assert "\n" not in str(e.value)
    for cut in (0, 7, 8, 100, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match="no delta, or damaged"):
            read_delta(file)
    with pytest.raises(FileNotFoundError):
        read_delta(tmp_path / "nowhere")


# With all hashes made anew, as somebody does who means harm.
Harm = Callable[[dict[str, Any], dict[str, bytes]], object]
MODEL = "model.json"
HARMS: dict[str, tuple[Harm, str]] = {
    "another format": (lambda d, _: d.update(format=2), "format 'dynammo delta 1' expected"),
    "no files": (lambda d, _: d.update(new=[]), "expected files with their SHA-256"),
    "a file elsewhere": (
        lambda d, _: d["new"].update({"../../evil": d["new"][MODEL]}),
        r"a file '\.\./\.\./evil'",
    ),
    "an absolute file": (
        lambda d, _: d["new"].update({"/evil": d["new"][MODEL]}),
        "a file '/evil'",
    ),
    "a source elsewhere": (
        lambda d, _: d["new"][MODEL].update(pieces=[["copy", "old/../secret", 0, 1]]),
        "is damaged",
    ),
    "a length below nothing": (
        lambda d, _: d["new"][MODEL].update(pieces=[["copy", f"old/{MODEL}", 0, -1]]),
        "expected 0 to",
    ),
    "a start below nothing": (
        lambda d, _: d["new"][MODEL].update(pieces=[["copy", f"old/{MODEL}", -9, 1]]),
        "expected 0 to",
    ),
    "beyond the end": (
        lambda d, _: d["new"][MODEL].update(pieces=[["copy", f"old/{MODEL}", 0, 10**6]]),
        "expected 0 to",
    ),
    "truth for a number": (
        lambda d, _: d["new"][MODEL].update(pieces=[["copy", f"old/{MODEL}", True, 1]]),
        "True, expected 0 to",
    ),
    "an unknown piece": (
        lambda d, _: d["new"][MODEL].update(pieces=[["run", f"old/{MODEL}", 0]]),
        "a piece 'run'",
    ),
    "no map": (
        lambda d, _: d["new"][MODEL].update(pieces=[["map", f"old/{MODEL}", 0, 1, 1, 1, 0]]),
        "is damaged",
    ),
    "other bytes": (lambda d, _: d["new"][MODEL].update(sha256="0" * 64), "expected 000000"),
    "no pieces": (lambda d, _: d["new"][MODEL].pop("pieces"), "is damaged"),
    "pieces of a wrong kind": (lambda d, _: d["new"][MODEL].update(pieces=[3]), "is damaged"),
    "a file too large": (lambda d, _: d["new"][MODEL].update(bytes=10**12), "more than"),
    "too much to unpack": (lambda d, _: d["new"][MODEL].update(unpacked=10**10), "more than"),
    "too large a map": (lambda d, _: d.update(maps=[10**6]), "more than"),
    "fifty million zeros": (
        lambda d, p: (
            p.update({MODEL: deltas._pack(bytes(50_000_000))}),
            d["new"][MODEL].update(unpacked=1000, pieces=[["bytes", 1000]]),
        ),
        "expected",
    ),
    "rubbish": (
        lambda d, p: (p.update({MODEL: b"\xff" * 50}), d["new"][MODEL].update(unpacked=9)),
        "is damaged",
    ),
}


@pytest.mark.parametrize("name", list(HARMS))
def test_a_hostile_delta(name: str, tmp_path: Path) -> None:
    harm, message = HARMS[name]
    old, new = graph_folder(tmp_path / "old"), graph_folder(tmp_path / "new", size=32)
    document, packed = sent(old, new, tmp_path)
    harm(document, packed)
    document["packed"] = {key: hashlib.sha256(value).hexdigest() for key, value in packed.items()}
    tensors = {key: np.frombuffer(value, np.uint8) for key, value in packed.items()}
    file, target = tmp_path / "update.delta", tmp_path / "target"
    file.write_bytes(save(tensors, {"dynammo": sealed(document).decode()}))
    target.mkdir()
    with pytest.raises(CheckpointError, match=message) as caught:
        apply_delta(read_delta(file), old, target)
    assert "\n" not in str(caught.value)
    assert not contents(target)
    assert not (tmp_path.parent / "evil").exists()


def test_a_document_that_is_not_sealed(tmp_path: Path) -> None:
    old, new = graph_folder(tmp_path / "old"), graph_folder(tmp_path / "new", size=32)
    document, packed = sent(old, new, tmp_path)
    file = tmp_path / "update.delta"
    tensors = {key: np.frombuffer(value, np.uint8) for key, value in packed.items()}
    file.write_bytes(save(tensors, {"dynammo": json.dumps(document)}))
    with pytest.raises(CheckpointError, match="changed since it was written"):
        read_delta(file)
    file.write_bytes(save(tensors))
    with pytest.raises(CheckpointError, match="no delta"):
        read_delta(file)

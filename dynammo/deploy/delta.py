"""A model folder as its difference from an earlier one: what is sent to a device that has that.

The delta is one safetensors file: a sealed document and packed bytes. It says of each file of the
new folder from which pieces it is put together: bytes of the old folder, or of a file made before
it, as they are or with their words changed, and bytes of its own. Only who makes it knows what a
tensor is (`_regions`); who applies it copies, adds, and compares hashes.

Where adapters are folded, the merged one moves with every version, and with it every weight of the
convolutions behind: K (I + W_1) becomes K (I + W_2). What is sent of those is the C x C matrix
M = (I + W_1)^-1 (I + W_2) - I, found by least squares, and by how many units in the last place each
weight differs from K (I + W_1) (I + M): mostly none. The ONNX graph's convolution is the same one
with scaled rows, so M holds there too. All arithmetic is element by element in float64, so that
every machine rounds alike. Who applies a delta needs neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dynammo.checkpoint import sealed, unsealed
from dynammo.deploy.graph import load_predictor
from dynammo.errors import CheckpointError, shown

# In this order they are made: the graph may copy from the weights.
FILES = (
    *("model.safetensors", "model.onnx", "model.json", "graph.json"),
    *("signature.json", "version.json", "export.json"),
)
_FORMAT = "dynammo delta 1"
_MAPS = "maps"
_ENGINES = {"onnx": "model.onnx", "torch": "model.safetensors"}
_GROWTH = 64_000_000  # bytes that a new version may have beside twice the old one's
_WIDEST = 8192  # channels of a map
# Nothing of it is read from the file, so none can ask for more memory than this dictionary's.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 24}]

Matrix = NDArray[np.float32]
Words = NDArray[np.uint32]


class Delta(NamedTuple):
    """What a delta's file says, and its packed bytes by file; `maps` are those of the maps."""

    document: dict[str, Any]
    packed: dict[str, bytes]


class Made(NamedTuple):
    """A delta as it is written, and by file the bytes of the new one and those sent for it."""

    content: bytes
    sizes: dict[str, tuple[int, int]]


def make_delta(old: Path, new: Path) -> Made:
    """What makes the folder `new` out of the folder `old`, byte for byte.

    Args:
        old: a model folder; some of `FILES`.
        new: likewise, of a later version.

    Raises:
        CheckpointError: a folder holds something else or no `model.json`, the new one is no usable
            model; or the delta does not make it, which would be a mistake in here.
        OSError: a file cannot be read.
    """
    before, after = _contents(old), _contents(new)
    for engine in (name for name, file in _ENGINES.items() if file in after):
        load_predictor(new, engine)  # a damaged one is not sent to anybody
    maker = _Maker(before)
    files: dict[str, Any] = {}
    streams: dict[str, bytes] = {}
    for name, content in after.items():
        pieces, streams[name] = maker.pieces(name, content)
        files[name] = {**_about(content), "pieces": pieces, "unpacked": len(streams[name])}
    streams[_MAPS] = b"".join(_planes(own) for own in maker.maps)
    packed = {name: _pack(stream) for name, stream in streams.items() if stream}
    document = {
        "format": _FORMAT,
        "old": {name: _about(content) for name, content in before.items()},
        "new": files,
        "maps": [len(own) for own in maker.maps],
        "packed": {name: hashlib.sha256(content).hexdigest() for name, content in packed.items()},
    }
    if rebuilt(Delta(document, packed), before) != after:
        raise CheckpointError(f"the delta from {old} does not make {new}: nothing was written")
    arrays = {name: np.frombuffer(content, np.uint8) for name, content in packed.items()}
    content = save(arrays, {"dynammo": sealed(document).decode()})
    sizes = {name: (len(own), len(packed.get(name, b""))) for name, own in after.items()}
    return Made(content, {**sizes, _MAPS: (0, len(packed.get(_MAPS, b"")))})


def read_delta(file: Path) -> Delta:
    """Read a delta, if not a byte of it has changed since it was made.

    Raises:
        CheckpointError: it is none, or damaged.
        OSError: it cannot be read.
    """
    with file.open("rb"):  # what is not there, or is a folder, says so in the usual words
        pass
    try:
        with safe_open(file, "numpy") as opened:
            text = (opened.metadata() or {}).get("dynammo")
            document = unsealed((text or "").encode())
            _check_form(document)
            names = set(opened.keys())
            packed = {name: opened.get_tensor(name).tobytes() for name in sorted(names)}
        found = {name: hashlib.sha256(content).hexdigest() for name, content in packed.items()}
        if found != document.get("packed"):
            raise CheckpointError("its bytes are not those of its document")
    except (CheckpointError, SafetensorError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} is no delta, or damaged: {reason}") from None
    return Delta(document, packed)


def _check_form(document: dict[str, Any]) -> None:
    if document.get("format") != _FORMAT:
        raise CheckpointError(f"format {_FORMAT!r} expected")
    for files in (document.get("old"), document.get("new")):
        abouts = files.values() if isinstance(files, dict) else [None]
        if not all(isinstance(own, dict) and isinstance(own.get("sha256"), str) for own in abouts):
            raise CheckpointError("expected files with their SHA-256")


def is_new(delta: Delta, folder: Path) -> bool:
    """Whether a folder is the version that a delta makes, byte for byte."""
    return _mismatch(delta.document["new"], _contents(folder)) is None


def apply_delta(delta: Delta, old: Path, target: Path) -> None:
    """Write the new version's files into an empty folder, if each is what it should be.

    Args:
        delta: as `read_delta` gives it.
        old: the folder of the version that it was made from.
        target: for the new version.

    Raises:
        CheckpointError: `old` is another version, or the delta is damaged or wants more memory than
            a version that follows the old one can need. Nothing is written.
    """
    before = _contents(old)
    try:
        wrong = _mismatch(delta.document["old"], before)
        after = rebuilt(delta, before) if wrong is None else {}
    except (LookupError, TypeError, ValueError, AttributeError, lzma.LZMAError) as error:
        raise CheckpointError(f"the delta is damaged: {error!r}") from None
    if wrong is not None:
        raise CheckpointError(f"{old} is not the version that the delta was made from: {wrong}")
    for name, content in after.items():
        (target / name).write_bytes(content)


def rebuilt(delta: Delta, before: dict[str, bytes]) -> dict[str, bytes]:
    """The new version's files by name, from the contents of the old one's.

    Raises:
        CheckpointError: a file would not be the one meant, or too large.
        LookupError, TypeError, ValueError, AttributeError, LZMAError: the document has another form
            than `make_delta` gives it.
    """
    document = delta.document
    limit = 2 * sum(map(len, before.values())) + _GROWTH
    sides = [_natural(side) for side in document["maps"]]
    files = document["new"]
    claimed = sum(_natural(f["bytes"]) + _natural(f["unpacked"]) for f in files.values())
    if claimed + 4 * sum(side * side for side in sides) > limit:
        raise CheckpointError(f"the delta makes files of more than {limit} bytes")
    if strange := sorted(files.keys() - set(FILES)):
        raise CheckpointError(f"the delta makes a file {shown(strange[0])}")
    if sides and max(sides) > _WIDEST:
        raise CheckpointError(f"the delta holds a map of {max(sides)} channels")
    stream = _Stream(delta.packed.get(_MAPS, b""), 4 * sum(side * side for side in sides))
    maps = [stream.words(side * side).view(np.float32).reshape(side, side) for side in sides]
    sources = {f"old/{name}": content for name, content in before.items()}
    after = {}
    for name in (name for name in FILES if name in files):
        about = files[name]
        stream = _Stream(delta.packed.get(name, b""), about["unpacked"])
        content = bytearray()
        for kind, *rest in about["pieces"]:
            content += _piece(kind, rest, stream, sources, maps, about["bytes"] - len(content))
        after[name] = sources[f"new/{name}"] = bytes(content)
    if wrong := _mismatch(files, after):
        raise CheckpointError(f"the delta is damaged: of what it makes, {wrong}")
    return after


def _piece(
    kind: str,
    rest: list[Any],
    stream: _Stream,
    sources: dict[str, bytes],
    maps: list[Matrix],
    room: int,
) -> bytes:
    """The bytes of one piece; `room` is how many there may be."""
    if kind == "bytes":
        (length,) = rest
        return stream.take(_within(length, room))
    if kind == "words":
        (count,) = rest
        return stream.words(_within(count, room // 4)).tobytes()
    source, start, *rest = rest
    start = _within(start, len(sources[source]))
    if kind == "copy":
        length = _within(rest[0], min(room, len(sources[source]) - start))
        return sources[source][start : start + length]
    if kind == "change":
        count = _within(rest[0], min(room, len(sources[source]) - start) // 4)
        words = np.frombuffer(sources[source], "<u4", count, start)
    elif kind == "map":
        *shape, number = rest
        outputs, inputs, positions = (_within(side, room) for side in shape)
        count = _within(outputs * inputs * positions, room // 4)
        weight = np.frombuffer(sources[source], "<f4", count, start)
        map_ = maps[_within(number, len(maps) - 1)]
        words = _mapped(weight.reshape(outputs, inputs, positions), map_).view("<u4").ravel()
    else:
        raise ValueError(f"a piece {shown(kind)}")
    return _unchanged(words, stream.words(count)).tobytes()


class _Stream:
    """Packed bytes, unpacked: never more than the document says."""

    def __init__(self, packed: bytes, length: int) -> None:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
        self._content = unpacker.decompress(packed, length) if length else b""
        if len(self._content) != length:
            raise ValueError(f"{len(self._content)} of {length} bytes")
        self._at = 0

    def take(self, length: int) -> bytes:
        """The next bytes."""
        self._at += length
        if self._at > len(self._content):
            raise ValueError("too few bytes")
        return self._content[self._at - length : self._at]

    def words(self, count: int) -> Words:
        """The next words, (count,), from their planes."""
        planes = np.frombuffer(self.take(4 * count), np.uint8).reshape(4, count)
        return np.ascontiguousarray(planes.T).view("<u4").ravel()


class _Maker:
    """Finds the pieces of new files, and the maps that they need.

    Args:
        before: contents of the old files.

    Attributes:
        maps: (C, C) float32 each.
    """

    def __init__(self, before: dict[str, bytes]) -> None:
        self.maps: list[Matrix] = []
        self._sources: dict[str, bytes] = {}
        self._regions: dict[str, dict[str, _Region]] = {}
        self._known: dict[bytes, tuple[str, int]] = {}  # by hash: where such bytes are
        for name, content in before.items():
            self._add(f"old/{name}", content)

    def pieces(self, name: str, content: bytes) -> tuple[list[list[Any]], bytes]:
        """The pieces of a file, and the bytes that they take of its own."""
        pieces: list[list[Any]] = []
        stream: list[bytes] = []
        for key, region in _regions(name, content).items():
            own = content[region.start : region.stop]
            for piece, part in self._found(f"old/{name}", key, region, own):
                if not _continued(pieces, piece):
                    pieces.append(piece)
                stream.append(part)
        self._add(f"new/{name}", content)
        return pieces, b"".join(stream)

    def _add(self, source: str, content: bytes) -> None:
        self._sources[source] = content
        self._regions[source] = _regions(source, content)
        for region in self._regions[source].values():
            digest = hashlib.sha256(content[region.start : region.stop]).digest()
            self._known.setdefault(digest, (source, region.start))

    def _found(
        self, source: str, key: str, region: _Region, own: bytes
    ) -> Iterator[tuple[list[Any], bytes]]:
        """Pieces for a region: copied, wherever it is; else from the old one of its name."""
        if known := self._known.get(hashlib.sha256(own).digest()):
            yield ["copy", *known, len(own)], b""
            return
        before = self._regions.get(source, {}).get(key)
        if region.shape is not None:
            if before is not None and before.shape != region.shape:
                before = None
            yield self._weights(own, region.shape, source, before)
            return
        if before is None:
            yield ["bytes", len(own)], own
            return
        old = self._sources[source][before.start : before.stop]
        head = _in_common(old, own)
        tail = _in_common(old[head:][::-1], own[head:][::-1])
        middle = own[head : len(own) - tail]
        yield ["copy", source, before.start, head], b""
        yield ["bytes", len(middle)], middle
        yield ["copy", source, before.stop - tail, tail], b""

    def _weights(
        self, own: bytes, shape: tuple[int, ...], source: str, region: _Region | None
    ) -> tuple[list[Any], bytes]:
        """What takes fewest bytes: words of its own, changed ones, or mapped ones."""
        new = np.frombuffer(own, "<u4")
        choices: list[tuple[list[Any], bytes]] = [(["words", new.size], _planes(new))]
        map_ = None
        if region is not None:
            old = np.frombuffer(self._sources[source][region.start : region.stop], "<u4")
            choices.append((["change", source, region.start, new.size], _change(old, new)))
            sides = (shape[0], shape[1], new.size // (shape[0] * shape[1])) if shape[1:] else None
            weights = [words.view("<f4").reshape(sides) for words in (old, new)] if sides else []
            if sides and (map_ := _map_between(*weights)) is not None:
                # The graph's rows are scaled ones of the weights': the same map.
                alike = (i for i, one in enumerate(self.maps) if _close(one, map_))
                number = next(alike, len(self.maps))
                map_ = self.maps[number] if number < len(self.maps) else map_
                rest = _change(_mapped(weights[0], map_).view("<u4").ravel(), new)
                choices.append((["map", source, region.start, *sides, number], rest))
        costs = [len(_pack(rest)) for _, rest in choices]
        is_new = len(choices) == 3 and choices[2][0][-1] == len(self.maps)
        if map_ is not None and is_new:
            costs[2] += len(_pack(_planes(map_.view("<u4"))))
        best = costs.index(min(costs))
        if map_ is not None and is_new and best == 2:
            self.maps.append(map_)
        return choices[best]


class _Region(NamedTuple):
    """A part of a file: a tensor's bytes, with their `shape` if they are float32, or what is
    between two tensors.
    """

    start: int
    stop: int
    shape: tuple[int, ...] | None


def _regions(name: str, content: bytes) -> dict[str, _Region]:
    """All parts of a file in their order, by the name of the tensor; what comes before a tensor by
    that name with a bar.
    """
    read = {".safetensors": _of_safetensors, ".onnx": _of_onnx}.get(Path(name).suffix)
    try:
        tensors = read(content) if read else {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise CheckpointError(f"{name} is damaged: its tensors cannot be found") from None
    found, at = {}, 0
    parts = [item for item in tensors.items() if item[1].stop > item[1].start]
    for key, tensor in sorted(parts, key=lambda item: item[1].start):
        if tensor.start > at:
            found[f"|{key}"] = _Region(at, tensor.start, None)
        found[key] = tensor
        at = tensor.stop
    if len(content) > at:
        found["|"] = _Region(at, len(content), None)
    return found


def _of_safetensors(content: bytes) -> dict[str, _Region]:
    begin = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, about in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            start, stop = about["data_offsets"]
            shape = tuple(about["shape"]) if about["dtype"] == "F32" else None
            found[name] = _Region(begin + start, begin + stop, shape)
    return found


def _of_onnx(content: bytes) -> dict[str, _Region]:
    """The initialisers that hold their values as raw bytes. Numbers of the fields: onnx.proto3."""
    model, graph, initializer = 7, 5, 8  # graph of a model, initializer of a graph, its name
    dims, data_type, raw_data, float32 = 1, 2, 9, 1
    found = {}
    for start, stop in _fields(content, 0, len(content)).get(model, []):
        for tensor in _fields(content, start, stop).get(graph, []):
            own = _fields(content, *tensor)
            if raw_data in own and initializer in own:
                name = content[slice(*own[initializer][0])].decode()
                shape = tuple(stop for _, stop in own.get(dims, []))
                is_float = own.get(data_type) == [(-1, float32)]
                found[name] = _Region(*own[raw_data][0], shape if is_float else None)
    return found


def _fields(content: bytes, at: int, end: int) -> dict[int, list[tuple[int, int]]]:
    """Fields of a protobuf message by number: where their bytes are, or (-1, value) of a varint."""
    found: dict[int, list[tuple[int, int]]] = {}
    while at < end:
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            found.setdefault(number, []).append((-1, value))
            continue
        if wire == 2:
            length, at = _varint(content, at)
        else:
            length = {1: 8, 5: 4}[wire]
        found.setdefault(number, []).append((at, at + length))
        at += length
    return found


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _map_between(old: Matrix, new: Matrix) -> Matrix | None:
    """M of new = old (I + M) along the inputs of (O, I, K) weights, by least squares; none where
    they do not determine it.
    """
    before, after = (_rows(weight) for weight in (old, new))
    if before.shape[0] <= before.shape[1] or before.shape[1] > _WIDEST:
        return None
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    map_: Matrix = np.linalg.lstsq(before, after - before, rcond=None)[0].astype("<f4")
    return map_


def _mapped(weight: Matrix, map_: Matrix) -> Matrix:
    """K (I + M), as in the module's docstring: (O, I, K) -> the same, contiguous.

    Summed in one order, product by product, and not by BLAS: the same bits on every machine.
    """
    rows = _rows(weight)
    total = rows.copy()
    for column, line in zip(rows.T, map_.astype(np.float64), strict=True):
        total += column[:, None] * line
    outputs, inputs, positions = weight.shape
    turned = total.reshape(outputs, positions, inputs).transpose(0, 2, 1)
    mapped: Matrix = np.ascontiguousarray(turned, "<f4")
    return mapped


def _rows(weight: Matrix) -> NDArray[np.float64]:
    """(O, I, K) -> (O K, I), float64."""
    turned = weight.transpose(0, 2, 1)
    return turned.reshape(-1, weight.shape[1]).astype(np.float64)


def _close(one: Matrix, other: Matrix) -> bool:
    """Whether two maps are one, found from weights that were rounded differently."""
    scale = float(np.abs(other).max(initial=0))
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0) <= 1e-3 * scale)


def _change(old: Words, new: Words) -> bytes:
    """Differences of words, small ones of either sign as small numbers, in planes."""
    signed = (new - old).view(np.int32)
    return _planes(((signed << 1) ^ (signed >> 31)).view("<u4"))


def _unchanged(old: Words, changes: Words) -> Words:
    """The new words."""
    return old + ((changes >> 1) ^ -(changes & 1))


def _planes(words: Words | Matrix) -> bytes:
    """First bytes of all words, second bytes, and so on: equal ones side by side."""
    return np.ascontiguousarray(words).view(np.uint8).reshape(-1, 4).T.tobytes()


def _pack(content: bytes) -> bytes:
    return lzma.compress(content, lzma.FORMAT_RAW, filters=_FILTERS)


def _in_common(one: bytes, other: bytes) -> int:
    """How many bytes two begin with alike."""
    length = min(len(one), len(other))
    a, b = (np.frombuffer(content, np.uint8, length) for content in (one, other))
    return int(np.argmin(np.append(a == b, False)))


def _continued(pieces: list[list[Any]], piece: list[Any]) -> bool:
    """Whether a piece only makes the last one longer, or is empty."""
    if piece[0] in ("copy", "bytes") and piece[-1] == 0:
        return True
    if not pieces or pieces[-1][0] != piece[0]:
        return False
    last = pieces[-1]
    if piece[0] == "copy":
        follows = bool(last[1] == piece[1] and last[2] + last[3] == piece[2])
    else:
        follows = piece[0] == "bytes"
    if follows:
        last[-1] += piece[-1]
    return follows


def _contents(folder: Path) -> dict[str, bytes]:
    """The files of a model folder.

    Raises:
        CheckpointError: it holds something else, or no `model.json`.
        OSError: it cannot be read.
    """
    names = {path.name for path in folder.iterdir()}
    if strange := sorted(names - set(FILES)):
        raise CheckpointError(f"{folder} holds {shown(strange[0])}, which a delta does not carry")
    if "model.json" not in names:
        raise CheckpointError(f"{folder} is no model folder: there is no model.json in it")
    return {name: (folder / name).read_bytes() for name in FILES if name in names}


def _about(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _mismatch(described: dict[str, Any], contents: dict[str, bytes]) -> str | None:
    """What is not as a document describes it; none if all is."""
    if described.keys() != contents.keys():
        name = min(described.keys() ^ contents.keys())
        return f"{name} is {'missing' if name in described else 'not part of it'}"
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if (expected := described[name]["sha256"]) != digest:
            return f"{name} has SHA-256 {digest[:16]}..., expected {expected[:16]}..."
    return None


def _natural(value: Any) -> int:
    return _within(value, 1 << 62)


def _within(value: Any, limit: int) -> int:
    """A number of 0 to a limit, as it is; anything else is refused with `ValueError`."""
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{shown(value)}, expected 0 to {limit}")
    return value

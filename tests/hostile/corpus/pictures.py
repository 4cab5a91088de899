"""Pictures: cut off, blown up, of odd kinds, and what only looks like one; DICOM fields."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynammo.data.formats.pictures import decode
from tests.hostile.corpus.judging import Case
from tests.scans import encode as dicom

UNREADABLE = "cannot read "
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
CUTS = (0, 1, 4, 9, 0.1, 0.3, 0.5, 0.9)  # bytes, or shares of the file
GREY16 = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16


@cache
def encoded(kind: str) -> bytes:
    """A good file of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels), kind)


def saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    """The file of a picture."""
    content = BytesIO()
    image.save(content, kind, **more)
    return content.getvalue()


def png(width: int, height: int, data: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that says of itself what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + crc

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    )


def odd() -> dict[str, bytes]:
    """Files that are refused."""
    bomb = zlib.compress(bytes(20_000_000), 9)
    two = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return {
        "a PNG bomb": png(60_000, 60_000, bomb),
        "a PNG just over the limit": png(13_400, 13_400, bomb),
        "a PNG without width": png(0, 64, b""),
        "a PNG without height": png(64, 0, b""),
        "a PNG of 2^31 pixels a side": png(2**31 - 1, 2**31 - 1, b""),
        "a PNG without data": png(64, 64, b""),
        "a PNG with rubbish as data": png(64, 64, b"hello"),
        "a PNG of depth 7": png(64, 64, zlib.compress(bytes(10_000)), depth=7),
        "a PNG of colour 9": png(64, 64, zlib.compress(bytes(10_000)), colour=9),
        "an animated GIF": saved(two[0], "GIF", save_all=True, append_images=two[1:]),
        "an animated WebP": saved(two[0], "WEBP", save_all=True, append_images=two[1:]),
        "an animated PNG": saved(two[0], "PNG", save_all=True, append_images=two[1:]),
        "a TIFF of two pages": saved(two[0], "TIFF", save_all=True, append_images=two[1:]),
        "a TIFF of 32-bit integers": saved(Image.new("I", (8, 8)), "TIFF"),
        "a TIFF of floats": saved(Image.new("F", (8, 8)), "TIFF"),
        "a TIFF whose directory is itself": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
        "a PPM of 10^9 pixels a side": b"P6 1000000000 1000000000 255\n",
        "a PPM of negative width": b"P6 -5 5 255\n" + bytes(75),
        "a PPM without numbers": b"P6 many many 255\n",
        "EPS, which would run a program": b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PDF": b"%PDF-1.7\n",
        "an icon": saved(two[0], "ICO"),
        "HTML": b"<html><body>Not found</body></html>",
        "a zip": b"PK\x03\x04" + bytes(100),
        "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins.",
        "an executable": b"\x7fELF" + bytes(200),
        "blanks": b" " * 1000,
        "NULs": bytes(1000),
    }


def strange() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Files of odd kinds that are read, and the first pixel, as docs/reference/images.md says."""
    grey16 = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    return {
        "16-bit PNG": (saved(grey16, "PNG"), (255, 255, 255)),
        "16-bit TIFF": (saved(grey16, "TIFF"), (255, 255, 255)),
        "CMYK JPEG": (saved(Image.new("CMYK", (8, 8)), "JPEG"), (255, 255, 255)),
        "CMYK TIFF": (saved(Image.new("CMYK", (8, 8)), "TIFF"), (255, 255, 255)),
        "bilevel PNG": (saved(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
        "bilevel TIFF": (saved(Image.new("1", (8, 8), 1), "TIFF"), (255, 255, 255)),
        "a palette": (saved(palette, "PNG"), (10, 20, 30)),
        "a transparent palette": (saved(palette, "PNG", transparency=1), (0, 0, 0)),
        "wholly transparent": (saved(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG"), (0, 0, 0)),
        "grey with alpha": (saved(Image.new("LA", (8, 8), (200, 255)), "PNG"), (200, 200, 200)),
        "a single pixel": (saved(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), (1, 2, 3)),
        "a line of 5,000 pixels": (saved(Image.new("RGB", (5000, 1), (1, 2, 3)), "PNG"), (1, 2, 3)),
        "Lab TIFF": (saved(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"), (255, 255, 255)),
    }


ARRAYS: dict[str, Any] = {
    "no pixel": np.zeros((0, 5, 3), np.uint8),
    "one dimension": np.zeros(5, np.uint8),
    "four dimensions": np.zeros((1, 5, 5, 3), np.uint8),
    "two channels": np.zeros((5, 5, 2), np.uint8),
    "five channels": np.zeros((5, 5, 5), np.uint8),
    "negative integers": np.full((5, 5), -1),
    "64-bit integers": np.zeros((5, 5), np.int64),
    "floats above 1": np.full((5, 5), 1.5),
    "floats below 0": np.full((5, 5), -0.5),
    "floats that are none": np.full((5, 5), np.nan),
    "infinite floats": np.full((5, 5), np.inf),
    "truth values": np.zeros((5, 5), bool),
    "complex numbers": np.zeros((5, 5), complex),
    "objects": np.full((5, 5), None),
    "texts": np.full((5, 5), "a"),
    "dates": np.zeros((5, 5), "datetime64[s]"),
    "no array": 3,
    "nothing": None,
    "a list": [[1, 2], [3, 4]],
}
DICOMS: dict[str, dict[str, Any]] = {
    "a slope that is no number": {"RescaleSlope": "nan", "RescaleIntercept": 0},
    "an infinite slope": {"RescaleSlope": "inf", "RescaleIntercept": 0},
    "a slope of 1e308": {"RescaleSlope": "1e308", "RescaleIntercept": 0},
    "a slope of nothing": {"RescaleSlope": 0, "RescaleIntercept": 0},
    "an intercept that is no number": {"RescaleSlope": 1, "RescaleIntercept": "nan"},
    "an infinite intercept": {"RescaleSlope": 1, "RescaleIntercept": "-inf"},
    "a window around nothing": {"WindowCenter": "nan", "WindowWidth": 5},
    "a window of no number": {"WindowCenter": 5, "WindowWidth": "nan"},
    "an endless window": {"WindowCenter": 5, "WindowWidth": "inf"},
    "a window of no width": {"WindowCenter": 5, "WindowWidth": 0},
    "a window of negative width": {"WindowCenter": 5, "WindowWidth": -5},
    "an unknown window": {"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
    "two frames": {"NumberOfFrames": 2},
    "a kind that nobody knows": {"PhotometricInterpretation": "HSV"},
    "an empty kind": {"PhotometricInterpretation": ""},
    "a palette without colours": {"PhotometricInterpretation": "PALETTE COLOR"},
    "no rows": {"Rows": 0},
    "no columns": {"Columns": 0},
    "more rows than pixels": {"Rows": 4000},
    "a bomb": {"Rows": 65535, "Columns": 65535},
    "no bits": {"BitsAllocated": 0},
    "7 bits": {"BitsAllocated": 7},
    "64 bits": {"BitsAllocated": 64},
    "more bits than there are": {"BitsStored": 30},
    "three samples of grey": {"SamplesPerPixel": 3},
    "no samples": {"SamplesPerPixel": 0},
    "a representation of 7": {"PixelRepresentation": 7},
}


def cases() -> Iterator[Case]:
    """All about pictures."""
    for kind in FORMATS:
        for cut in CUTS:
            where = f"{cut} bytes" if isinstance(cut, int) else f"{cut:.0%}"
            yield Case("pictures", f"{kind} of {where}", partial(_cut, kind, cut), UNREADABLE)
    for name in odd():
        yield Case("pictures", name, lambda _, name=name: decode(odd()[name]), UNREADABLE)
    for name in strange():
        yield Case("pictures", name, partial(_strange, name), None)
    for name, value in ARRAYS.items():
        yield Case("arrays", name, lambda _, value=value: decode(value), UNREADABLE)
    for name, elements in DICOMS.items():
        yield Case("DICOM", name, partial(_dicom, elements), UNREADABLE)
    whole = dicom(GREY16)
    for where in (132, 140, 0.2, 0.5, 0.8):
        end = where if isinstance(where, int) else int(where * len(whole))
        yield Case(
            "DICOM", f"cut at byte {end}", lambda _, end=end: decode(whole[:end]), UNREADABLE
        )
    places: dict[str, tuple[Callable[[Path], Any], str]] = {
        "no file": (lambda folder: folder / "no.png", "No such file"),
        "a folder": (lambda folder: folder, "Is a directory"),
        "a NUL in the name": (lambda folder: f"{folder}/a\0.png", "null"),
        "a name of 300 letters": (lambda folder: folder / ("a" * 300), "too long"),
        "a link to itself": (_loop, "symbolic links"),
        "a dangling link": (_dangling, "No such file"),
        "below a file": (lambda _: Path(__file__) / "x.png", "Not a directory"),
    }
    for name, (make, says) in places.items():
        yield Case(
            "files", name, lambda folder, make=make: decode(make(folder)), UNREADABLE + f".*{says}"
        )


def _cut(kind: str, cut: float, _: Path) -> None:
    content = encoded(kind)
    decode(content[: cut if isinstance(cut, int) else int(cut * len(content))])


def _strange(name: str, _: Path) -> None:
    content, colour = strange()[name]
    found = tuple(decode(content)[0, 0].tolist())
    assert all(abs(a - b) <= 1 for a, b in zip(found, colour, strict=True)), found


def _dicom(elements: dict[str, Any], _: Path) -> None:
    decode(dicom(GREY16, **elements))


def _loop(folder: Path) -> Path:
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return folder / "loop.png"


def _dangling(folder: Path) -> Path:
    os.symlink("nowhere", folder / "a.png")
    return folder / "a.png"

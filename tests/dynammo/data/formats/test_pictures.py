from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from dynammo.data.formats.pictures import decode, load_image, resize
from dynammo.errors import DataError

# 2 x 3 pixels, all different.
RGB = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [255, 255, 255]]],
    np.uint8,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(size: int = 24) -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (size // 4, size // 4, 3), np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), np.uint8)))


shapes = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda hw: st.sampled_from([hw, (*hw, 1), (*hw, 3), (*hw, 4)])
)
arrays = shapes.flatmap(
    lambda shape: st.one_of(
        hnp.arrays(np.uint8, shape),
        hnp.arrays(st.sampled_from([np.dtype("<u2"), np.dtype(">u2")]), shape),
        hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)),
        hnp.arrays(np.float64, shape, elements=st.floats(0, 1)),
    )
)


@given(arrays)
def test_every_accepted_array_becomes_rgb_of_the_same_height_and_width(
    array: np.ndarray[Any, Any],
) -> None:
    pixels = decode(array)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*array.shape[:2], 3)
    assert pixels.flags.c_contiguous and pixels.flags.writeable


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3))))
def test_rgb_survives_every_lossless_way_in(array: np.ndarray[Any, Any]) -> None:
    picture = Image.fromarray(array)
    for source in (array, array / 255, array.astype(np.uint16) * 257, picture, encoded(picture)):
        np.testing.assert_array_equal(decode(source), array)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG", "WEBP"])
def test_formats(kind: str, tmp_path: Path) -> None:
    picture = noise()
    path = tmp_path / "picture.any"  # the content counts, not the extension
    path.write_bytes(encoded(picture, kind))
    pixels = decode(path)
    assert pixels.shape == (24, 24, 3)
    if kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(pixels, np.asarray(picture))
    np.testing.assert_array_equal(decode(str(path)), pixels)
    np.testing.assert_array_equal(decode(path.read_bytes()), pixels)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (200, 128), (100, 100, 100)),  # 200 * 128 / 255 = 100.4
        ("RGBA", (255, 100, 0, 51), (51, 20, 0)),  # 51 / 255 = 0.2
        ("RGBA", (255, 100, 0, 0), (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 7 + 256, (7, 7, 7)),  # v // 257
    ],
)
def test_modes(mode: str, colour: Any, expected: tuple[int, int, int]) -> None:
    picture = Image.new(mode, (2, 2), colour)
    sources: list[Any] = [picture]
    if mode == "CMYK":
        sources.append(encoded(picture, "TIFF"))
    else:
        sources.append(encoded(picture, "PNG"))
    for source in sources:
        assert decode(source).reshape(-1, 3).tolist() == [list(expected)] * 4


def test_palette_with_a_transparent_colour() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 10, 20, 30, 40, 50])
    picture.putpixel((1, 0), 1)
    assert decode(encoded(picture)).tolist() == [[[200, 10, 20], [30, 40, 50]]]
    assert decode(encoded(picture, transparency=0)).tolist() == [[[0, 0, 0], [30, 40, 50]]]


def test_transparent_colour_without_a_palette() -> None:
    picture = Image.fromarray(RGB)
    pixels = decode(encoded(picture, transparency=(10, 20, 30)))
    expected = RGB.copy()
    expected[1, 0] = 0
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("maxval", [65535, 4095])
def test_pgm_of_more_than_8_bits_is_scaled_by_its_own_maximum(maxval: int) -> None:
    content = b"P5\n2 1\n%d\n" % maxval + struct.pack(">2H", maxval, maxval // 2)
    assert decode(content)[0, :, 0].tolist() == [255, 127]


def tiff(bits: int, photometric: int, data: bytes, width: int) -> bytes:
    """A one-row little-endian greyscale TIFF, by hand: Pillow writes no such files."""
    entries = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 0)]
    entries += [(277, 1), (278, 1), (279, len(data))]
    offset = 8 + 2 + 12 * len(entries) + 4
    ifd = struct.pack("<H", len(entries))
    for tag, value in entries:
        ifd += struct.pack("<HHII", tag, 4, 1, offset if tag == 273 else value)
    return b"II*\0" + struct.pack("<I", 8) + ifd + bytes(4) + data


def test_tiff_of_12_bits_and_tiff_whose_zero_is_white() -> None:
    # 12 bits: 0xFFF and 0x800 packed into three bytes; 255 * 2048 // 4095 = 127
    assert decode(tiff(12, 1, bytes([0xFF, 0xF8, 0x00]), 2))[0, :, 0].tolist() == [255, 127]
    sixteen = struct.pack("<2H", 0, 65535)
    assert decode(tiff(16, 1, sixteen, 2))[0, :, 0].tolist() == [0, 255]
    assert decode(tiff(16, 0, sixteen, 2))[0, :, 0].tolist() == [255, 0]
    assert decode(tiff(8, 0, bytes([0, 255]), 2))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied_once(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture has to be turned by 90 degrees clockwise
    pixels = decode(encoded(Image.fromarray(RGB), kind, exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(RGB, k=-1))


def test_the_callers_picture_is_not_changed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(BytesIO(encoded(Image.fromarray(RGB), exif=exif)))
    decode(picture)
    np.testing.assert_array_equal(np.asarray(picture), RGB)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_animations_and_stacks_are_refused(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = tmp_path / "stack"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    with pytest.raises(DataError, match="stack: it has 3 frames; expected a single picture"):
        decode(path)


def test_a_cameras_mpo_file_gives_its_main_picture() -> None:
    main, preview = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4), "blue")
    pixels = decode(encoded(main, "MPO", save_all=True, append_images=[preview]))
    assert pixels.shape == (8, 8, 3)
    assert pixels[0, 0, 0] > 250


@pytest.mark.parametrize(
    "options",
    [
        {"format": "PNG"},
        {"format": "JPEG"},
        {"format": "JPEG", "progressive": True},
        {"format": "BMP"},
        {"format": "TIFF", "compression": "tiff_lzw"},
        {"format": "GIF"},
        {"format": "WEBP"},
        {"format": "PPM"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on the headers that are cut
def test_a_truncated_file_is_refused_unless_no_pixel_is_lost(options: dict[str, Any]) -> None:
    stream = BytesIO()
    noise().save(stream, **options)
    content = stream.getvalue()
    whole = decode(content)

    @settings(max_examples=60)
    @given(st.integers(0, len(content) - 1))
    def check(length: int) -> None:
        try:
            pixels = decode(content[:length], "cut.img")
        except DataError as error:
            assert str(error).startswith("cannot read cut.img: ")
        else:
            np.testing.assert_array_equal(pixels, whole)

    check()


@settings(max_examples=200)
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"]))
def test_any_bytes_are_a_picture_or_a_data_error(content: bytes, magic: bytes) -> None:
    try:
        assert decode(magic + content).shape[2] == 3
    except DataError as error:
        assert str(error).startswith("cannot read the image: ")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    with pytest.raises(DataError, match=r"cannot read .*notes\.png: not a readable PNG, JPEG, BMP"):
        decode(text)
    with pytest.raises(DataError, match=r"cannot read .*gone\.png: No such file or directory"):
        decode(tmp_path / "gone.png")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\nshowpage\n"
    with pytest.raises(DataError, match="not a readable"):  # Pillow would run Ghostscript
        decode(postscript)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11, 100])  # Pillow warns up to twice the limit, then raises
def test_decompression_bombs_are_refused(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (side, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"limit of \d+"):
        decode(content)


def test_a_header_that_lies_about_its_size_is_refused() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(DataError, match="limit of"):
        decode(png)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), r"array of shape \(2, 2, 2\); expected \(H, W\)"),
        (np.zeros((3,), np.uint8), r"array of shape \(3,\)"),
        (np.zeros((0, 4), np.uint8), r"array of shape \(0, 4\)"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"array of shape \(1, 3, 8, 8\)"),
        (np.zeros((2, 2), np.int64), "array of int64; expected uint8, uint16 or floats"),
        (np.zeros((2, 2), bool), "array of bool"),
        (np.full((2, 2), 255.0), "float array with values 255 to 255; expected 0 to 1"),
        (np.full((2, 2), -0.1), "float array with values -0.1"),
        (np.full((2, 2), np.nan), "float array with values nan"),
        (Image.new("I", (2, 2), 300), "pixels of mode I have no known range"),
        (Image.new("F", (2, 2), 0.5), "pixels of mode F have no known range"),
        (42, "int is no path, bytes, array or PIL image"),
        (None, "NoneType is no path"),
    ],
)
def test_what_cannot_be_known_is_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"cannot read the image: {message}"):
        decode(source)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
    st.integers(1, 40),
)
def test_resize_gives_a_square(image: np.ndarray[Any, Any], size: int) -> None:
    result = resize(image, size)
    assert result.shape == (size, size, 3) and result.dtype == np.uint8
    assert result.flags.writeable
    if image.shape[:2] == (size, size):
        np.testing.assert_array_equal(result, image)


@given(st.integers(0, 255), st.integers(1, 30), st.integers(1, 30))
def test_resize_keeps_a_flat_picture_flat(value: int, height: int, width: int) -> None:
    assert (resize(np.full((height, width, 3), value, np.uint8), 8) == value).all()


def test_resize_is_antialiased() -> None:
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[::2] = 255  # sampling single pixels would give all black or all white
    small = resize(lines, 8)
    assert small.min() > 100 and small.max() < 155


def test_load_image_decodes_and_resizes() -> None:
    content = encoded(noise(24))
    np.testing.assert_array_equal(load_image(content, 10), resize(decode(content), 10))


def photograph(side: int, **more: Any) -> bytes:
    """A JPEG of smooth colours with a little noise."""
    across = np.tile(np.linspace(0, 200, side), (side, 1))
    smooth = np.stack([across, across.T, 255 - across], 2)
    noisy = smooth + np.random.default_rng(0).normal(0, 8, smooth.shape)
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=90, **more)


def test_fast_jpeg_decodes_to_what_is_enough() -> None:
    content = photograph(400)
    assert [decode(content, enough=n).shape[0] for n in (201, 200, 101, 100, 50, 1)] == [
        *(400, 200, 200, 100, 50, 50)
    ]
    assert decode(content).shape == (400, 400, 3)
    # 3 x 64 = 192 <= 200: half the size; measured: 2 of 255 at most
    usual, fast = (load_image(content, 64, fast_jpeg=own).astype(int) for own in (False, True))
    assert 0 < np.abs(usual - fast).max() <= 4
    # What is not much larger than wanted, and what is no JPEG, is as it was.
    for own, size in ((content, 80), (encoded(Image.fromarray(decode(content))), 16)):
        np.testing.assert_array_equal(load_image(own, size, fast_jpeg=True), load_image(own, size))


def test_fast_jpeg_turns_and_refuses_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = photograph(400, exif=exif)
    upright = load_image(turned, 32).astype(int)
    assert np.abs(load_image(turned, 32, fast_jpeg=True) - upright).max() <= 4
    with pytest.raises(DataError, match="truncated"):
        load_image(turned[:2000], 32, fast_jpeg=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    with pytest.raises(DataError, match="exceed"):
        load_image(turned, 32, fast_jpeg=True)

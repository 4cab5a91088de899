"""Clips, made with PyAV itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dynammo.data.formats.clips import kind_of
from dynammo.data.formats.pictures import Form, load_image
from dynammo.data.formats.volumes import load_volume
from dynammo.errors import DataError
from tests.clips import clip

av = pytest.importorskip("av")

FORM = Form(32, slices=4)
LEVELS = (0, 50, 100, 150, 200, 250)


def plain(*values: int) -> list[NDArray[np.uint8]]:
    return [np.full((32, 32, 3), value, np.uint8) for value in values]


def noise(count: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(count)]


CONTAINERS = [
    ("c.mp4", "mpeg4", "yuv420p", {}),
    ("c.mov", "mjpeg", "yuvj420p", {"movflags": "faststart"}),
    ("c.mp4", "mpeg4", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    ("c.avi", "mpeg4", "yuv420p", {}),
    ("c.mkv", "ffv1", "bgr0", {}),
]


@pytest.mark.parametrize(("name", "codec", "pixels", "options"), CONTAINERS)
def test_frames_become_parts_as_slices_do(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str]
) -> None:
    """Of 6 frames in 4 parts each part has 1.5, as of other sequences."""
    file = clip(tmp_path / name, plain(*LEVELS), codec, pixels, **options)
    strip = load_image(file, FORM).reshape(4, -1).mean(1)
    expected = load_volume(np.stack(plain(*LEVELS)), FORM).reshape(4, -1).mean(1)
    assert expected.round().tolist() == [17, 83, 167, 233]
    np.testing.assert_allclose(strip, expected, atol=4)  # the codecs lose something


def test_a_codec_that_loses_nothing_gives_the_array_s_strip(tmp_path: Path) -> None:
    frames = noise(9)
    file = clip(tmp_path / "c.mkv", frames, "ffv1", "bgr0")
    np.testing.assert_array_equal(load_image(file, FORM), load_volume(np.stack(frames), FORM))
    np.testing.assert_array_equal(load_image(file, FORM), load_image(file.read_bytes(), FORM))


@pytest.mark.parametrize(("name", "codec", "pixels", "options"), CONTAINERS)
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_file_cut_short_is_refused(
    tmp_path: Path, name: str, codec: str, pixels: str, options: dict[str, str], share: float
) -> None:
    content = clip(tmp_path / name, noise(20), codec, pixels, **options).read_bytes()
    file = tmp_path / f"short-{name}"
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"truncated: it has [0-9]+ of [0-9]+ bytes") as caught:
        load_image(file, FORM)
    assert str(caught.value).startswith(f"cannot read {file}: ")


def test_a_length_that_nobody_knew_when_it_was_written(tmp_path: Path) -> None:
    """As a recorder writes it that cannot go back to the start; its end may be missing, then."""
    file = clip(tmp_path / "c.mkv", plain(*LEVELS), "ffv1", "bgr0", live="1")
    assert load_image(file, FORM).reshape(4, -1).mean(1).round().tolist() == [17, 83, 167, 233]


def test_damaged_frames_are_refused(tmp_path: Path) -> None:
    content = bytearray(clip(tmp_path / "c.avi", noise(20)).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    with pytest.raises(DataError, match=r"its frame [0-9]+ is damaged"):
        load_image(bytes(content), FORM)


def test_sound_alone_and_a_single_frame(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match=r"sound.mp4: it has no video stream"):
        load_image(tmp_path / "sound.mp4", FORM)
    single = clip(tmp_path / "one.mp4", plain(7))
    with pytest.raises(DataError, match=r"a single picture; expected a volume \(image.slices 4\)"):
        load_image(single, FORM)


def test_no_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "c.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        container.start_encoding()
    with pytest.raises(DataError, match=r"c.avi: its video stream has no frames"):
        load_image(tmp_path / "c.avi", FORM)


def test_a_telephone_s_clip_is_upright(tmp_path: Path) -> None:
    """Its matrix says that a quarter turn to the right is missing (ISO 14496-12, 8.3.2)."""
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[:16] = 240  # above
    content = clip(tmp_path / "c.mov", [frame, frame], "mjpeg", "yuvj444p").read_bytes()
    one = (1 << 16).to_bytes(4, "big")
    identity = b"".join([one, bytes(12), one, bytes(12), (1 << 30).to_bytes(4, "big")])
    turned = b"".join(
        [bytes(4), one, bytes(4), (-(1 << 16) % (1 << 32)).to_bytes(4, "big"), bytes(16)]
    ) + (1 << 30).to_bytes(4, "big")
    at = content.index(identity, content.index(b"tkhd"))
    content = content[:at] + turned + content[at + len(turned) :]
    upright = load_image(content, FORM)[:32, :, 0]
    assert (upright[:, 20:] > 200).all() and (upright[:, :12] < 40).all()


def test_deep_grey_goes_through_the_window(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "c.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "gray16le"
        for value in (0, 1000, 2000, 4000):
            own = np.full((32, 32), value, np.uint16)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(own, format="gray16le")))
        container.mux(stream.encode())
    shown = load_image(tmp_path / "c.mkv", FORM._replace(window=(0, 4000))).reshape(4, -1)
    assert shown.mean(1).tolist() == [0, 64, 128, 255]
    assert load_image(tmp_path / "c.mkv", FORM).reshape(4, -1).mean(1).tolist() == [0, 4, 8, 16]


def test_a_frame_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = clip(tmp_path / "c.mp4", plain(1, 2))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="32 x 32 pixels exceed the limit of 1000"):
        load_image(file, FORM)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = clip(tmp_path / "c.mp4", plain(1, 2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError) as caught:
        load_image(file, FORM)
    assert caught.value.problems == [
        f'cannot read {file}: av is not installed; it comes with: pip install "dynammo[volumes]"'
    ]


def test_nothing_else_is_opened() -> None:
    """A playlist would have FFmpeg open the files it names."""
    assert kind_of(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n") is None
    assert kind_of(b"ffconcat version 1.0\nfile /etc/passwd\n") is None
    assert kind_of(b"RIFF\0\0\0\0WEBPVP8 ") is None

"""The prediction log: what is done to it afterwards, by many processes and by kill -9."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dynammo.deploy.answers import Answer
from dynammo.deploy.log import (
    BEGINNING,
    PredictionLog,
    hash_pixels,
    sign_head,
    signed_head,
    verify_log,
    verify_signed,
)
from dynammo.deploy.signature import new_key
from dynammo.errors import SignatureError
from tasks.support.mlflow.pyfunc_model import ImageClassifier
from tests.models import graph_folder

MODEL, IMAGE = "a" * 64, "b" * 64
ANSWER = Answer("naevus é", 0.75, {"naevus é": 0.75, "melanoma": 0.25}, ["naevus é"])
# Appends without end, a few at a time; says when it has begun.
WRITER = """
import sys
from dynammo.deploy.answers import Answer
from dynammo.deploy.log import PredictionLog
log, rounds = PredictionLog(sys.argv[1], "a" * 64), int(sys.argv[2])
while rounds:
    log.append([("b" * 64, Answer("x" * 3000, 0.5, {}, None))] * 3)
    print(".", flush=True)
    rounds -= 1
"""


def written(file: Path, count: int = 5) -> list[bytes]:
    log = PredictionLog(file, MODEL)
    for _ in range(count):
        log.append([(IMAGE, ANSWER)])
    return file.read_bytes().splitlines(keepends=True)


def test_a_signed_head_tells_of_lines_taken_from_the_end(tmp_path: Path) -> None:
    key, file = tmp_path / "key", tmp_path / "log"
    public = new_key(key)
    written(file, 4)
    assert sign_head(file, key).predictions == 4
    lines = written(file, 3)
    found, at = verify_signed(file, public)
    assert (found.predictions, found.since) == (7, 3) and at.endswith("+00:00")
    for kept in range(4):
        file.write_bytes(b"".join(lines[:kept]))
        for check in (lambda: verify_signed(file, public), lambda: sign_head(file, key)):
            with pytest.raises(SignatureError, match="lines were taken from its end"):
                check()
    file.write_bytes(b"".join(lines[:4]))
    assert verify_signed(file, public)[0].since == 0
    with pytest.raises(SignatureError, match="is not signed by the key"):
        verify_signed(file, new_key(tmp_path / "other"))


def test_any_change_of_log_head_or_signature_is_found(tmp_path: Path) -> None:
    key, file, chance = tmp_path / "key", tmp_path / "log", random.Random(0)
    public = new_key(key)
    written(file)
    sign_head(file, key)
    for _ in range(100):
        target = chance.choice([file, *signed_head(file)])
        whole = target.read_bytes()
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        target.write_bytes(changed)
        with pytest.raises(SignatureError):
            verify_signed(file, public)
        target.write_bytes(whole)
    verify_signed(file, public)


def writer(file: Path, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(file), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_line_says_who_answered_what_and_when(tmp_path: Path) -> None:
    first, second = map(json.loads, written(tmp_path / "log", 2))
    assert first["before"] == BEGINNING and second["before"] == first["hash"]
    assert {key: first[key] for key in ("model", "input", *ANSWER._asdict())} == {
        "model": MODEL,
        "input": IMAGE,
        **ANSWER._asdict(),
    }
    assert first["time"].endswith("+00:00")
    assert len(first) == 10  # and nothing else: no name
    # By hand: the hash is of the line without it.
    rest = {key: value for key, value in first.items() if key != "hash"}
    line = (json.dumps(rest, sort_keys=True) + "\n").encode()
    assert first["hash"] == hashlib.sha256(line).hexdigest()
    assert verify_log(tmp_path / "log") == (2, second["hash"], [], None)


def test_each_of_a_hundred_changed_bytes_is_found(tmp_path: Path) -> None:
    file, chance = tmp_path / "log", random.Random(0)
    written(file)
    file.write_bytes(file.read_bytes() + b'{"before": "cut')  # one line cut off, and marked
    written(file, 2)
    whole = file.read_bytes()
    verify_log(file)
    for _ in range(100):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(SignatureError, match=r"line [1-8]: it "):
            verify_log(file)


def test_lines_removed_swapped_and_inserted_are_found(tmp_path: Path) -> None:
    file = tmp_path / "log"
    lines = written(file)
    changes = {
        1: lines[1:],
        3: lines[:2] + lines[3:],
        2: [lines[0], lines[2], lines[1], *lines[3:]],
        4: [*lines[:3], lines[2], *lines[3:]],
        5: [*lines[:4], b"{}\n", lines[4]],
    }
    for number, changed in changes.items():
        file.write_bytes(b"".join(changed))
        with pytest.raises(SignatureError, match=f"line {number}: it .*; {number - 1} before it"):
            verify_log(file)
    file.write_bytes(b"".join([*lines[:3], b"something (cut off)\n", *lines[3:]]))
    with pytest.raises(SignatureError, match="line 5: it does not follow the lines before that"):
        verify_log(file)


def test_lines_taken_from_the_end_show_against_the_head(tmp_path: Path) -> None:
    file = tmp_path / "log"
    lines = written(file)
    head = verify_log(file).head
    assert verify_log(file, head).since == 0
    written(file, 2)
    assert verify_log(file, head).since == 2
    file.write_bytes(b"".join(lines[:4]))
    assert verify_log(file).predictions == 4  # nothing shows without
    with pytest.raises(SignatureError, match=f"does not hold {head}: lines were taken"):
        verify_log(file, head)
    file.write_bytes(b"")
    assert verify_log(file, BEGINNING) == (0, BEGINNING, [], 0)


def test_a_line_that_was_cut_off_is_told_of_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "log"
    lines = written(file, 3)
    for count in range(1, len(lines[2]), 17):
        caplog.clear()
        cut = b"".join(lines[:2]) + lines[2][:count]
        file.write_bytes(cut)
        with pytest.raises(SignatureError, match=r"line 3: it is cut off.*; 2 before it are whole"):
            verify_log(file)
        with caplog.at_level(logging.WARNING):
            PredictionLog(file, MODEL).append([(IMAGE, ANSWER)])
        assert "is cut off" in caplog.text
        assert file.read_bytes().startswith(cut)  # nothing is taken away
        assert verify_log(file)[0::2] == (3, [3])
    # Killed while the line was closed, and while the line after it was written.
    file.write_bytes(cut + b" (cut")
    written(file, 1)
    assert verify_log(file).predictions == 3
    file.write_bytes(cut + b" (cut off)\n")
    with pytest.raises(SignatureError, match="line 3: it is cut off"):
        verify_log(file)
    file.write_bytes(cut + b" (cut off)\n" + lines[2][:50])
    written(file, 2)
    assert verify_log(file)[0::2] == (4, [3, 4])


def test_nothing_is_added_to_a_line_that_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "log"
    log, whole = PredictionLog(file, MODEL), b"".join(written(file))
    file.write_bytes(whole.replace(b"0.75", b"0.76"))
    with pytest.raises(SignatureError, match="its last line has been changed"):
        log.append([(IMAGE, ANSWER)])
    with pytest.raises(SignatureError, match="its last line has been changed"):
        PredictionLog(file, MODEL)


def test_long_lines_are_found_from_the_end(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path / "log", MODEL)
    for size in (10, 70_000, 300_000, 10):
        log.append([(IMAGE, Answer("x" * size, 1.0, {}, None))])
    assert verify_log(tmp_path / "log").predictions == 4


def test_processes_take_turns(tmp_path: Path) -> None:
    writers = [writer(tmp_path / "log", 20) for _ in range(4)]
    assert [own.wait(60) for own in writers] == [0] * 4
    for own in writers:
        assert own.stdout
        own.stdout.close()
    assert verify_log(tmp_path / "log")[0::2] == (4 * 20 * 3, [])


def test_kill_9_loses_nothing_that_was_written(tmp_path: Path) -> None:
    acknowledged = 0
    for _ in range(4):
        process = writer(tmp_path / "log", -1)
        assert process.stdout
        for _ in range(5):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += 3 * (5 + len(process.stdout.readlines()))
        process.wait(10)
        process.stdout.close()
    written(tmp_path / "log", 1)
    assert verify_log(tmp_path / "log").predictions >= acknowledged + 1


def test_the_served_model_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = tmp_path / "log", graph_folder(tmp_path / "model")
    monkeypatch.setenv("DYNAMMO_PREDICTION_LOG", str(file))
    model, context = ImageClassifier(), SimpleNamespace(artifacts={"model": str(folder)})
    model.load_context(context)
    pixels = np.full((4, 6, 3), (200, 10, 10), dtype=np.uint8)
    png, ppm = BytesIO(), BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    Image.fromarray(pixels).save(ppm, "PPM")
    sent = [base64.b64encode(png.getvalue()).decode(), pixels.tolist()]
    answers = model.predict(None, pd.DataFrame({"image": sent}))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    hashes = [hashlib.sha256(own.getvalue()).hexdigest() for own in (png, ppm)]
    assert [line["input"] for line in lines] == hashes
    assert hash_pixels(pixels) == hashes[1]
    for line, answer in zip(lines, answers, strict=True):
        assert answer == {key: line[key] for key in answer}
    manifest = (folder / "model.json").read_bytes()
    assert {line["model"] for line in lines} == {hashlib.sha256(manifest).hexdigest()}
    # No answer that is not in the log.
    monkeypatch.setattr(model, "log", PredictionLog(file, MODEL))
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        model.predict(None, pd.DataFrame({"image": sent}))
    monkeypatch.setenv("DYNAMMO_PREDICTION_LOG", "")
    model.load_context(context)
    assert len(model.predict(None, pd.DataFrame({"image": sent}))) == 2

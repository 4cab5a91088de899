"""Keep `data.dvc` in step with `data/`."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from dynammo.config.documents import parse_yaml
from dynammo.errors import DataError

DVC_STAGE = "DVC_STAGE"  # set by DVC for the commands of its stages
Logger = logging.Logger | logging.LoggerAdapter[Any]


def version_with_dvc(path: Path, made_anew: bool, logger: Logger) -> dict[str, Any]:
    """Record the version of the folder that `data.dvc` tracks, where the images are in it.

    An unchanged folder is left alone. A changed one becomes a new version (`dvc add`): `data.dvc`
    then differs from what is committed, and the log says so. Inside `dvc repro`, DVC itself looks
    after the version and only reads are made.

    Args:
        path: folder of the images, or a manifest in it.
        made_anew: the whole tracked folder was missing (`tracked_but_missing`), so what is there
            now has just been made; it must then be the recorded version, or it is removed again.
        logger: told what was found and done.

    Returns:
        `{"tracked": True, "md5": ..., "size": ..., "files": ...}`, or `{"tracked": False, "why":
        ...}` for images that live elsewhere; those are versioned by their content hash alone.

    Raises:
        DataError: images made anew are not the recorded version, or DVC failed; its own message is
            quoted.
    """
    pointer = _pointer(path.absolute())
    if pointer is None:
        why = f"{path} is in no folder that a .dvc file tracks"
        logger.info("not versioned by DVC (%s): the content hash alone names this data", why)
        return {"tracked": False, "why": why}
    if DVC_STAGE not in os.environ:
        _update(pointer, made_anew, logger)
    record = _recorded(pointer)
    logger.info("data version %s (DVC)", record["md5"])
    keys = {"md5": "md5", "size": "size", "nfiles": "files"}
    return {"tracked": True, **{new: record[old] for old, new in keys.items() if old in record}}


def tracked_but_missing(path: Path) -> bool:
    """Whether a `.dvc` file tracks a folder that `path` is in, and the folder is not there."""
    pointer = _pointer(path.absolute())
    return pointer is not None and pointer.is_file() and not pointer.with_suffix("").exists()


def hint_if_missing(path: Path) -> str:
    """What to do about missing images that a `.dvc` file tracks; otherwise nothing."""
    pointer = _pointer(path.absolute())
    if path.exists() or pointer is None or not pointer.is_file():
        return ""
    return f"; {pointer.name} tracks {pointer.stem}/: 'dvc pull' gets what it names"


def _update(pointer: Path, made_anew: bool, logger: Logger) -> None:
    """Make the .dvc file name what its folder holds."""
    before = _recorded(pointer)["md5"] if pointer.is_file() else None
    status = _dvc(pointer, "status", "--json", pointer.name) if before else "new"
    if status == "{}":
        return
    if made_anew and "modified" in status:
        shutil.rmtree(pointer.with_suffix(""))  # else the next try would take it for a new version
        raise DataError(
            f"{pointer.stem}/ is missing, and the embedded images are not the version that "
            f"{pointer.name} records ({before}): get that with 'dvc pull', or remove "
            f"{pointer.name} to start anew"
        )
    _dvc(pointer, "add", "--quiet", pointer.stem)
    after = _recorded(pointer)["md5"]
    if before not in (None, after):
        logger.warning(
            "%s/ has changed: %s went from %s to %s; commit it to keep this version",
            pointer.stem,
            pointer.name,
            before,
            after,
        )


def _pointer(path: Path) -> Path | None:
    """The .dvc file of the top folder that holds `path`: `<repository>/data.dvc` for `data/...`."""
    for folder in (path, *path.parents):
        if (folder.parent / ".dvc").is_dir():
            pointer = folder.with_name(f"{folder.name}.dvc")
            return pointer if pointer.is_file() or folder.name == "data" else None
    return None


def _recorded(pointer: Path) -> dict[str, Any]:
    try:
        (out,) = parse_yaml(pointer.read_text(encoding="utf-8"))["outs"]
        record: dict[str, Any] = out
        record["md5"]
        return record
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise DataError(f"{pointer} is not a DVC file with one output") from None


def _dvc(pointer: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=pointer.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[-500:]
        raise DataError(f"'dvc {' '.join(arguments)}' failed: {said}")
    return done.stdout.strip()

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynammo.errors import DynammoError
from dynammo.processes import INTERFACE, LOOPBACK, Machines, Tell, interface, together


def nothing(device: torch.device, tell: Tell) -> None:
    """The work of a process that meets nobody."""


def test_the_work_ends_where_another_machine_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERFACE, LOOPBACK)
    machines = Machines(0, 2, tmp_path / "meeting", tmp_path / "lost")
    (tmp_path / "lost").write_text("lost there: the disk is full")
    with pytest.raises(DynammoError, match=r"^lost there: the disk is full$"):
        together(nothing, 1, torch.device("cpu"), (), print, machines)
    assert (tmp_path / "lost").read_text() == "lost there: the disk is full"


def test_machines_that_do_not_meet_are_an_error_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERFACE, LOOPBACK)
    monkeypatch.setattr("dynammo.processes._PATIENCE", 0)
    machines = Machines(0, 2, tmp_path / "meeting", tmp_path / "lost")
    with pytest.raises(DynammoError, match="the processes did not meet within 0 seconds"):
        together(nothing, 1, torch.device("cpu"), (), print, machines)
    assert "the processes did not meet within 0 seconds" in (tmp_path / "lost").read_text()


def test_the_interface_must_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, LOOPBACK)
    assert interface() == LOOPBACK
    monkeypatch.setenv(INTERFACE, "nowhere0")
    with pytest.raises(DynammoError, match=f"here are: .*{LOOPBACK}.*; it is nowhere0$"):
        interface()

"""Training in several processes, of one machine or several: each computes its share of a batch."""

from __future__ import annotations

import os
import queue
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from dynammo.checkpoint import write_atomically
from dynammo.errors import DynammoError

Tell = Callable[..., None]
INTERFACE = "GLOO_SOCKET_IFNAME"  # the variable that torch reads, too
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_PATIENCE = 300  # seconds that processes have to start and meet


class Share(NamedTuple):
    """Which images are this process's: those whose index, divided by the number of processes
    `size`, leaves the remainder `rank`.
    """

    rank: int
    size: int

    @classmethod
    def mine(cls) -> Share:
        """This process's; everything where there is but one."""
        if not distributed.is_initialized():
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def own(self, images: Tensor) -> Tensor:
        """This process's images (N / size, ...) of all (N, ...); a view."""
        return images[self.rank :: self.size]

    def of(self, indices: Tensor) -> Tensor:
        """Which of these indices (B,) are this process's, as a mask."""
        return indices % self.size == self.rank

    def place(self, indices: Tensor) -> Tensor:
        """Where images with these indices are among this process's own."""
        return indices // self.size

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes; none counts as zero."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        _add_up(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if distributed.get_backend() == "nccl":
            total = total.cuda()
        _add_up(total)
        result: list[float] = total.tolist()
        return result


class _Deserted(DynammoError):
    """Another process is gone. Why, is for that one to say."""


def _add_up(values: Tensor) -> None:
    try:
        distributed.all_reduce(values)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise _Deserted(f"lost the other processes that train this adapter: {reason}") from None


class Machines(NamedTuple):
    """The machines that do the same work together, with as many processes each.

    Args:
        place: this machine's among them, from 0.
        total: how many they are.
        meeting: a file that all of them see and that does not exist yet; through it the processes
            learn each other's addresses. None where there is one machine.
        lost: a file that appears where one of them fails, and says why. Processes that wait for
            each other would not notice before half an hour has gone by.
    """

    place: int = 0
    total: int = 1
    meeting: Path | None = None
    lost: Path | None = None

    def tell(self, error: BaseException) -> None:
        """Tell the others what ends the work here, an interruption too, unless one has already."""
        if self.lost is None or self.lost.exists():
            return
        reason = (
            str(error) if isinstance(error, DynammoError) else f"ended by {type(error).__name__}"
        )
        with suppress(OSError):  # the others may have gone, and the folder with them
            write_atomically(self.lost, f"lost {socket.gethostname()}: {reason}".encode())


ALONE = Machines()


def interface() -> str:
    """The network interface over which the processes of several machines talk.

    Raises:
        DynammoError: the environment names none that is here. None is guessed: whoever reaches it
            while the processes meet could pass for one of them.
    """
    name = os.environ.get(INTERFACE)
    here = [name for _, name in socket.if_nameindex()]
    if name not in here:
        raise DynammoError(
            f"set {INTERFACE} to the network interface that the machines share; here are: "
            f"{', '.join(here)}" + (f"; it is {name}" if name else "")
        )
    return name


def together(
    work: Callable[..., Any],
    processes: int,
    device: torch.device,
    arguments: Sequence[Any],
    tell: Tell,
    machines: Machines = ALONE,
) -> Any:
    """Do the same work in several new processes, which find each other by `Share.mine`.

    Args:
        work: a function of a module; called as work(device, tell, *arguments).
        processes: how many of this machine. On CUDA each takes a GPU of its own.
        device: its kind counts.
        arguments: tensors are shared, not copied.
        tell: called here with whatever this machine's first process tells.
        machines: which of them this is. Where it is not the only one, every other calls this too,
            and the processes talk over the network interface that the environment variable
            `INTERFACE` names.

    Returns:
        What this machine's first process returns.

    Raises:
        DynammoError: raised by the work, or a process or another machine was lost, or there are too
            few GPUs; or no interface is named.
    """
    if machines.total > 1:
        interface()
    if device.type == "cuda" and (gpus := torch.cuda.device_count()) < processes:
        raise DynammoError(f"train.processes is {processes}, but there are {gpus} GPUs")
    threads = max(1, torch.get_num_threads() // processes)
    context = torch.multiprocessing.get_context("spawn")
    said, heard = context.Queue(), context.Event()
    with tempfile.TemporaryDirectory(prefix="dynammo-") as folder:
        if machines.meeting is None:
            machines = machines._replace(meeting=Path(folder, "meeting"))
        running = spawn(
            _process,
            (machines, processes, device.type, threads, said, heard, work, tuple(arguments)),
            nprocs=processes,
            join=False,
        )
        try:
            return _listen(running, said, tell, machines.lost)
        except BaseException as error:
            machines.tell(error)  # before connections close, which the others would report
            raise
        finally:
            heard.set()
            for process in running.processes:
                process.terminate()
                process.join()


def _listen(running: Any, said: Any, tell: Tell, lost: Path | None) -> Any:
    finished = False
    deadline: float | None = time.monotonic() + _PATIENCE
    while True:
        _check(lost)
        if deadline is not None and time.monotonic() > deadline:
            raise DynammoError(f"the processes did not meet within {_PATIENCE} seconds")
        try:
            kind, *what = said.get(timeout=0.1)
        except queue.Empty:
            if finished:
                raise DynammoError("a training process ended without a result") from None
            try:
                finished = running.join(timeout=0)
            except ProcessExitedException as error:
                raise DynammoError(f"a training process died: {error}") from None
            continue
        if kind == "met":
            deadline = None
        elif kind == "result":
            return what[0]
        elif kind == "told":
            tell(*what)
        else:
            if kind == "deserted":
                for _ in range(20):  # why, may be on its way
                    _check(lost)
                    time.sleep(0.1)
            raise DynammoError(what[0])


def _check(lost: Path | None) -> None:
    if lost is not None and lost.exists():
        raise DynammoError(lost.read_text(encoding="utf-8"))


def _process(
    number: int,
    machines: Machines,
    processes: int,
    kind: str,
    threads: int,
    said: Any,
    heard: Any,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    if machines.total == 1:  # they talk within this machine: no other interface is listened on
        os.environ[INTERFACE] = LOOPBACK
    os.environ["NCCL_SOCKET_IFNAME"] = f"={os.environ[INTERFACE]}"  # no other that begins so
    torch.set_num_threads(threads)
    device = torch.device(kind, number) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)

    def tell(*what: Any) -> None:
        if number == 0:
            said.put(("told", *what))

    try:
        _meet(machines, processes, number, kind)
        said.put(("met",))
        result = work(device, tell, *arguments)
    except DynammoError as error:  # of any process: a full disk need not meet the first
        said.put(("deserted" if isinstance(error, _Deserted) else "error", str(error)))
        heard.wait(60)  # lest the others say first that they lost this one
    else:
        if number == 0:
            said.put(("result", result))
            heard.wait(60)  # the result's tensors are in this process's memory
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _meet(machines: Machines, processes: int, number: int, kind: str) -> None:
    assert machines.meeting is not None
    try:
        distributed.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            init_method=machines.meeting.as_uri(),
            rank=machines.place * processes + number,
            world_size=machines.total * processes,
        )
    except RuntimeError as error:
        where, reason = os.environ[INTERFACE], str(error).splitlines()[0]
        raise DynammoError(f"the processes could not meet over {where}: {reason}") from None

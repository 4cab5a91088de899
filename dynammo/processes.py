"""Training in several processes of this machine: each computes its share of every batch."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from dynammo.errors import DynammoError

Tell = Callable[..., None]


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
        distributed.all_reduce(flat)
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
        distributed.all_reduce(total)
        result: list[float] = total.tolist()
        return result


def together(
    work: Callable[..., Any],
    processes: int,
    device: torch.device,
    arguments: Sequence[Any],
    tell: Tell,
) -> Any:
    """Do the same work in several new processes, which find each other by `Share.mine`.

    Args:
        work: a function of a module; called as work(device, tell, *arguments).
        processes: how many. On CUDA each takes a GPU of its own.
        device: its kind counts.
        arguments: tensors are shared, not copied.
        tell: called here with whatever the first process tells.

    Returns:
        What the first process returns.

    Raises:
        DynammoError: raised by the work, or a process died, or there are too few GPUs.
    """
    if device.type == "mps":
        raise DynammoError(f"train.processes is {processes}, but this machine has one GPU (mps)")
    if device.type == "cuda" and (gpus := torch.cuda.device_count()) < processes:
        raise DynammoError(f"train.processes is {processes}, but there are {gpus} GPUs")
    threads = max(1, torch.get_num_threads() // processes)
    context = torch.multiprocessing.get_context("spawn")
    said, heard = context.Queue(), context.Event()
    with tempfile.TemporaryDirectory(prefix="dynammo-") as folder:
        meeting = Path(folder, "meeting").as_uri()
        running = spawn(
            _process,
            (processes, device.type, threads, meeting, said, heard, work, tuple(arguments)),
            nprocs=processes,
            join=False,
        )
        try:
            return _listen(running, said, tell)
        finally:
            heard.set()
            for process in running.processes:
                process.terminate()
                process.join()


def _listen(running: Any, said: Any, tell: Tell) -> Any:
    finished = False
    while True:
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
        if kind == "result":
            return what[0]
        if kind == "error":
            raise DynammoError(what[0])
        tell(*what)


def _process(
    rank: int,
    size: int,
    kind: str,
    threads: int,
    meeting: str,
    said: Any,
    heard: Any,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    # They talk within this machine: no other interface is listened on.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.set_num_threads(threads)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=size)

    def tell(*what: Any) -> None:
        if rank == 0:
            said.put(("told", *what))

    try:
        result = work(device, tell, *arguments)
    except DynammoError as error:  # of any process: a full disk need not meet the first
        said.put(("error", str(error)))
    else:
        if rank == 0:
            said.put(("result", result))
            heard.wait(60)  # the result's tensors are in this process's memory
    distributed.destroy_process_group()

"""Several processes that train one network together: each takes its share of every batch.

torch's DistributedDataParallel over gloo (processors) or NCCL (GPUs); the processes find each other
by a file, on this machine alone.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
        rank: of this one; the first is 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over all processes."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        ids = [device.index or 0] if device.type == "cuda" else None
        made = nn.parallel.DistributedDataParallel
        # statistics are averaged by `average_statistics`: the first process's are no better
        known = inspect.signature(made.__init__).parameters
        word = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return made(network, ids, **{word: False})

    def mean(self, value: float) -> float:
        """Over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        torch.distributed.all_reduce(total, group=_talk())
        return float(total) / self.size

    def average_statistics(self, network: nn.Module) -> None:
        """The running means and variances of batch norms: the mean over all processes."""
        if self.size == 1:
            return
        for buffer in network.buffers():
            if buffer.is_floating_point():
                total = buffer.detach().to("cpu", torch.float64)
                torch.distributed.all_reduce(total, group=_talk())
                buffer.copy_(total / self.size)

    def from_first(self, function: Callable[[], float]) -> float:
        """What the first process finds, in all of them."""
        if self.size == 1:
            return function()
        found = torch.tensor([function() if self.rank == 0 else 0.0], dtype=torch.float64)
        torch.distributed.broadcast(found, 0, group=_talk())
        return float(found)


def _talk() -> Any:
    """The group for numbers on the processor; NCCL has none of those."""
    if torch.distributed.get_backend() == "gloo":
        return None
    global _gloo  # noqa: PLW0603 -- made once a process, by all at the same point
    if _gloo is None:
        _gloo = torch.distributed.new_group(backend="gloo")
    return _gloo


_gloo: Any = None


@dataclass(frozen=True)
class Meeting:
    """Where processes find each other.

    Attributes:
        file: that is not there yet.
        count: of processes.
        device: ``cuda``: each has the GPU of its rank; or ``cpu``.
    """

    file: Path
    count: int
    device: str = "cpu"


def run(meeting: Meeting, function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(group, *arguments)`` in so many new processes; raises what one raises.

    Args:
        meeting: of theirs.
        function: of a module; it and its arguments can be pickled.
        arguments: of the function.
    """
    torch.multiprocessing.spawn(
        _join, (meeting, function, arguments), nprocs=meeting.count, join=True
    )


def _join(
    rank: int, meeting: Meeting, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    on_gpus = meeting.device == "cuda"
    if on_gpus:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if on_gpus else "gloo",
        f"file://{meeting.file}",
        rank=rank,
        world_size=meeting.count,
    )
    function(Group(rank, meeting.count), *arguments)
    torch.distributed.barrier(group=_talk())  # nobody hangs up on another
    sys.stdout.flush()
    sys.stderr.flush()
    # Taken down one by one, gloo's threads abort the process now and then when all is done
    # ("terminate called without an active exception", torch 2.13): they end with it.
    os._exit(0)

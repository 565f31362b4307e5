"""Tensor parallelism: the group of ranks that hold one replica, and the three collectives that layers use.

A group is a value that is handed to the layers; there is no global one. With one rank every collective returns its
argument, so models are written once. Ranks meet through a file (`file://...`), never through a TCP port.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from anaphora.errors import ShardError


class ParallelError(ShardError):
    """The model cannot be divided over this many ranks, or the ranks did not meet."""


class ParallelGroup:
    """`world_size` ranks; this process is `rank`. Every rank must call the same collectives in the same order."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size

    @classmethod
    def join(
        cls,
        rank: int,
        world_size: int,
        rendezvous: str,
        device: torch.device,
        timeout: timedelta = timedelta(minutes=10),
    ) -> "ParallelGroup":
        """Meets the other ranks at `rendezvous`, a `file://` URL that no group has used. NCCL for a GPU, else gloo.

        Returns at once for world_size 1. Raises ParallelError if the others do not come within `timeout`.
        """
        if world_size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            try:
                dist.init_process_group(
                    backend, init_method=rendezvous, rank=rank, world_size=world_size, timeout=timeout
                )
            except (RuntimeError, ValueError) as error:
                raise ParallelError(f"rank {rank} of {world_size} did not join at {rendezvous}: {error}") from error
        return cls(rank, world_size)

    def close(self) -> None:
        """Leaves the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, in place and returned."""
        if self.world_size > 1:
            dist.all_reduce(x)
        return x

    def all_reduce_min(self, x: Tensor) -> Tensor:
        """The elementwise minimum of every rank's x, in place and returned (to agree on a pool size)."""
        if self.world_size > 1:
            dist.all_reduce(x, op=dist.ReduceOp.MIN)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x side by side along the last dimension, in rank order."""
        if self.world_size == 1:
            return x
        gathered = torch.empty((self.world_size * len(x), *x.shape[1:]), dtype=x.dtype, device=x.device)
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered.view(self.world_size, *x.shape).movedim(0, -2).flatten(-2)

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """x of rank `source`, in place and returned."""
        if self.world_size > 1:
            dist.broadcast(x, src=source)
        return x

    def share(self, size: int, what: str) -> int:
        """How much of `size` each rank holds. Raises ParallelError, naming `what`, if it cannot be divided evenly."""
        if size % self.world_size:
            raise ParallelError(f"{what} = {size} cannot be divided over {self.world_size} ranks")
        return size // self.world_size

    def replicas(self, size: int, what: str) -> int:
        """How many ranks hold the same one of `size`, if they are more. Raises ParallelError if that is uneven."""
        if self.world_size % size:
            raise ParallelError(f"{self.world_size} ranks cannot share {what} = {size} evenly")
        return self.world_size // size

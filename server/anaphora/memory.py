"""How many blocks the KV pool of this rank can have.

On a GPU the warm-up has shown what a step takes at most, and the pool gets what is left of the share that was allowed:

    0 ................................... total * utilization ..... total
    | others | weights, step's peak | graphs |      pool       | left free |

On a CPU memory is shared with everything else on the machine: the pool is modest unless a size is asked for. Its pages
are not touched before a block is used.
"""

import ctypes
from pathlib import Path
from typing import Final

import torch

from anaphora.errors import PoolSizeError
from anaphora.wire import Limits

_MAX_CPU_BYTES: Final = 4 << 30
_CPU_FRACTION: Final = 0.25


def device_memory_bytes(device: torch.device) -> int:
    """All memory of the device; of the host, for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return _host_memory()[1]


def available_host_bytes() -> int:
    """What the host (or this cgroup) can still give without swapping."""
    return _host_memory()[0]


def choose_num_blocks(limits: Limits, bytes_per_block: int, free_bytes: int) -> int:
    """The number of blocks of the pool, given what may be spent. Raises PoolSizeError if that is not enough."""
    num_blocks = limits.num_blocks
    if num_blocks == 0:
        # More than every row at its longest could never be used at once.
        num_blocks = min(free_bytes // bytes_per_block, limits.max_rows * limits.max_blocks_per_row)
    elif num_blocks * bytes_per_block > free_bytes:
        raise PoolSizeError(
            f"a KV cache of {num_blocks} blocks takes {num_blocks * bytes_per_block / 2**20:.0f} MiB, "
            f"but only {free_bytes / 2**20:.0f} MiB are free"
        )
    if num_blocks < 1:
        raise PoolSizeError(
            f"no memory is left for the KV cache: a block of {limits.block_size} tokens takes {bytes_per_block} bytes, "
            f"and {max(free_bytes, 0)} are free. Allow a larger share of the device's memory, or make steps smaller."
        )
    return num_blocks


def free_cpu_bytes(limits: Limits, available_bytes: int, world_size: int) -> int:
    """What the pool of one of `world_size` ranks on this host may take."""
    if limits.num_blocks > 0:
        return available_bytes // world_size
    return min(_MAX_CPU_BYTES, int(available_bytes * _CPU_FRACTION)) // world_size


def reset_cuda_peak(device: torch.device) -> None:
    """To be called before the warm-up: `free_cuda_bytes` looks at the peak since then."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def free_cuda_bytes(limits: Limits, device: torch.device) -> int:
    """What is left beside the warm-up: to be called after the largest step, while its graphs are alive."""
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)  # weights, the warm-up's pool, and a step at its largest
    torch.cuda.empty_cache()
    graphs = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # their pool cannot be emptied
    free, total = torch.cuda.mem_get_info(device)
    # What is in use and not torch's: the CUDA context, libraries' workspaces, graphs' nodes, other processes.
    others = total - free - torch.cuda.memory_reserved(device)
    utilization = 1.0 if limits.num_blocks > 0 else limits.memory_utilization
    return int(total * utilization) - others - peak - graphs


def _host_memory() -> tuple[int, int]:
    """(available, total) bytes: of the host, or of this process's cgroup where that has a smaller limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
    available, total = fields["MemAvailable"], fields["MemTotal"]
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit = int(Path(limit_file).read_text(encoding="ascii"))
            used = int(Path(used_file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
        if limit < total:
            available, total = min(available, limit - used), limit
    return available, total


def give_back_freed_host_memory() -> None:
    """Has the C library, where it can (glibc), return what was freed to the system: much of what a start has used."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

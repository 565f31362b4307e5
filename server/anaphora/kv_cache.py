"""The KV pool of one rank: its size in bytes, its memory, and the views that layers read.

One allocation holds every layer, `[num_layers, 2, num_blocks + 1, block_size, num_kv_heads, head_dim]` (keys at 0,
values at 1), so that a copied block is one indexed copy. It is never filled: on a CPU the pages that no block has used
yet cost nothing, and whatever stands in an unused cell must not reach a result (the attention kernels are tested with
NaN in there). Who owns which block is the router's knowledge alone; the last one is nobody's: rows that are padding
write there.
"""

import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import anaphora_kernels
import torch
from torch import Tensor


@dataclass(frozen=True)
class KvLayout:
    """What one token needs in the pool of this rank."""

    num_layers: int
    num_kv_heads: int  # of this rank
    head_dim: int
    dtype: torch.dtype

    @property
    def is_fp8(self) -> bool:
        """Whether keys and values are held as FP8, divided by a scale per head."""
        return self.dtype == torch.float8_e4m3fn

    @property
    def bytes_per_token(self) -> int:
        """Keys and values, all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class LayerCache(NamedTuple):
    """What one layer writes and reads."""

    keys: Tensor  # [num_blocks + 1, block_size, num_kv_heads, head_dim]
    values: Tensor  # like keys
    key_scale: Tensor | None  # [num_kv_heads] float32: a key is what an FP8 cache holds times this; else None
    value_scale: Tensor | None  # like key_scale


class KvCache:
    """The pool."""

    def __init__(
        self,
        layout: KvLayout,
        num_blocks: int,
        block_size: int,
        device: torch.device,
        scales: Tensor | None = None,  # [num_layers, 2, num_kv_heads] float32, as LayerCache's; for FP8
    ) -> None:
        """Not filled. Without `scales` they are 1: e4m3 has as many digits at any magnitude up to 448."""
        self.layout = layout
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (layout.num_layers, 2, num_blocks + 1, block_size, layout.num_kv_heads, layout.head_dim)
        on_cpu = device.type == "cpu"
        self.pool = _host_pool(shape, layout.dtype) if on_cpu else torch.empty(shape, dtype=layout.dtype, device=device)
        by_layer: Iterable[Any] = repeat((None, None))
        if layout.is_fp8:
            shape_of_scales = (layout.num_layers, 2, layout.num_kv_heads)
            by_layer = torch.ones(shape_of_scales, device=device) if scales is None else scales
        # Made once: slicing the pool in every layer of every step would cost more than small kernels do.
        self._layers = [LayerCache(*pool, *scales_) for pool, scales_ in zip(self.pool, by_layer, strict=False)]

    def layer(self, index: int) -> LayerCache:
        """Its part of the pool."""
        return self._layers[index]

    def copy_blocks(self, sources: Tensor, destinations: Tensor) -> None:
        """Copies blocks `sources` over blocks `destinations` ([n] int64 each), in every layer."""
        anaphora_kernels.copy_blocks(self.pool, sources, destinations)


def _host_pool(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that no page of exists until it is written to; in huge pages where there are such.

    A decode reads a few kilobytes here and there: with small pages, translating addresses takes as long as reading.
    """
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)

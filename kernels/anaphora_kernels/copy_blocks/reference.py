"""copy_blocks in plain torch: the specification."""

import torch
from torch import Tensor


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """See `anaphora_kernels.copy_blocks`."""
    if pool.dtype.itemsize == 1:
        pool = pool.view(torch.uint8)  # torch copies bytes by index, not FP8
    pool.index_copy_(2, destinations, pool.index_select(2, sources))

"""embedding on a CPU, by `kernels/native`: unpacks the rows that are asked for."""

import torch
from torch import Tensor

from anaphora_kernels.linear.cpu import DTYPES, PackedWeight
from anaphora_kernels.recording import empty


def embedding(indices: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """See `anaphora_kernels.embedding`; an IndexError for rows that are not there."""
    indices = indices.contiguous()
    out = empty((len(indices), weight.shape[1]), dtype)
    weight.native.unpack_rows(len(indices), indices.data_ptr(), out.data_ptr(), DTYPES[dtype])
    return out

"""linear on a CPU by the BLAS that torch has, asked in the way that puts all threads to work on few rows.

A product with few rows is a read of the weights, so it takes as many threads as the memory can feed. Asked for
x @ weight.T, MKL 2024.2 uses one. For a [3072, 576] weight on 2 cores of a Zen 3, F.linear -> as below, in ms:

    1 row     0.48 -> 0.26    one batched product over horizontal slices of the weight, a slice to a thread
    2 to 64   1.37 -> 0.93    (8 rows)   weight @ x.T, transposed back: the long side is the one that is divided
    more      F.linear divides the rows well by itself
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `anaphora_kernels.linear`."""
    rows = len(x)
    if rows > FEW_ROWS:
        return F.linear(x, weight, bias)
    if rows > 1:
        out = torch.mm(weight, x.t()).t().contiguous()
    else:
        slices = torch.get_num_threads()
        if weight.shape[0] % slices:
            return F.linear(x, weight, bias)
        sliced = weight.view(slices, -1, weight.shape[1]).transpose(1, 2)
        out = torch.bmm(x.expand(slices, rows, -1), sliced).view(rows, -1)
    return out if bias is None else out.add_(bias)

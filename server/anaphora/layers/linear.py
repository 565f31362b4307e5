"""Matrix products whose weights are divided over the ranks of a group (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053).

    column parallel   every rank has all inputs and some outputs      x -> [T, its outputs], no communication
    row parallel      every rank has some inputs and all outputs      [T, its inputs] -> the sum over ranks

A column-parallel layer feeds a row-parallel one, so that a pair costs one all-reduce. Weights are contiguous [out, in],
or packed for a CPU, or in FP8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import anaphora_kernels
import torch
from torch import Tensor

from anaphora.layers.parameters import Part, Placement


@dataclass(frozen=True)
class Output:
    """One of the products that a merged layer computes: this rank's outputs [start, start + local) of `size`."""

    size: int
    local: int
    start: int


class ColumnParallelLinear:
    """One product, or several with the same input merged into one: outputs side by side, in the order given."""

    def __init__(self, in_features: int, outputs: Sequence[Output], placement: Placement, *, bias: bool) -> None:
        """`outputs` are the checkpoint's separate products."""
        self.in_features = in_features
        self.outputs = tuple(outputs)
        self.sizes = [output.local for output in outputs]  # of this rank's results, side by side
        self.weight = placement.weight(sum(self.sizes), in_features)
        self.bias = placement.empty(sum(self.sizes)) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in_features] -> [T, sum(sizes)]."""
        return anaphora_kernels.linear(x, self.weight, self.bias)

    def parts(self, *names: str) -> dict[str, Part]:
        """One checkpoint name per output."""
        parts = {}
        offset = 0
        for name, output in zip(names, self.outputs, strict=True):
            rows = slice(offset, offset + output.local)
            shape = (output.size, self.in_features)
            parts[f"{name}.weight"] = Part(shape, self.weight[rows], dim=0, start=output.start)
            if self.bias is not None:
                parts[f"{name}.bias"] = Part((output.size,), self.bias[rows], dim=0, start=output.start)
            offset += output.local
        return parts


class GateUpLinear(ColumnParallelLinear):
    """The gate and up products of an MLP in one: [T, hidden] -> [T, gate then up]."""

    def __init__(self, in_features: int, intermediate_size: int, placement: Placement, *, bias: bool) -> None:
        """`intermediate_size` must be divisible by the number of ranks."""
        group = placement.group
        local = group.share(intermediate_size, "intermediate_size")
        output = Output(intermediate_size, local, group.rank * local)
        super().__init__(in_features, (output, output), placement, bias=bias)


class QkvLinear(ColumnParallelLinear):
    """The query, key and value products of attention in one: [T, hidden] -> [T, this rank's heads, head_dim].

    Heads stand in the order queries, keys, values. With more ranks than KV heads, several ranks hold the same KV head.
    """

    def __init__(
        self, in_features: int, num_heads: int, num_kv_heads: int, head_dim: int, placement: Placement, *, bias: bool
    ) -> None:
        """`num_heads` must be divisible by the number of ranks, and the number of KV heads by it or it by them."""
        group = placement.group
        self.head_dim = head_dim
        self.num_heads = group.share(num_heads, "num_attention_heads")  # of this rank
        if group.world_size <= num_kv_heads:
            self.num_kv_heads = group.share(num_kv_heads, "num_key_value_heads")  # of this rank
        else:
            group.replicas(num_kv_heads, "num_key_value_heads")
            self.num_kv_heads = 1
        first_head = group.rank * self.num_heads
        self.first_kv_head = first_kv_head = group.rank * num_kv_heads // group.world_size
        query = Output(num_heads * head_dim, self.num_heads * head_dim, first_head * head_dim)
        key = Output(num_kv_heads * head_dim, self.num_kv_heads * head_dim, first_kv_head * head_dim)
        super().__init__(in_features, (query, key, key), placement, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in_features] -> [T, num_heads + 2 * num_kv_heads, head_dim]."""
        return super().__call__(x).view(-1, self.num_heads + 2 * self.num_kv_heads, self.head_dim)

    def split(self, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of such a result, as views: [T, their heads, head_dim] each."""
        query, key, value = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        return query, key, value


class RowParallelLinear:
    """A product over inputs that are divided over the ranks; every rank gets the whole result."""

    def __init__(self, in_features: int, out_features: int, placement: Placement, *, bias: bool) -> None:
        """`in_features` must be divisible by the number of ranks."""
        self.in_features = in_features
        self.out_features = out_features
        self.group = placement.group
        self.weight = placement.weight(out_features, self.group.share(in_features, "in_features"))
        self.bias = placement.empty(out_features) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """[T, this rank's inputs] -> [T, out_features]."""
        if self.group.world_size == 1:
            return anaphora_kernels.linear(x, self.weight, self.bias)
        out = self.group.all_reduce(anaphora_kernels.linear(x, self.weight))
        return out if self.bias is None else out.add_(self.bias)  # once, after the sum over ranks

    def parts(self, name: str) -> dict[str, Part]:
        """The weight, and the bias if there is one."""
        start = self.group.rank * self.weight.shape[1]
        parts = {f"{name}.weight": Part((self.out_features, self.in_features), self.weight[:], dim=1, start=start)}
        if self.bias is not None:
            parts[f"{name}.bias"] = Part((self.out_features,), self.bias)
        return parts

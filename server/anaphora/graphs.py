"""CUDA graphs: a forward pass as one launch, for the small steps in which launching would take longer than computing.

A graph is captured for a shape and replayed for every step that fits into it, padded:

    decode   every row has one token        1, 2, 3, 4, 8, 16, 24, ... 256, 272, ... 512 rows
    shared   the same; some share a prefix  4, 8, 16, 32, 48, 64, 96, ... 512 rows
    append   rows of any length             16, 32, 48, 64 tokens in all

A shape has as many rows as tokens, so one number says it: a step of T tokens in R <= T rows, in a shape of N,

    tokens   [ T of the step | N - T padding ]
    rows     [ R of the step | N - T of one padding token | T - R without any ]

Padding tokens stand in the scratch block of the pool and attend to nothing but it: no sequence's memory is touched. The
graph reads its inputs at an address that stays (`StaticBuffer`), and the mirror of the slots, block tables and tokens
sampled last, where it is; its hidden states are computed into memory that all graphs share.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from anaphora_kernels import SharedPrefixes, registry
from numpy.typing import NDArray
from torch import Tensor

from anaphora.batch import HostLengths, I64Array, Inputs, Layout, Slots
from anaphora.staging import StaticBuffer
from anaphora.wire import Limits

MAX_DECODE_ROWS: Final = 512
_DECODE_SIZES: Final = (1, 2, 3, 4, *range(8, 256, 8), *range(256, MAX_DECODE_ROWS + 1, 16))
_SHARED_SIZES: Final = (4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, MAX_DECODE_ROWS)
_APPEND_SIZES: Final = (16, 32, 48, 64)

Launch = Callable[[], object]
"""Launches work on the device."""

Capture = Callable[[Launch], Launch]
"""Turns a function that launches work into one that launches the same work again, in less time."""

Forward = Callable[[Inputs, HostLengths], Tensor]
"""The hidden states of the sampled tokens, [S, hidden]."""


Kind = Literal["decode", "shared", "append"]


@dataclass(frozen=True)
class GraphShape:
    """What a graph was captured for."""

    kind: Kind
    size: int  # tokens, and rows


@dataclass(frozen=True)
class GraphSizes:
    """The sizes of the graphs that there are, smallest first."""

    by_kind: dict[Kind, tuple[int, ...]]

    @classmethod
    def within(cls, limits: Limits) -> "GraphSizes":
        """All that are worth having under these limits."""
        most = min(limits.max_rows, limits.max_step_tokens)
        return cls(
            {
                "decode": _DECODE_SIZES[: bisect_left(_DECODE_SIZES, most) + 1],
                "shared": _SHARED_SIZES[: bisect_left(_SHARED_SIZES, most) + 1] if most > 1 else (),
                "append": tuple(size for size in _APPEND_SIZES if size <= limits.max_step_tokens),
            }
        )

    def shapes(self) -> list[GraphShape]:
        """The largest first: the others fit into its memory."""
        shapes = [GraphShape(kind, size) for kind, sizes in self.by_kind.items() for size in sizes]
        return sorted(shapes, key=lambda shape: -shape.size)

    def choose(self, num_tokens: int, num_rows: int, *, shares: bool) -> GraphShape | None:
        """The smallest that serves a step, some rows of which may share a prefix; None if none does."""
        kind: Kind = "append" if num_tokens > num_rows else "shared" if shares else "decode"
        sizes = self.by_kind[kind]
        index = bisect_left(sizes, num_tokens)
        return GraphShape(kind, sizes[index]) if index < len(sizes) else None


def pad(layout: Layout, size: int, padding_slot: int, scratch_cell: int) -> Layout:
    """`layout` with `size` tokens, rows and samples: what is added reads and writes the scratch block alone."""
    num_tokens, num_rows = layout.tokens.size, layout.slots.size
    padding = size - num_tokens
    empty = size - num_rows - padding
    more_starts = np.minimum(np.arange(num_tokens + 1, num_tokens + 1 + padding + empty), size)
    return Layout(
        tokens=_extend(layout.tokens, padding, 0),
        continues=_extend(layout.continues, padding, 0),
        token_slots=_extend(layout.token_slots, padding, padding_slot),
        positions=_extend(layout.positions, padding, 0),
        kv_indices=_extend(layout.kv_indices, padding, scratch_cell),
        slots=_extend(layout.slots, padding + empty, padding_slot),
        query_starts=np.concatenate([layout.query_starts, more_starts.astype(np.int32)]),
        context_lengths=_extend(_extend(layout.context_lengths, padding, 1), empty, 0),
        sample_indices=_extend(layout.sample_indices, size - layout.sample_indices.size, 0),
        sample_slots=_extend(layout.sample_slots, size - layout.sample_slots.size, padding_slot),
    )


def pad_shared(shared: SharedPrefixes, size: int, max_context: int) -> SharedPrefixes:
    """`shared` for `size` rows, in tensors and with bounds that depend on nothing else."""
    num_groups = size // 2
    return SharedPrefixes(
        rows=_extend_tensor(shared.rows, size, 0),
        group_starts=_extend_tensor(shared.group_starts, num_groups + 1, int(shared.group_starts[-1])),
        lengths=_extend_tensor(shared.lengths, num_groups, 0),
        row_groups=_extend_tensor(shared.row_groups, size, -1),
        row_members=_extend_tensor(shared.row_members, size, 0),
        max_group_size=size,
        max_length=max_context,
    )


def _extend_tensor(x: Tensor, size: int, value: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, size - len(x)), value=value)


def _extend(array: NDArray[Any], count: int, value: int) -> NDArray[Any]:
    return np.concatenate([array, np.full(count, value, array.dtype)])


_I64: Final[I64Array] = np.empty(0, np.int64)
_NOTHING: Final = Layout(
    tokens=_I64,
    continues=np.empty(0, np.bool_),
    token_slots=_I64,
    positions=_I64,
    kv_indices=_I64,
    slots=_I64,
    query_starts=np.zeros(1, np.int32),
    context_lengths=np.empty(0, np.int32),
    sample_indices=_I64,
    sample_slots=_I64,
)
_I32: Final = torch.empty(0, dtype=torch.int32)
_NOTHING_SHARED: Final = SharedPrefixes(_I32, torch.zeros(1, dtype=torch.int32), _I32, _I32, _I32, 0, 0)


@dataclass(frozen=True)
class _Graph:
    """One shape, captured."""

    buffer: StaticBuffer
    inputs: Inputs
    replay: Launch


class Graphs:
    """The graphs over one KV pool."""

    def __init__(
        self,
        forward: Forward,
        capture: Capture,
        sizes: GraphSizes,
        slots: Slots,
        on_progress: Callable[[int, int], None],  # (graphs captured, one more than there are)
    ) -> None:
        """Captures them all."""
        self._forward = forward
        self._sizes = sizes
        self._slots = slots
        self._hidden = torch.empty(0)  # [the largest size, hidden], once that graph is captured
        self._graphs: dict[GraphShape, _Graph] = {}
        shapes = sizes.shapes()
        for done, shape in enumerate(shapes):
            on_progress(done, len(shapes) + 1)
            self._graphs[shape] = self._capture(capture, shape)

    def run(self, layout: Layout) -> tuple[Tensor, Tensor] | None:
        """Hidden states [S, hidden] and slots [S] of what samples, both valid until the next run; None if none fits."""
        shares = layout.shared_prefixes is not None
        shape = self._sizes.choose(layout.tokens.size, layout.slots.size, shares=shares)
        if shape is None:
            return None
        graph = self._graphs[shape]
        graph.buffer.fill(self._padded(layout, shape).arrays())
        graph.replay()
        num_samples = layout.sample_slots.size
        return self._hidden[:num_samples], graph.inputs.sample_slots[:num_samples]

    def _capture(self, capture: Capture, shape: GraphShape) -> _Graph:
        padded = self._padded(_NOTHING, shape)
        buffer = StaticBuffer(padded.arrays(), self._slots.device)
        buffer.fill(padded.arrays())
        inputs = Inputs.of(padded, buffer.tensors)

        def launch() -> Tensor:
            return self._forward(*self._rows(inputs, shape))

        if self._hidden.numel() == 0:
            self._hidden = torch.empty_like(launch())
        hidden = self._hidden[: shape.size]
        return _Graph(buffer, inputs, capture(lambda: hidden.copy_(launch())))

    def _padded(self, layout: Layout, shape: GraphShape) -> Layout:
        padded = pad(layout, shape.size, self._slots.padding_slot, self._slots.scratch_cell)
        if shape.kind != "shared":
            return padded
        shared = layout.shared_prefixes or _NOTHING_SHARED
        return replace(padded, shared_prefixes=pad_shared(shared, shape.size, self._slots.limits.max_context))

    def _rows(self, inputs: Inputs, shape: GraphShape) -> tuple[Inputs, HostLengths]:
        """What a pass may know of the rows: on a GPU only the shape; on a CPU, which captures nothing, the rows."""
        if inputs.slots.is_cuda:
            return inputs, bounds(shape, self._slots.limits.max_context)
        queries, contexts = torch.diff(inputs.query_starts), inputs.context_lengths
        num_rows = int((queries > 0).sum())
        present = inputs._replace(
            slots=inputs.slots[:num_rows],
            query_starts=inputs.query_starts[: num_rows + 1],
            context_lengths=contexts[:num_rows],
        )
        return present, HostLengths(tuple(queries[:num_rows].tolist()), tuple(contexts[:num_rows].tolist()))


def bounds(shape: GraphShape, max_context: int) -> HostLengths:
    """All that is known of the rows when a graph is captured."""
    longest_query = shape.size if shape.kind == "append" else 1
    return HostLengths((longest_query,) * shape.size, (max_context,) * shape.size, is_captured=True)


def graph_capture(
    device: torch.device, kv_dtype: torch.dtype, attention_backend: str | None = None
) -> Callable[[], Capture] | None:
    """What makes a worker's captures; None on a CPU, and where attention over such a cache cannot be captured."""
    row = registry.choose("paged_attention", device.type, kv_dtype, attention_backend)
    return CudaCapture if device.type == "cuda" and row.capturable else None


class CudaCapture:
    """Captures CUDA graphs that share one pool of memory: they are replayed one after another on one stream."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, launch: Launch) -> Launch:
        """Runs `launch` twice: to compile and allocate what must not happen in a capture, and to record it."""
        launch()
        graph = torch.cuda.CUDAGraph()
        # The watchdog of NCCL asks CUDA for events from its own thread, which a global capture forbids.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            launch()
        return graph.replay

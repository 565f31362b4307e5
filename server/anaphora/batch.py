"""From a step to the inputs of one forward pass.

A shard mirrors two things of each row slot, on the device: the block table, and the token sampled last. `Slots` keeps
them up to date by deltas; `Slots.lay_out` lays the rows of a step one after another:

    row            0           1   2                    (three rows: a chunk of 4, a decode, a chunk of 3)
    tokens        [a b c d]   [x] [e f g]                x: what the slot sampled last, read on the device
    positions     [8 9 10 11] [5] [0 1 2]
    query_starts   0           4   5         8

    step --lay_out--> Layout (numpy) --pad, if a graph serves it--> Layout --one copy--> Inputs --> forward pass

All of it is numpy over whole arrays and one upload: no Python work per row. What a step says is checked before
anything of it reaches the device, where a bad index would be another sequence's memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from anaphora_kernels import AttentionMetadata, SharedPrefixes
from numpy.typing import NDArray
from torch import Tensor

from anaphora.context import ForwardContext, SampledTokens
from anaphora.errors import InvalidStepError
from anaphora.staging import upload
from anaphora.wire import BlockTableDelta, Limits, Step, U32Array

I32Array = NDArray[np.int32]
I64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """T tokens in R rows, S of which sample: on the host, as they are uploaded."""

    tokens: I64Array  # [T] input ids; 0 where the row continues
    continues: NDArray[np.bool_]  # [T] the input is what the slot sampled last
    token_slots: I64Array  # [T]
    positions: I64Array  # [T]
    kv_indices: I64Array  # [T]: cells of the pool; see anaphora_kernels.kv_indices
    slots: I64Array  # [R]
    query_starts: I32Array  # [R + 1]
    context_lengths: I32Array  # [R] the tokens of this step included
    sample_indices: I64Array  # [S]: the tokens after which is sampled
    sample_slots: I64Array  # [S]
    shared_prefixes: SharedPrefixes | None = None  # of the rows, if it pays to compute them once

    @property
    def query_lengths(self) -> I32Array:
        """[R]."""
        return np.diff(self.query_starts)

    def arrays(self) -> list[NDArray[Any]]:
        """All that is uploaded, in the order of the fields."""
        arrays = [getattr(self, name) for name in _ARRAYS]
        if self.shared_prefixes is not None:
            arrays += [getattr(self.shared_prefixes, name).numpy() for name in SHARED_TENSORS]
        return arrays


_ARRAYS = tuple(field.name for field in fields(Layout) if field.name != "shared_prefixes")
SHARED_TENSORS = tuple(field.name for field in fields(SharedPrefixes) if field.type in (Tensor, "Tensor"))


class Inputs(NamedTuple):
    """A Layout on the device, field by field."""

    tokens: Tensor
    continues: Tensor
    token_slots: Tensor
    positions: Tensor
    kv_indices: Tensor
    slots: Tensor
    query_starts: Tensor
    context_lengths: Tensor
    sample_indices: Tensor
    sample_slots: Tensor
    shared_prefixes: SharedPrefixes | None

    @classmethod
    def of(cls, layout: Layout, tensors: Sequence[Tensor]) -> "Inputs":
        """`tensors` are the layout's arrays on the device."""
        values: dict[str, Any] = dict(zip(_ARRAYS, tensors, strict=False))
        shared = layout.shared_prefixes
        if shared is not None:
            on_device: dict[str, Any] = dict(zip(SHARED_TENSORS, tensors[len(_ARRAYS) :], strict=True))
            shared = replace(shared, **on_device)
        return cls(**values, shared_prefixes=shared)


@dataclass(frozen=True)
class HostLengths:
    """What the host knows of the rows of a pass: their lengths, or, in a captured graph, bounds of them."""

    queries: tuple[int, ...]  # [R]
    contexts: tuple[int, ...]  # [R]
    is_captured: bool = False
    # [S] contexts of the sampled tokens; None: not to be told from the others, hidden states are computed of all T
    sampled: tuple[int, ...] | None = None

    @classmethod
    def of(cls, layout: Layout) -> "HostLengths":
        """The lengths themselves."""
        sampled = layout.positions[layout.sample_indices] + 1
        lengths = layout.query_lengths, layout.context_lengths, sampled
        queries, contexts, sampled_contexts = (tuple(array.tolist()) for array in lengths)
        return cls(queries, contexts, sampled=sampled_contexts)


class Slots:
    """The mirror, by row slot."""

    def __init__(
        self,
        limits: Limits,
        num_blocks: int,
        vocab_size: int,
        device: torch.device,
        min_shared_tokens: int | None = None,
        attention_backend: str | None = None,
    ) -> None:
        """Every slot is free. Block `num_blocks` of the pool is the scratch block, which no sequence owns.

        Prefixes that decoding rows share are looked for if they save reading `min_shared_tokens` tokens.
        `attention_backend`: see ForwardContext.
        """
        self.limits = limits
        self.num_blocks = num_blocks
        self.vocab_size = vocab_size
        self.device = device
        self.min_shared_tokens = min_shared_tokens
        self._attention_backend = attention_backend
        self._is_started = np.zeros(limits.max_rows, np.bool_)
        self._has_sampled = np.zeros(limits.max_rows, np.bool_)
        self._num_table_blocks = np.zeros(limits.max_rows, np.int64)
        # One slot more than there are, for rows that are padding: it has the scratch block everywhere.
        # The host's copy serves to find KV indices, the device's the attention kernels. On a CPU they are one.
        self._tables = np.zeros((limits.max_rows + 1, limits.max_blocks_per_row), np.int32)
        self._tables[self.padding_slot] = num_blocks
        shared = torch.from_numpy(self._tables)
        self.block_tables = shared if device.type == "cpu" else shared.to(device)
        self.last_tokens = torch.zeros(limits.max_rows + 1, dtype=torch.int64, device=device)

    @property
    def padding_slot(self) -> int:
        """The slot of rows that are padding."""
        return self.limits.max_rows

    @property
    def scratch_cell(self) -> int:
        """Where padding tokens store their keys and values."""
        return self.num_blocks * self.limits.block_size

    def clear(self) -> None:
        """Frees every slot."""
        self._is_started[:] = False

    def finish(self, slots: U32Array, step_id: int) -> None:
        """Frees slots."""
        self._check_slots(slots, step_id)
        self._is_started[slots] = False

    def start(self, slot: int, step_id: int) -> None:
        """A slot begins a sequence, with an empty block table."""
        self._check_slots(np.array([slot]), step_id)
        self._is_started[slot] = True
        self._has_sampled[slot] = False
        self._num_table_blocks[slot] = 0

    def extend(self, deltas: tuple[BlockTableDelta, ...], step_id: int) -> None:
        """Blocks that came to the tables of slots."""
        if not deltas:
            return
        self._check_slots(np.array([delta.slot for delta in deltas]), step_id)
        self._check_blocks(np.concatenate([delta.blocks for delta in deltas]), step_id)
        for delta in deltas:
            end = delta.start + delta.blocks.size
            if delta.start > self._num_table_blocks[delta.slot] or end > self.limits.max_blocks_per_row:
                raise InvalidStepError(
                    step_id,
                    f"block table of slot {delta.slot}: blocks {delta.start}..{end} do not continue its "
                    f"{self._num_table_blocks[delta.slot]} blocks, of at most {self.limits.max_blocks_per_row}",
                )
            self._tables[delta.slot, delta.start : end] = delta.blocks
            self._num_table_blocks[delta.slot] = max(end, self._num_table_blocks[delta.slot])
        if self.device.type != "cpu":
            self._upload_deltas(deltas)

    def lay_out(self, step: Step) -> Layout:
        """The rows of `step`, whose slots are up to date. Raises InvalidStepError."""
        slots, starts, lengths = (array.astype(np.int64) for array in (step.slots, step.positions, step.num_tokens))
        ends = starts + lengths  # context lengths
        self._check_rows(step, slots, ends)
        num_rows, num_tokens = slots.size, int(lengths.sum())

        query_starts = np.zeros(num_rows + 1, np.int64)
        np.cumsum(lengths, out=query_starts[1:])
        token_rows = np.repeat(np.arange(num_rows), lengths)
        token_slots = slots[token_rows]
        positions = np.arange(num_tokens) + (starts - query_starts[:-1])[token_rows]
        blocks = self._tables[token_slots, positions // self.limits.block_size]
        tokens = np.zeros(num_tokens, np.int64)
        is_given = step.has_tokens[token_rows]
        tokens[is_given] = step.tokens
        sampling = np.flatnonzero(step.samples)
        self._has_sampled[slots[sampling]] = True
        return Layout(
            tokens=tokens,
            continues=~is_given,
            token_slots=token_slots,
            positions=positions,
            kv_indices=blocks.astype(np.int64) * self.limits.block_size + positions % self.limits.block_size,
            slots=slots,
            query_starts=query_starts.astype(np.int32),
            context_lengths=ends.astype(np.int32),
            sample_indices=query_starts[sampling + 1] - 1,
            sample_slots=slots[sampling],
            shared_prefixes=self._shared_prefixes(slots, ends) if num_tokens == num_rows else None,
        )

    def _shared_prefixes(self, slots: I64Array, ends: I64Array) -> SharedPrefixes | None:
        if self.min_shared_tokens is None or int(ends.sum() - ends.max()) < self.min_shared_tokens:
            return None
        # Looked for among all slots, those without a row empty: copying the rows' tables would take longer.
        contexts = np.zeros(len(self._tables), np.int64)
        contexts[slots] = ends
        shared = SharedPrefixes.find(
            self._tables, contexts, self.limits.block_size, min_saved_tokens=self.min_shared_tokens
        )
        if shared is None:
            return None
        rows = torch.zeros(len(self._tables), dtype=torch.int32)
        rows[slots] = torch.arange(slots.size, dtype=torch.int32)
        return replace(
            shared,
            rows=rows[shared.rows],
            row_groups=shared.row_groups[slots],
            row_members=shared.row_members[slots],
        )

    def resolve(self, inputs: Inputs, lengths: HostLengths) -> tuple[Tensor, ForwardContext]:
        """Token ids [T] int64, and what the layers read: with what stands in the mirror on the device now."""
        token_ids = torch.where(inputs.continues, self.last_tokens[inputs.token_slots], inputs.tokens)
        longest = max(lengths.contexts)
        attention = AttentionMetadata(
            block_tables=self._block_tables(inputs.slots, longest),
            query_starts=inputs.query_starts,
            context_lengths=inputs.context_lengths,
            host_query_lengths=lengths.queries,
            host_context_lengths=lengths.contexts,
            num_queries=len(token_ids),
            max_query_length=max(lengths.queries),
            max_context_length=longest,
            is_captured=lengths.is_captured,
            shared_prefixes=inputs.shared_prefixes,
        )
        sampled = self._sampled_tokens(inputs, lengths)
        return token_ids, ForwardContext(attention, inputs.kv_indices, self._attention_backend, sampled)

    def _sampled_tokens(self, inputs: Inputs, lengths: HostLengths) -> SampledTokens | None:
        contexts = lengths.sampled
        if contexts is None or len(contexts) == len(inputs.tokens):
            return None
        indices, slots = inputs.sample_indices, inputs.sample_slots
        if not contexts:  # one at least: kernels want no empty tensors
            indices, slots, contexts = inputs.query_starts[-1:].long() - 1, inputs.slots[-1:], lengths.contexts[-1:]
        longest = max(contexts)
        attention = AttentionMetadata(
            block_tables=self._block_tables(slots, longest),
            query_starts=torch.arange(len(contexts) + 1, dtype=torch.int32, device=self.device),
            context_lengths=inputs.positions.index_select(0, indices).int() + 1,
            host_query_lengths=(1,) * len(contexts),
            host_context_lengths=contexts,
            num_queries=len(contexts),
            max_query_length=1,
            max_context_length=longest,
        )
        return SampledTokens(indices, attention)

    def _block_tables(self, slots: Tensor, longest: int) -> Tensor:
        """Of so many slots, [n, blocks of the longest context]."""
        return self.block_tables[:, : -(-longest // self.limits.block_size)].index_select(0, slots)

    def remember(self, slots: Tensor, tokens: Tensor) -> None:
        """`tokens` [S] int64 are what the slots [S] int64 continue with."""
        self.last_tokens.index_copy_(0, slots, tokens)

    def block_copies(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """Sources and destinations, [n] int64 each, of the step's copies; None without any."""
        if step.block_copies.size == 0:
            return None
        self._check_blocks(step.block_copies, step.id)
        sources, destinations = upload(list(step.block_copies.T.astype(np.int64, order="C")), self.device)
        return sources, destinations

    def _upload_deltas(self, deltas: tuple[BlockTableDelta, ...]) -> None:
        width = self.limits.max_blocks_per_row
        firsts = np.array([delta.slot * width + delta.start for delta in deltas], np.int64)
        lengths = np.array([delta.blocks.size for delta in deltas], np.int64)
        offsets = np.cumsum(lengths) - lengths
        cells = np.arange(int(lengths.sum())) + np.repeat(firsts - offsets, lengths)
        blocks = np.concatenate([delta.blocks for delta in deltas]).astype(np.int32)
        device_cells, device_blocks = upload((cells, blocks), self.device)
        self.block_tables.view(-1).index_copy_(0, device_cells, device_blocks)

    # === checks ===

    def _check_slots(self, slots: NDArray[Any], step_id: int) -> None:
        if slots.size > 0 and int(slots.max()) >= self.limits.max_rows:
            raise InvalidStepError(step_id, f"slot {slots.max()} is not below max_rows = {self.limits.max_rows}")

    def _check_blocks(self, blocks: U32Array, step_id: int) -> None:
        if blocks.size > 0 and int(blocks.max()) >= self.num_blocks:
            raise InvalidStepError(step_id, f"block {blocks.max()} is not below num_blocks = {self.num_blocks}")

    def _check_rows(self, step: Step, slots: I64Array, ends: I64Array) -> None:
        """Refuses rows that would read or write outside of what is theirs."""
        self._check_slots(slots, step.id)
        if slots.size == 0:
            raise InvalidStepError(step.id, "it has no rows")
        if np.unique(slots).size != slots.size:
            raise InvalidStepError(step.id, "a slot has two rows")
        if not self._is_started[slots].all():
            raise InvalidStepError(step.id, f"slots {slots[~self._is_started[slots]].tolist()} were not started")
        unsampled = slots[~step.has_tokens & ~self._has_sampled[slots]]
        if unsampled.size > 0:
            raise InvalidStepError(step.id, f"slots {unsampled.tolist()} continue, but have sampled nothing yet")
        too_long = ends > self._num_table_blocks[slots] * self.limits.block_size
        if too_long.any():
            raise InvalidStepError(step.id, f"slots {slots[too_long].tolist()} have too few blocks for their tokens")
        num_tokens = int(step.num_tokens.sum(dtype=np.int64))
        if num_tokens > self.limits.max_step_tokens:
            raise InvalidStepError(step.id, f"{num_tokens} tokens, but max_step_tokens = {self.limits.max_step_tokens}")
        if step.tokens.size > 0 and int(step.tokens.max()) >= self.vocab_size:
            raise InvalidStepError(step.id, f"token {step.tokens.max()} is not in a vocabulary of {self.vocab_size}")

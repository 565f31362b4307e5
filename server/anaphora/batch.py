"""From a step to the tensors of one forward pass.

A shard mirrors two things of each row slot, on the device: the block table, and the token sampled last. `Slots` keeps
them up to date by deltas; `Slots.gather` lays the rows of a step one after another:

    row            0           1   2                    (three rows: a chunk of 4, a decode, a chunk of 3)
    token_ids     [a b c d]   [x] [e f g]                x: what the slot sampled last, read on the device
    positions     [8 9 10 11] [5] [0 1 2]
    query_starts   0           4   5         8

All of it is numpy over whole arrays and one upload: no Python work per row. What a step says is checked before
anything of it reaches the device, where a bad index would be another sequence's memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from anaphora_kernels import AttentionMetadata
from numpy.typing import NDArray
from torch import Tensor

from anaphora.context import ForwardContext
from anaphora.errors import InvalidStepError
from anaphora.staging import upload
from anaphora.wire import BlockTableDelta, Limits, Step, U32Array

I64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """The inputs of one forward pass over T tokens in R rows, S of which sample."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    context: ForwardContext
    sample_indices: Tensor | None  # [S] int64: the tokens whose hidden states are sampled from; None: all T, in order
    sample_slots: I64Array  # [S], on the host
    device_sample_slots: Tensor  # [S] int64


class Slots:
    """The mirror, by row slot."""

    def __init__(self, limits: Limits, num_blocks: int, vocab_size: int, device: torch.device) -> None:
        """Every slot is free."""
        self.limits = limits
        self.num_blocks = num_blocks
        self.vocab_size = vocab_size
        self.device = device
        self._is_started = np.zeros(limits.max_rows, np.bool_)
        self._has_sampled = np.zeros(limits.max_rows, np.bool_)
        self._num_table_blocks = np.zeros(limits.max_rows, np.int64)
        # The host's copy serves to find KV indices, the device's the attention kernels. On a CPU they are one.
        self._tables = np.zeros((limits.max_rows, limits.max_blocks_per_row), np.int32)
        shared = torch.from_numpy(self._tables)
        self.block_tables = shared if device.type == "cpu" else shared.to(device)
        self.last_tokens = torch.zeros(limits.max_rows, dtype=torch.int64, device=device)

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
        for delta in deltas:
            self._check_slots(np.array([delta.slot]), step_id)
            end = delta.start + delta.blocks.size
            if delta.start > self._num_table_blocks[delta.slot] or end > self.limits.max_blocks_per_row:
                raise InvalidStepError(
                    step_id,
                    f"block table of slot {delta.slot}: blocks {delta.start}..{end} do not continue its "
                    f"{self._num_table_blocks[delta.slot]} blocks, of at most {self.limits.max_blocks_per_row}",
                )
            self._check_blocks(delta.blocks, step_id)
            self._tables[delta.slot, delta.start : end] = delta.blocks
            self._num_table_blocks[delta.slot] = max(end, self._num_table_blocks[delta.slot])
        if deltas and self.device.type != "cpu":
            self._upload_deltas(deltas)

    def gather(self, step: Step) -> Batch:
        """The rows of `step` as tensors; their slots are up to date. Raises InvalidStepError."""
        slots, starts, lengths = (array.astype(np.int64) for array in (step.slots, step.positions, step.num_tokens))
        ends = starts + lengths  # context lengths
        self._check_rows(step, slots, ends)
        num_rows, num_tokens = slots.size, int(lengths.sum())

        query_starts = np.zeros(num_rows + 1, np.int64)
        np.cumsum(lengths, out=query_starts[1:])
        token_rows = np.repeat(np.arange(num_rows), lengths)
        positions = np.arange(num_tokens) + (starts - query_starts[:-1])[token_rows]
        blocks = self._tables[slots[token_rows], positions // self.limits.block_size]
        kv_indices = blocks.astype(np.int64) * self.limits.block_size + positions % self.limits.block_size

        given = np.zeros(num_tokens, np.int64)
        is_given = step.has_tokens[token_rows]
        given[is_given] = step.tokens
        continued = np.flatnonzero(~step.has_tokens)  # rows whose input is the token that they sampled last
        sampling = np.flatnonzero(step.samples)
        sample_slots = slots[sampling]

        (token_ids, device_positions, device_indices, device_slots, device_starts, device_ends) = upload(
            (given, positions, kv_indices, slots, query_starts.astype(np.int32), ends.astype(np.int32)), self.device
        )
        (last_indices, device_sample_slots, continued_at, continued_slots) = upload(
            (query_starts[sampling + 1] - 1, sample_slots, query_starts[continued], slots[continued]), self.device
        )
        if continued.size > 0:
            token_ids.index_copy_(0, continued_at, self.last_tokens[continued_slots])

        self._has_sampled[sample_slots] = True
        max_context_length = int(ends.max())
        max_blocks = -(-max_context_length // self.limits.block_size)
        attention = AttentionMetadata(
            block_tables=self.block_tables[:, :max_blocks].index_select(0, device_slots),
            query_starts=device_starts,
            context_lengths=device_ends,
            host_query_lengths=tuple(lengths.tolist()),
            host_context_lengths=tuple(ends.tolist()),
            num_queries=num_tokens,
            max_query_length=int(lengths.max()),
            max_context_length=max_context_length,
        )
        return Batch(
            token_ids=token_ids,
            positions=device_positions,
            context=ForwardContext(attention, device_indices),
            sample_indices=None if sampling.size == num_tokens else last_indices,
            sample_slots=sample_slots,
            device_sample_slots=device_sample_slots,
        )

    def remember(self, batch: Batch, tokens: Tensor) -> None:
        """`tokens` [S] int64 are what the batch's sampling rows continue with."""
        self.last_tokens.index_copy_(0, batch.device_sample_slots, tokens)

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

"""The largest step that a router may send under given limits: what the warm-up runs."""

import sys
from typing import Final

import numpy as np

from anaphora.wire import BlockTableDelta, Limits, RowStart, Sampling, Step

# Every stage of sampling at once: whatever a request asks for later, its memory has been counted.
_EVERYTHING: Final = Sampling(
    temperature=1.0,
    top_k=40,
    top_p=0.9,
    min_p=0.01,
    typical_p=0.9,
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    presence_penalty=0.1,
    bias_tokens=np.zeros(1, np.uint32),
    bias_values=np.zeros(1, np.float32),
    num_top_logprobs=5,
    min_new_tokens=1,
    stop_tokens=np.zeros(1, np.uint32),
)


def warm_up_step(limits: Limits, *, longest_context: bool, num_blocks: int = sys.maxsize) -> tuple[Step, int]:
    """A step of `max_step_tokens` tokens in as many rows as can be, and the number of blocks of the pool that it uses.

    That is at most `num_blocks`.

    The first row takes all tokens that the others, with one each, leave over. With `longest_context` every row ends at
    `max_context`. Tables repeat a few blocks: what is computed does not matter.
    """
    num_rows = min(limits.max_rows, limits.max_step_tokens)
    lengths = np.ones(num_rows, np.uint32)
    lengths[0] = min(limits.max_step_tokens - (num_rows - 1), limits.max_context)
    num_blocks = min(-(-int(lengths[0]) // limits.block_size), num_blocks)
    ends = np.full(num_rows, limits.max_context, np.uint32) if longest_context else lengths
    tables = tuple(
        BlockTableDelta(slot, 0, np.arange(-(-int(end) // limits.block_size), dtype=np.uint32) % num_blocks)
        for slot, end in enumerate(ends)
    )
    step = Step(
        id=0,
        started=tuple(RowStart(slot, _EVERYTHING) for slot in range(num_rows)),
        block_tables=tables,
        slots=np.arange(num_rows, dtype=np.uint32),
        positions=ends - lengths,
        num_tokens=lengths,
        samples=np.ones(num_rows, np.bool_),
        has_tokens=np.ones(num_rows, np.bool_),
        tokens=np.zeros(int(lengths.sum()), np.uint32),
    )
    return step, num_blocks

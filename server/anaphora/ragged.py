"""Lists of different lengths, one for each slot, of which many are wanted at once: no Python work per slot.

The items of all lists lie one after another:

    slot   0: [a b]   1: []   2: [c d e]            gather([2, 0]) -> rows [0 0 0 1 1], items [c d e a b]
    items  [a b c d e]   starts [0 2 2]   counts [2 0 3]
"""

import numpy as np
from numpy.typing import NDArray

I64Array = NDArray[np.int64]


class Ragged:
    """Tokens with a value each, by slot."""

    def __init__(self, num_slots: int) -> None:
        """Empty lists."""
        self._starts = np.zeros(num_slots, np.int64)
        self._counts = np.zeros(num_slots, np.int64)
        self._tokens = np.zeros(0, np.int64)
        self._values = np.zeros(0, np.float32)

    def set(self, slot: int, tokens: I64Array, values: NDArray[np.float32]) -> None:
        """Another list for `slot`: both [n]."""
        if tokens.size == 0 and self._counts[slot] == 0:
            return
        self._counts[slot] = 0
        slots = np.flatnonzero(self._counts)
        _, others, values_of_others = self.gather(slots)
        self._counts[slot] = tokens.size
        self._starts[slots] = np.cumsum(self._counts[slots]) - self._counts[slots]
        self._starts[slot] = others.size
        self._tokens = np.concatenate([others, tokens])
        self._values = np.concatenate([values_of_others, values])

    def gather(self, slots: I64Array) -> tuple[I64Array, I64Array, NDArray[np.float32]]:
        """The lists of `slots` one after another: for each item the index into `slots`, its token and its value."""
        counts = self._counts[slots]
        rows = np.repeat(np.arange(slots.size), counts)
        items = np.arange(rows.size) + np.repeat(self._starts[slots] - np.cumsum(counts) + counts, counts)
        return rows, self._tokens[items], self._values[items]

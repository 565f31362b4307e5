"""Lists by slot, against a dict of lists."""

import numpy as np
from anaphora.ragged import Ragged
from hypothesis import given
from hypothesis import strategies as st

SLOTS = 5
LISTS = st.lists(st.integers(0, 1 << 40), max_size=6)


@given(
    st.lists(st.tuples(st.integers(0, SLOTS - 1), LISTS), max_size=20),
    st.lists(st.integers(0, SLOTS - 1), max_size=8),
)
def test_gathers_what_was_set_last(changes: list[tuple[int, list[int]]], slots: list[int]) -> None:
    ragged = Ragged(SLOTS)
    expected: list[list[int]] = [[] for _ in range(SLOTS)]
    for slot, tokens in changes:
        ragged.set(slot, np.array(tokens, np.int64), np.array(tokens, np.float32) / 2)
        expected[slot] = tokens
    rows, tokens, values = ragged.gather(np.array(slots, np.int64))
    assert rows.tolist() == [row for row, slot in enumerate(slots) for _ in expected[slot]]
    assert tokens.tolist() == [token for slot in slots for token in expected[slot]]
    np.testing.assert_array_equal(values, tokens.astype(np.float32) / 2)

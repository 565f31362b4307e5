"""SharedPrefixes.find against comparing every block of every row."""

from itertools import groupby, pairwise

import numpy as np
import pytest
from anaphora_kernels import SharedPrefixes
from hypothesis import given
from hypothesis import strategies as st

BLOCK = 4


def tables_of(paths: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a random trie: equal beginnings are equal blocks, and a block has one history. Contexts end anywhere."""
    ids: dict[tuple[int, ...], int] = {}
    width = max(len(path) for path in paths)
    tables = np.full((len(paths), width), 1 << 20, np.int32)  # what lies past a context is out of range
    for row, path in enumerate(paths):
        for depth in range(len(path)):
            tables[row, depth] = ids.setdefault(tuple(path[: depth + 1]), len(ids))
    contexts = np.array([BLOCK * len(path) - row % BLOCK for row, path in enumerate(paths)])
    return tables, contexts


PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)


@given(PATHS)
def test_a_group_shares_what_it_says_and_no_row_is_in_two(paths: list[list[int]]) -> None:
    tables, contexts = tables_of(paths)
    found = SharedPrefixes.find(tables, contexts, BLOCK, min_saved_tokens=1)
    firsts = [row[0] for row, context in zip(tables, contexts, strict=True) if context > BLOCK]
    if found is None:
        assert len(set(firsts)) == len(firsts)
        return
    rows, starts, lengths = found.rows.tolist(), found.group_starts.tolist(), found.lengths.tolist()
    assert len(set(rows)) == len(rows) == starts[-1]
    for group, (start, stop) in enumerate(pairwise(starts)):
        members = rows[start:stop]
        assert len(members) >= 2
        blocks = lengths[group] // BLOCK
        assert lengths[group] == blocks * BLOCK > 0
        assert len({tuple(tables[row, :blocks]) for row in members}) == 1
        assert all(contexts[row] > lengths[group] for row in members)
        # … and not less than it could.
        longer = blocks + 1
        assert (
            any(contexts[row] <= longer * BLOCK for row in members)
            or len({tables[row, longer - 1] for row in members}) > 1
        )
        for member, row in enumerate(members):
            assert (found.row_groups[row], found.row_members[row]) == (group, member)
    assert found.max_length == max(lengths)
    assert (found.row_groups >= 0).sum() == len(rows)


def test_the_longer_shared_prefix_wins_over_the_system_prompt_that_all_share() -> None:
    document, other = [0] + [1] * 50, [0] + [2] * 20
    paths = [[*document, row] for row in range(5)] + [[*other, row] for row in range(2)] + [[0, 9, 9]]
    found = SharedPrefixes.find(*tables_of(paths), BLOCK, min_saved_tokens=1)
    assert found is not None
    groups = [[row for row, _ in rows] for _, rows in groupby(enumerate(found.row_groups.tolist()), key=lambda x: x[1])]
    assert groups[0] == [0, 1, 2, 3, 4]
    assert int(found.lengths[0]) == 51 * BLOCK


@pytest.mark.parametrize("min_saved_tokens", [3 * BLOCK, 3 * BLOCK + 1])
def test_little_sharing_does_not_pay(min_saved_tokens: int) -> None:
    tables, contexts = tables_of([[1, 2, 3, 4], [1, 2, 3, 5]])
    found = SharedPrefixes.find(tables, contexts, BLOCK, min_saved_tokens=min_saved_tokens)
    assert (found is not None) == (min_saved_tokens == 3 * BLOCK)

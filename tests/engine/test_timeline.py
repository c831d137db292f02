"""The timeline's bins against overlaps worked out one bin at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.compiled.timeline import BINS, TRACKS, add, new_timeline

times_s = st.integers(0, 10**9).map(lambda picoseconds: picoseconds * 1e-12)


@given(
    st.lists(
        st.tuples(st.integers(0, TRACKS - 1), times_s, times_s, st.integers(0, 10**9)), max_size=20
    )
)
def test_every_amount_lies_where_it_was(moves):
    bins, bins_per_s = new_timeline()
    for track, one_s, other_s, amount in moves:
        add(bins, bins_per_s, track, min(one_s, other_s), max(one_s, other_s), amount)
    edges_s = np.arange(BINS + 1) / bins_per_s[0]
    expected = np.zeros((TRACKS, BINS))
    for track, one_s, other_s, amount in moves:
        start_s, end_s = min(one_s, other_s), max(one_s, other_s)
        if start_s == end_s:
            expected[track, np.searchsorted(edges_s, end_s, side="right") - 1] += amount
        else:
            overlap_s = np.diff(np.clip(edges_s, start_s, end_s))
            expected[track] += amount * overlap_s / (end_s - start_s)
    assert all(end_s < edges_s[-1] for _, *span_s, _ in moves for end_s in span_s)
    total = sum(amount for *_, amount in moves)
    np.testing.assert_allclose(bins, expected, rtol=1e-9, atol=1e-9 * total)

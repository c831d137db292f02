"""Mutated files of every kind are refused in one line, or taken and sound."""

from tests.fuzz.run import fuzz


def test_nothing_breaks_it():
    tally, faults = fuzz(300, seed=1)
    assert not faults, "\n".join(faults[:5])
    assert {outcome for _, outcome in tally} == {"accepted", "refused"}

"""What is said of records below a table."""

from sim import simulate
from sim.report.notes import notes

WORKLOAD = {"seq_len": 512, "batch": 1, "heads": 2, "head_dim": 64, "dtype": "fp16"}


def test_bytes_of_a_device_whose_dies_have_caches_of_their_own_are_said_not_to_be_trusted():
    apart, shared = (
        simulate(workload=WORKLOAD, hardware=device, schedule="flash2")
        for device in ("mi300x", "h100-sxm")
    )
    (line,) = (told for told in notes([*apart, *shared, *apart]) if "dies" in told)
    assert line.startswith("mi300x: each of its 8 dies has a cache of its own")

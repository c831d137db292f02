"""Many GPUs that send to each other for many tokens are refused before a program is made."""

import pytest

from sim.inputs.files import InputError
from sim.runs.scenario import make_scenario


@pytest.mark.parametrize("schedule", ["ring", "tensor_parallel", "tree_decoding"])
@pytest.mark.parametrize(("gpus", "tokens"), [(8, 16_384), (256, 2), (1024, 1), (10**9, 1)])
def test_more_than_a_list_holds_is_refused(schedule: str, gpus: int, tokens: int) -> None:
    """Every token is sent round all GPUs, each time a command; in one line."""
    workload = {"heads": 256, "head_dim": 64, "phase": "decode", "seq_len": 4096, "tokens": tokens}
    tables = {
        "workload": workload,
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": schedule, "gpus": gpus}],
    }
    with pytest.raises(InputError, match=r"gpus.*at most") as refused:
        program(tables)
    assert "\n" not in str(refused.value)


def program(tables):
    (point,) = make_scenario(tables, "vast", "vast.toml").points
    (only,) = point.schedules
    return only.program(point.workload, point.hardware)

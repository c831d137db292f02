"""Addresses of a store: alike where the figures are, whatever else a scenario says."""

import numpy as np

from sim.runs.address import address
from sim.runs.scenario import make_scenario

TABLES = {
    "workload": {"heads": 4, "head_dim": 64, "seq_len": 1024, "causal": True},
    "hardware": {"profile": "h100-sxm"},
    "schedule": [{"name": "flash2"}],
}


def address_of(folder=None, engine="replay", **changes):
    scenario = make_scenario({**TABLES, **changes}, "x", "x", folder)
    point = scenario.points[0]
    return address(point, point.schedules[0], engine, scenario.limits)


def test_an_address_tells_figures_apart_and_nothing_else(tmp_path):
    (tmp_path / "twin.toml").write_text('title = "Other name"\nextends = "h100-sxm"\n')
    (tmp_path / "other.toml").write_text(
        'extends = "h100-sxm"\n[l2]\ncapacity = "51 MB"\nsource = "x"\n'
    )
    same = [
        address_of(),
        address_of(schedule=[{"name": "flash2", "label": "mine"}]),
        address_of(tmp_path, hardware={"profile": "twin.toml"}),
        address_of(sweep={"workload.seq_len": [1024]}),
        address_of(limits={"tile_steps": 7}),
    ]
    differing = [
        address_of(tmp_path, hardware={"profile": "other.toml"}),
        address_of(engine="reference"),
        address_of(limits={"exact": True}),
        address_of(limits={"replayed_steps": 10**6}),
        address_of(schedule=[{"name": "flash2", "stages": 3}]),
        address_of(workload={**TABLES["workload"], "batch": 2}),
    ]
    assert len({*same}) == 1
    assert len({*same, *differing}) == 1 + len(differing)


def test_a_file_that_a_schedule_reads_counts_by_its_content(tmp_path):
    def of(mask):
        np.savez(tmp_path / "mask.npz", mask)
        return address_of(tmp_path, schedule=[{"name": "block_sparse", "mask_file": "mask.npz"}])

    assert of(np.eye(8)) == of(np.eye(8)) != of(np.ones((8, 8)))

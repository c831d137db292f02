"""Kinds of input: the files to start from, and what takes one of a kind."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from sim import simulate
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.runs import results_file
from sim.runs.scenario import read_scenario
from sim.runs.store import Entry, Store
from sim.schedules.base import blocks
from sim.schedules.parts.masks import read_mask
from validate.campaign import load_campaign
from validate.figures import read_figures
from validate.measurement import load_measurements

SMALL = {"heads": 2, "head_dim": 64, "seq_len": 512}


@dataclass(frozen=True)
class Kind:
    """Files of a kind, and what takes one: it raises InputError unless the answer is sound."""

    suffix: str
    files: list[bytes]
    take: Callable[[Path], object]


def _of(package: str) -> list[bytes]:
    return [f.read_bytes() for f in resources.files(package).iterdir() if f.name.endswith(".toml")]


def _scenario(path: Path) -> None:
    text = read_scenario(str(path))
    if "schedule" in text.data:
        for point in text.scenario().points[:2]:
            for schedule in point.schedules:
                schedule.program(point.workload, point.hardware)


def _results(path: Path) -> None:
    results_file.dumps(results_file.load(path))


def _store(path: Path) -> None:
    store = Store(path)
    found = store.get("one", "")
    store.close()
    assert found in (None, "{}"), "a damaged record was given back"


def _mask(path: Path) -> None:
    workload = WorkloadTable(**SMALL).workload()
    tile, visits = read_mask(path, workload)
    assert not len(visits.table) or visits.table.max() < blocks(workload.seq_kv, tile.kv)


def _profile(path: Path) -> None:
    load_profile(str(path)).model_dump_json()


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind; some of their files are made in `folder`."""
    made = simulate(workload=SMALL, hardware="h100-sxm", schedule="flash2")
    results_file.save(list(made), folder / "results.json")
    store = Store(folder / "kept.sqlite")
    store.put([Entry("one", "{}")])
    store.close()
    mask = io.BytesIO()
    np.savez(mask, indptr=np.arange(5), indices=np.arange(4), tile=np.array([128, 128]))
    measured = {
        "format": "attnsim measurements 1",
        "title": "made",
        "taken": "2026-01-01",
        "device": {"name": "NVIDIA H100 80GB HBM3"},
        "points": [asdict(made[0])],
    }
    published = resources.files("validate.measurements.published") / "attention.csv"
    figures = b"\n".join(published.read_bytes().split(b"\n")[:1]) + b"\n"
    return {
        "scenario": Kind(".toml", _of("scenarios"), _scenario),
        "profile": Kind(".toml", _of("hw_profiles"), _profile),
        "results": Kind(".json", [(folder / "results.json").read_bytes()], _results),
        "store": Kind(".sqlite", [(folder / "kept.sqlite").read_bytes()], _store),
        "mask": Kind(".npz", [mask.getvalue()], _mask),
        "measurements": Kind(".json", [json.dumps(measured).encode()], load_measurements),
        "figures": Kind(".csv", [figures + b"a,1,2\n"], lambda p: read_figures([p])),
        "campaign": Kind(".toml", _of("validate.campaigns"), lambda p: load_campaign(str(p))),
    }

"""Kinds of input: the files to start from, and what takes one of a kind."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from sim import simulate
from sim.cli.kinds import kind_of, question_of
from sim.explore.search import Search
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.hub_config import read_config
from sim.inputs.workload import WorkloadTable
from sim.machine_code.kernel import kernels_of_file
from sim.runs import results_file
from sim.runs.scenario import ScenarioText, read_scenario
from sim.runs.store import Entry, Store
from sim.schedules.base import blocks
from sim.schedules.parts.masks import read_mask
from sim.web.app import app_of
from sim.web.explorer import Explorer
from tests.support.fat_library import entry, fatbin, library
from tests.support.limits import progress_is_shown
from tests.support.made_cubin import cubin
from tests.support.page_requests import bodies
from tests.support.tables_of_figures import write
from validate.campaign import load_campaign
from validate.figures import read_figures
from validate.measurement import FORMAT, load_measurements

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
    kind = kind_of(text.data)
    if kind == "search":
        Search(text)
    elif kind != "scenario":
        question_of(text)
    else:
        for point in text.scenario().points[:2]:
            for schedule in point.schedules:
                schedule.program(point.workload, point.hardware)
                progress_is_shown()


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


def _model(path: Path) -> None:
    shape = read_config(path)
    assert shape.parameters >= shape.active_parameters > 0


def _cubin(path: Path) -> None:
    for kernel in kernels_of_file(path):
        assert kernel.sram_bytes >= 0


def _measured(path: Path) -> None:
    for point in load_measurements(path).points:
        point.workload.workload()
        point.parsed_schedule(str(path))


def _requests(folder: Path) -> Kind:
    """What the explorer's page asks; a request is refused with status 400, which is no fault."""
    tables = {"workload": SMALL, "hardware": {"profile": "t4"}, "schedule": [{"name": "flash2"}]}
    explorer = Explorer(ScenarioText(tables, "fuzzed", "a test", folder), folder / "written")
    app = app_of(explorer)
    client = app.server.test_client()

    def take(path: Path) -> None:
        answer = client.post(
            "/_dash-update-component",
            base_url="http://127.0.0.1",
            data=path.read_bytes(),
            content_type="application/json",
        )
        if answer.status_code in (400, 413):
            raise InputError(answer.get_data(as_text=True).rstrip("\n"))
        assert answer.status_code in (200, 204), f"status {answer.status_code}"

    return Kind(".json", [json.dumps(body).encode() for body in bodies(app, explorer)], take)


def _profile(path: Path) -> None:
    load_profile(str(path)).model_dump_json()


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind; some of their files are made in `folder`."""
    made = simulate(workload=SMALL, hardware="h100-sxm", schedule="flash2")
    # What these compile is no case's time.
    simulate(workload=SMALL | {"causal": True}, hardware="h100-sxm", schedule=["hip", "flash3"])
    results_file.save(list(made), folder / "results.json")
    store = Store(folder / "kept.sqlite")
    store.put([Entry("one", "{}")])
    store.close()
    mask = io.BytesIO()
    np.savez(mask, indptr=np.arange(5), indices=np.arange(4), tile=np.array([128, 128]))
    measured = {
        "format": FORMAT,
        "title": "made",
        "taken": "2026-01-01",
        "device": {"name": "NVIDIA H100 80GB HBM3", "profile": "h100-sxm"},
        "micro": [{"name": "hbm_read", "unit": "B/s", "samples": [2.9e12, 3e12]}],
        "points": [
            {
                "runner": "attnsim",
                "family": "flash",
                "split": split,
                "workload": SMALL,
                "schedule": {"name": "flash2"},
                "cold_s": [1e-5, 1.1e-5],
            }
            for split in ("train", "test")
        ],
    }
    rows = ({"split": split, "kernel": kernel} for split in ("fit", "test") for kernel in ("fa3",))
    figures = write(folder / "figures.csv", {}, *rows).read_bytes()
    model = {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    }
    experts = model | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    cubins = [cubin(), library(fatbin(entry(cubin(), 90), entry(cubin("other", 80), 80)))]
    return {
        "scenario": Kind(".toml", _of("scenarios"), _scenario),
        "profile": Kind(".toml", _of("hw_profiles"), _profile),
        "results": Kind(".json", [(folder / "results.json").read_bytes()], _results),
        "store": Kind(".sqlite", [(folder / "kept.sqlite").read_bytes()], _store),
        "mask": Kind(".npz", [mask.getvalue()], _mask),
        "measurements": Kind(".json", [json.dumps(measured).encode()], _measured),
        "figures": Kind(".csv", [figures], lambda p: read_figures([p])),
        "model": Kind(".json", [json.dumps(one).encode() for one in (model, experts)], _model),
        "cubin": Kind(".cubin", cubins, _cubin),
        "request": _requests(folder),
        "campaign": Kind(".toml", _of("validate.campaigns"), lambda p: load_campaign(str(p))),
    }

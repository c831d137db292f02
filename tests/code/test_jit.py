"""How what Python calls is compiled, kept and linked: also where nothing can be kept."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import pytest

from sim.code import jit
from sim.code.jit import Entry, Inner
from sim.inputs.files import InputError

RECORD = np.dtype([("count", "i8"), ("share", "f8")], align=True)


class Table(NamedTuple):
    """As a kernel's: arrays of several kinds, one in a tuple of its own."""

    records: np.ndarray
    matrix: np.ndarray
    inside: tuple[np.ndarray]


@Inner
def more(number, by):
    return number + by


def changed(table, number, seed):
    for k in range(table.matrix.shape[0]):
        for m in range(table.matrix.shape[1]):
            table.matrix[k, m] = more(10 * k + m, number)
    table.records[1].count += number
    table.inside[0][0] = seed >> np.uint64(1)
    return table.records[1].count > 0


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where compiled code is kept."""
    monkeypatch.setattr(jit, "folder_beside", lambda _: tmp_path)
    return tmp_path


@pytest.fixture
def table() -> Table:
    return Table(np.zeros(2, RECORD), np.zeros((2, 3), np.int64), (np.zeros(1, np.uint64),))


def check(entry: Entry, table: Table) -> None:
    for array in (table.records, table.matrix, table.inside[0]):
        array[:] = np.zeros((), array.dtype)
    assert entry(table, -5, np.uint64(2**64 - 1)) is False
    assert entry(table, 7, np.uint64(2**64 - 1)) is True
    assert table.matrix.tolist() == [[7, 8, 9], [17, 18, 19]]
    assert table.records["count"].tolist() == [0, 2]
    assert table.inside[0][0] == 2**63 - 1


def test_an_entry_does_what_its_python_does_compiled_kept_and_damaged(folder, table, monkeypatch):
    compiled = []
    entry_compiles = Entry._compiled
    monkeypatch.setattr(
        Entry, "_compiled", lambda *given: compiled.append(1) or entry_compiles(*given)
    )
    check(Entry(changed), table)
    (file,) = folder.glob("test_jit.changed-*.o")
    assert Entry(changed).is_kept
    check(Entry(changed), table)
    assert len(compiled) == 1
    file.write_bytes(file.read_bytes()[:-1])
    check(Entry(changed), table)
    assert len(compiled) == 2
    assert [*folder.iterdir()] == [file]


def test_it_is_compiled_as_numba_does_by_itself_or_not_at_all(folder, table, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / ".numba_config.yaml").write_text("cpu_name: another")
    with pytest.raises(InputError, match=r"\.numba_config\.yaml: .* start in another"):
        check(Entry(changed), table)
    (folder / ".numba_config.yaml").unlink()
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(InputError, match="NUMBA_DISABLE_JIT is set"):
        check(Entry(changed), table)
    monkeypatch.undo()
    assert [*folder.iterdir()] == []


def test_other_arguments_are_compiled_for_themselves(folder, table):
    entry = Entry(changed)
    check(entry, table)
    check(entry, table._replace(matrix=np.zeros((3, 2), np.int64).T))
    assert len([*folder.iterdir()]) == 2


def test_where_no_folder_can_be_written_to_an_entry_is_compiled_without_a_cache(table, monkeypatch):
    monkeypatch.setattr(jit, "folder_beside", lambda _: None)
    entry = Entry(changed)
    check(entry, table)
    assert entry.folder is None
    assert not entry.is_kept


def test_a_replay_that_is_compiled_loads_no_numba():
    code = (
        "import sys; from sim import simulate; "
        "simulate(workload={'heads': 1, 'head_dim': 64, 'seq_len': 64}, "
        "hardware={'profile': 'h100-sxm'}, schedule='flash2'); "
        "sys.exit('numba' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

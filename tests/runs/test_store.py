"""A store gives back what was put there or, of what was damaged since, nothing."""

import sqlite3

import pytest

from sim.inputs.files import InputError
from sim.runs import store as stores
from sim.runs.store import Entry, Store

RECORD = '{"time_s": 0.00125}'
DAMAGE = {
    "a digit": "record = replace(record, '125', '135')",
    "cut": "record = substr(record, 1, 5)",
    "no UTF-8": "record = CAST(x'ff00fe' AS TEXT)",
    "another type": "record = 3.5",
    "other limits": "limits = ''",
    "no checksum": "checksum = 0",
}


def kept(path):
    store = Store(path)
    store.put([Entry("one", RECORD, "small"), Entry("two", RECORD)])
    store.close()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_left_out_told_and_written_anew(tmp_path, damage):
    path = tmp_path / "sweeps.sqlite"
    kept(path)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE records SET {DAMAGE[damage]} WHERE key = 'one'")
    store = Store(path)
    assert store.get("one", "small") is None
    assert store.damaged == {"one"}
    assert store.get("two", "") == RECORD
    store.put([Entry("one", RECORD)])
    assert store.get("one", "") == RECORD


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "sweeps.sqlite"
    kept(path)
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"sweeps\.sqlite: (not a store of sweeps|cannot be read)"):
        Store(path).get("one", "small")


def test_a_store_that_cannot_be_written_to_can_be_read(tmp_path, monkeypatch):
    path = tmp_path / "sweeps.sqlite"
    kept(path)
    monkeypatch.setattr(stores, "_writable", lambda _: False)  # as root may write anything
    store = Store(path)
    assert store.get("two", "") == RECORD
    with pytest.raises(InputError, match="cannot be written to"):
        store.put([Entry("three", RECORD)])


def test_an_address_is_the_first_to_claim_it(tmp_path, monkeypatch):
    one, other = Store(tmp_path / "store"), Store(tmp_path / "store")
    assert one.claim(Entry("search", "mine")) == "mine"
    too_early = [None]  # asked before the first had written
    monkeypatch.setattr(
        other, "get", lambda *key: too_early.pop() if too_early else Store.get(other, *key)
    )
    assert other.claim(Entry("search", "another's")) == "mine"

"""Where the finished points of sweeps lie: one SQLite file, a row a point under its address.

The file is in WAL mode, and every write a transaction: a killed sweep leaves what it had finished,
whole. Several sweeps may share one store, also at the same time. Each record has a checksum: one
that was damaged is as if it were not there, and is counted. A file that cannot be written to can
still be read.
"""

import os
import sqlite3
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from sim.inputs.files import InputError

_APPLICATION = 0x61747473  # tells a store from other SQLite files: "atts"
_DAMAGED = (sqlite3.Error, UnicodeError)  # whose own names may be no text
_BUSY_S = 60.0  # to wait for another sweep's write


class Entry(NamedTuple):
    """A record as JSON, under its address; one that failed for `limits` holds for these alone."""

    key: str
    record: str
    limits: str = ""


def _writable(path: Path) -> bool:
    """Whether the file may be written to, and its log beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _checksum(*parts: bytes) -> bytes:
    """Of an entry: its key, record and limits."""
    return sha256(b"\0".join(parts)).digest()


class Store:
    """Records by address; in memory without a path."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or make the file; raises InputError where that cannot be."""
        self.where = str(path) if path else ":memory:"
        self.damaged: set[str] = set()  # addresses whose records are not what was written
        try:
            if path and os.path.isfile(path) and not _writable(path):
                # Its log cannot be made either: it is read as it lies.
                name = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
                self._db = sqlite3.connect(name, uri=True)
                self._check()
            else:
                self._db = sqlite3.connect(self.where, timeout=_BUSY_S)
                self._prepare()
        except _DAMAGED as error:
            raise InputError(f"{self.where}: not a store of sweeps: {error}") from None

    def _check(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != _APPLICATION:
            raise InputError(f"{self.where}: not a store of sweeps, but another SQLite file")

    def _prepare(self) -> None:
        self._check()
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # in WAL mode safe but for a power cut
        with self._db:
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, record TEXT NOT NULL,"
                " limits TEXT NOT NULL, checksum BLOB NOT NULL)"
            )

    def get(self, key: str, limits: str) -> str | None:
        """The record at an address, unless it failed for other limits than these or is damaged.

        Raises InputError where the file as such is.
        """
        query = (
            "SELECT CAST(record AS BLOB), CAST(limits AS BLOB), checksum FROM records"
            " WHERE key = ? AND CAST(limits AS BLOB) IN (x'', ?)"
        )
        try:
            row = self._db.execute(query, (key, limits.encode())).fetchone()
        except _DAMAGED as error:
            raise InputError(f"{self.where}: cannot be read: {error}") from None
        if row is None:
            return None
        record, its_limits, checksum = row
        if checksum != _checksum(key.encode(), record, its_limits):
            self.damaged.add(key)
            return None
        return str(record, "utf-8")

    def put(self, entries: Iterable[Entry]) -> None:
        """Keep the records, all or none of them; raises InputError where the disk is full."""
        self._write("REPLACE", entries)

    def claim(self, entry: Entry) -> str | None:
        """The record at an address: this one, unless another process was there first.

        Raises InputError.
        """
        found = self.get(entry.key, entry.limits)
        if found is None:
            self._write("REPLACE" if entry.key in self.damaged else "IGNORE", [entry])
            found = self.get(entry.key, entry.limits)
        return found

    def _write(self, or_else: str, entries: Iterable[Entry]) -> None:
        try:
            with self._db:
                self._db.executemany(
                    f"INSERT OR {or_else} INTO records VALUES (?, ?, ?, ?)",
                    ((*entry, _checksum(*(part.encode() for part in entry))) for entry in entries),
                )
        except _DAMAGED as error:
            raise InputError(f"{self.where}: cannot be written to: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

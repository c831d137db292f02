"""Where the finished points of sweeps lie: one SQLite file, a row a point under its address.

The file is in WAL mode, and every write a transaction: a killed sweep leaves what it had finished,
whole. Several sweeps may share one store, also at the same time.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sim.inputs.files import InputError

_APPLICATION = 0x61747473  # tells a store from other SQLite files: "atts"
_BUSY_S = 60.0  # to wait for another sweep's write


class Entry(NamedTuple):
    """A record as JSON, under its address; one that failed for `limits` holds for these alone."""

    key: str
    record: str
    limits: str = ""


class Store:
    """Records by address; in memory without a path."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or make the file; raises InputError where that cannot be."""
        self.where = str(path) if path else ":memory:"
        try:
            self._db = sqlite3.connect(self.where, timeout=_BUSY_S)
            self._prepare()
        except sqlite3.Error as error:
            raise InputError(f"{self.where}: not a store of sweeps: {error}") from None

    def _prepare(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != _APPLICATION:
            raise InputError(f"{self.where}: not a store of sweeps, but another SQLite file")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # in WAL mode safe but for a power cut
        with self._db:
            self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS points"
                " (key TEXT PRIMARY KEY, record TEXT NOT NULL, limits TEXT NOT NULL)"
            )

    def get(self, key: str, limits: str) -> str | None:
        """The record at an address, unless it failed for other limits than these."""
        query = "SELECT record FROM points WHERE key = ? AND limits IN ('', ?)"
        row: tuple[str] | None = self._db.execute(query, (key, limits)).fetchone()
        return row[0] if row else None

    def put(self, entries: Iterable[Entry]) -> None:
        """Keep the records, all or none of them; raises InputError where the disk is full."""
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", entries)
        except sqlite3.Error as error:
            raise InputError(f"{self.where}: cannot be written to: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

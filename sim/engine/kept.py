"""What replays came to, kept in the user's cache: one SQLite file of arrays under addresses.

Several processes share it. The least recently used make room. A file that is damaged or cannot be
written is as if there were none: what it would have held is replayed.
"""

import io
import sqlite3
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = dict[str, NDArray[Any]]

DISK_BYTES = 512 * 2**20
LARGEST_BYTES = 16 * 2**20  # an entry's: a larger one would push out many
BUSY_S = 5.0  # to wait for another process's write


class Disk:
    """Arrays by address, in a file of at most about so many bytes."""

    def __init__(self, path: Path, most_bytes: int = DISK_BYTES) -> None:
        self.most_bytes = most_bytes
        self._db: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Threads take turns at it: see `Remembered`.
            self._db = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self._db:
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS replays"
                    " (key BLOB PRIMARY KEY, used_s REAL, size INTEGER, arrays BLOB)"
                )
                # So that making room reads no arrays.
                self._db.execute("CREATE INDEX IF NOT EXISTS by_use ON replays (used_s, size)")
        except (OSError, sqlite3.Error):
            self._db = None

    def get(self, key: bytes) -> Values | None:
        """The arrays at an address; None where there are none, or none that can be read."""
        if self._db is None:
            return None
        try:
            row = self._db.execute("SELECT arrays FROM replays WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            with self._db:
                used = "UPDATE replays SET used_s = ? WHERE key = ?"
                self._db.execute(used, (time.time(), key))
            with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (sqlite3.Error, OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def put(self, key: bytes, values: Values) -> None:
        """Keep the arrays, if there is a place for them."""
        if self._db is None:
            return
        written = io.BytesIO()
        np.savez(written, allow_pickle=False, **values)
        arrays = written.getvalue()
        if len(arrays) > LARGEST_BYTES:
            return
        try:
            with self._db:
                row = (key, time.time(), len(arrays), arrays)
                self._db.execute("INSERT OR REPLACE INTO replays VALUES (?, ?, ?, ?)", row)
                self._make_room()
        except sqlite3.Error:
            self._db = None

    def _make_room(self) -> None:
        """Drop the least recently used until the rest fits."""
        assert self._db is not None
        (held,) = self._db.execute("SELECT sum(size) FROM replays").fetchone()
        oldest = self._db.execute("SELECT key, size FROM replays ORDER BY used_s")
        while held > self.most_bytes:
            key, size = oldest.fetchone()
            self._db.execute("DELETE FROM replays WHERE key = ?", (key,))
            held -= size

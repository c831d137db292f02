"""What replays came to, kept in the user's cache: one SQLite file of arrays under addresses.

Several processes share it. The least recently used make room. A file that is damaged or cannot be
written is as if there were none: what it would have held is replayed.
"""

import json
import sqlite3
import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

Values = dict[str, NDArray[Any]]

DISK_BYTES = 512 * 2**20
LARGEST_BYTES = 16 * 2**20  # an entry's: a larger one would push out many
BUSY_S = 5.0  # to wait for another process's write
CHECKSUM_BYTES = len(xxh3_128_digest(b""))


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

    @property
    def is_open(self) -> bool:
        """Whether what is put there is kept."""
        return self._db is not None

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
        except sqlite3.Error:
            return None
        return unpacked(row[0])

    def put(self, key: bytes, values: Values) -> None:
        """Keep the arrays, if there is a place for them."""
        if self._db is None:
            return
        arrays = packed(values)
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


def packed(values: Values) -> bytes:
    """Arrays one after the other, behind a checksum and a line of their names, types and shapes.

    NumPy's own form, a zip file, takes five times as long to write and 20 to read, as most of an
    entry's arrays are small.
    """
    forms = [(name, array.dtype.str, array.shape) for name, array in values.items()]
    arrays = b"".join(array.tobytes() for array in values.values())
    written = json.dumps(forms).encode() + b"\n" + arrays
    return xxh3_128_digest(written) + written


def unpacked(kept: bytes) -> Values | None:
    """The arrays that were packed, not to be written to; None where they are damaged."""
    written = kept[CHECKSUM_BYTES:]
    if xxh3_128_digest(written) != kept[:CHECKSUM_BYTES]:
        return None
    forms, _, arrays = written.partition(b"\n")
    values, at = dict[str, NDArray[Any]](), 0
    for name, form, shape in json.loads(forms):
        dtype = np.dtype(form)
        values[name] = np.frombuffer(arrays, dtype, prod(shape), at).reshape(shape)
        at += values[name].nbytes
    return values

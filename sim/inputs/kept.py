"""What was worked out, kept from one process to the next: a table, and where it lies."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from sim.inputs.files import InputError, user_cache, whole_file

Value = TypeVar("Value")


class KeptTable(Generic[Value]):
    """What is new in it lies on disk once `keep` is called, where at most so many values do.

    Each is written as JSON, of which `read` makes it again. A file that is damaged or cannot be
    written is as if there were none.
    """

    def __init__(self, file: Path | None, most: int, read: Callable[[Any], Value]) -> None:
        self.file, self.most = file, most
        self.known: dict[str, Value] = {}
        self.new: dict[str, Value] = {}
        try:
            if file:
                kept = json.loads(file.read_bytes())
                self.known = {text: read(value) for text, value in kept.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # not there, or damaged

    def get(self, text: str) -> Value | None:
        """What it came to; None where that is not known."""
        return self.known[text] if text in self.known else self.new.get(text)

    def add(self, text: str, value: Value) -> None:
        """Know what it came to, unless that is more than is kept."""
        if len(self.new) < self.most:
            self.new[text] = value

    def keep(self) -> None:
        """Write what is new for other processes."""
        if self.file and self.new:
            kept = [*self.known.items(), *self.new.items()][-self.most :]
            write_whole(self.file, json.dumps(dict(kept)).encode())


def folder_beside(source: Path) -> Path | None:
    """Where what is made of a source is kept: beside it, as Python does, or in the user's cache.

    None where neither can be written to.
    """
    for folder in (source.parent / "__pycache__", user_cache() / "compiled"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def write_whole(file: Path, content: bytes) -> None:
    """Write a file whole or, as on a full disk, not at all: it is made anew another time."""
    with suppress(InputError), whole_file(file) as part:
        part.write_bytes(content)

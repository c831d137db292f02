"""Packages with schedules for tests, as an installer leaves them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sim.schedules.own import of_package, offered


def install(folder: Path, package: str, files: dict[str, str], *entries: str) -> None:
    """Put a package of these files into `folder`, with its entry points for schedules."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[attnsim.schedules]", *entries]))
    _forget()


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """This process finds the packages in `folder` meanwhile, and knows none of them afterwards."""
    modules = set(sys.modules)
    sys.path.insert(0, str(folder))
    _forget()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
        _forget()


def _forget() -> None:
    offered.cache_clear()
    of_package.cache_clear()

"""Tables of figures as the tests write them: a row with what matters, the rest filled in."""

import csv
from pathlib import Path

from validate.figures import COLUMNS, Figure, read_figures

ROW = {
    "source": "a test",
    "gpu": "H100 80GB HBM3",
    "kernel": "flash2",
    "pass": "fwd",
    "dtype": "bf16",
    "kv_dtype": "bf16",
    "batch": "1",
    "heads": "8",
    "kv_heads": "8",
    "seq_q": "512",
    "seq_kv": "512",
    "head_dim": "64",
    "causal": "0",
    "extra": "warm L2",
    "metric": "time_us",
    "value": "100",
    "split": "test",
}
DECODE = {"pass": "decode", "seq_q": "1", "seq_kv": "2048", "head_dim": "128"}


def write(path: Path, *rows: dict[str, str]) -> Path:
    """A table of these rows over ROW."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(ROW | row for row in rows)
    return path


def figure(folder: Path, **row: str) -> Figure:
    """One row, read; `pass_` stands for the column `pass`."""
    cells = {name.rstrip("_"): text for name, text in row.items()}
    (only,) = read_figures([write(folder / "one.csv", cells)])
    return only

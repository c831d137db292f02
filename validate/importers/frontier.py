"""NetX-lab/Frontier: FlashInfer's paged attention on A800, H800 and others, in vidur's columns.

Read of `data/profiling/compute/DEVICE/MODEL`: `attention.csv`, and `attention_kernel_only.csv`,
where it is beside it the same shapes by kernel. `measurement_type` says how a row was timed
(`CUDA_EVENT`, `KERNEL_ONLY`; files without it are vidur's own, by kineto), `profiling_precision`
the dtype (fp16 where it is missing). A model's `head_dim` stands in `data/config/models/MODEL.json`
(`frontier/profiling/common/model_config.py`, get_head_size). Batches of sequences of different
lengths, and of prefill and decoding, are left out.
"""

from pathlib import Path
from typing import Any

from validate.importers import names
from validate.importers.rows import LeftOutError, Row, Source, model_config, split_at
from validate.importers.vidur import KERNELS_ALONE, device_folder, paged_figure

TIMED = {
    "CUDA_EVENT": "CUDA_EVENT median, warm L2",
    "KERNEL_ONLY": KERNELS_ALONE,
}


def figure(file: Path, row: Row) -> dict[str, Any]:
    """A row of a model on a device."""
    if row.flag("is_true_mixed_batch", "False"):
        raise LeftOutError("prefill and decoding in one batch")
    if row.flag("is_mixed_batch", "False") or row.text("mode", "even") != "even":
        raise LeftOutError("sequences of different lengths")
    timed = row.text("measurement_type", "KERNEL_ONLY")
    dtype = names.dtype(row.text("profiling_precision", "fp16"))
    head_dim = model_config(_config(file)).get("head_dim")
    return paged_figure(row, device_folder(file), dtype, TIMED.get(timed, timed), head_dim)


def _config(file: Path) -> Path:
    """Where the model of a profile is described."""
    profiling, folders = split_at(file, "compute")
    return profiling.parent / "config" / "models" / f"{folders[-1]}.json"


SOURCE = Source(
    "NetX-lab/Frontier",
    tuple(
        f"compute/{folders}/attention{kind}.csv"
        for folders in ("*/*", "*/*/*")
        for kind in ("", "_kernel_only")
    ),
    figure,
)

"""microsoft/vidur: FlashInfer's paged attention of six models on A100, H100 and A40.

Read of `data/profiling/compute/DEVICE/MODEL/attention.csv`. By `vidur/profiling/attention`: times
in ms of the kernels alone (kineto), the median of 5 after 2 on the same tensors, in fp16; a prefill
is `prefill_chunk_size` queries after `kv_cache_size` cached tokens of one sequence; heads are
shared out over `num_tensor_parallel_workers`. `paged_figure` is what its descendants share.
"""

from pathlib import Path
from typing import Any

from sim.inputs.files import InputError
from validate.importers import names
from validate.importers.rows import LeftOutError, Row, Source, split_at

KERNELS_ALONE = "CUPTI kernel time, median, warm L2"


def figure(file: Path, row: Row) -> dict[str, Any]:
    """A row of a model on a device."""
    return paged_figure(row, device_folder(file), "fp16", KERNELS_ALONE)


def paged_figure(
    row: Row, device: str, dtype: str, timed: str, head_dim: int | None = None
) -> dict[str, Any]:
    """A row of vidur's columns; `head_dim` where it is not `n_embd / n_q_head`."""
    workers, heads = row.count("num_tensor_parallel_workers"), row.count("n_q_head")
    if not workers or not heads:
        raise InputError(f"{row.where}: n_q_head and num_tensor_parallel_workers: 0")
    fills = row.flag("is_prefill")
    new = row.count("prefill_chunk_size") if fills else 1
    cached = row.count("kv_cache_size")
    backend = row.text("attention_backend").rpartition(".")[2].lower()
    if not new or not new * fills + cached:
        raise LeftOutError("an empty cache, or no query")
    return {
        "gpu": names.device(device),
        "kernel": names.PAGED.get(backend, backend).format(phase="prefill" if fills else "decode"),
        "pass": "fwd" if fills else "decode",
        "dtype": dtype,
        "kv_dtype": dtype,
        "batch": row.count("batch_size"),
        "heads": heads // workers,
        "kv_heads": max(row.count("n_kv_head") // workers, 1),
        "seq_q": new,
        "seq_kv": cached + new if fills else cached,
        "head_dim": head_dim or row.count("n_embd") // heads,
        "causal": "1",
        "extra": f"page {row.count('block_size')}; {timed}; tp {workers} (heads are local)",
        "metric": "time_us",
        "value": milliseconds(row, fills) * 1e3,
    }


def milliseconds(row: Row, fills: bool) -> float:
    """The median time of a row's kernel."""
    return row.positive(f"time_stats.attn_{'prefill' if fills else 'decode'}.median")


def device_folder(file: Path) -> str:
    """The folder below `compute`, which is the device's."""
    return split_at(file, "compute")[1][0]


SOURCE = Source(
    "microsoft/vidur", ("compute/*/*/attention.csv", "compute/*/*/*/attention.csv"), figure
)

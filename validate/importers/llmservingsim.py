"""casys-kaist/LLMServingSim: vLLM's attention, and FlashAttention-2's, of whole models.

Read, of `profiler/perf/DEVICE/MODEL/DTYPE/tpN/attention.csv`, the rows of one kind: `n_decode`
sequences that decode over `kv_decode` keys each, or one that adds `prefill_chunk` queries to
`kv_prefill` cached tokens. They are the kernels' time in a real layer (`profiler/core/hooks`), in
µs; heads stand in `configs/model/MODEL.json`, the page size in `meta.yaml` beside.

Read, of `perf_models/DEVICE/MODEL/tpN/attention.csv` (`profiler/v0`), all rows: medians in ms of
`flash_attn_varlen_func` in fp16 by torch's profiler on the same tensors again, `kv_cache_size` keys
of all sequences together (`attention_profiler.py`, `_build_varlen_qkv`).
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.inputs.files import InputError
from validate.importers import names
from validate.importers.rows import LeftOutError, Row, Source, model_config, split_at
from validate.importers.vidur import KERNELS_ALONE, milliseconds


def figure(file: Path, row: Row) -> dict[str, Any]:
    """A row of either profiler."""
    if "perf_models" in file.absolute().parts:
        return _varlen(split_at(file, "perf_models")[1][0], row)
    return _in_a_layer(file, row)


def _in_a_layer(file: Path, row: Row) -> dict[str, Any]:
    chunk, decoding = row.count("prefill_chunk"), row.count("n_decode")
    if chunk and decoding:
        raise LeftOutError("prefill and decoding in one batch")
    profiler, (device, *model, dtype, folder) = split_at(file, "perf")
    workers = _workers(file, folder)
    config = model_config(profiler.parent / "configs" / "model" / f"{'/'.join(model)}.json")
    if not config:
        raise InputError(
            f"{file}: the model's heads stand in configs/model/{'/'.join(model)}.json of the "
            "clone, which is not there"
        )
    heads = int(config["num_attention_heads"])
    page = _page(file.parents[1] / "meta.yaml")
    kind = "decode only" if decoding else "one prefill chunk after a cached prefix"
    return {
        "gpu": names.device(device),
        "kernel": names.LLMSERVINGSIM,
        "pass": "decode" if decoding else "fwd",
        "dtype": names.dtype(dtype),
        "kv_dtype": names.dtype(dtype),
        "batch": decoding or 1,
        "heads": heads // workers,
        "kv_heads": max(int(config.get("num_key_value_heads", heads)) // workers, 1),
        "seq_q": 1 if decoding else chunk,
        "seq_kv": row.count("kv_decode") if decoding else row.count("kv_prefill") + chunk,
        "head_dim": int(config.get("head_dim") or config["hidden_size"] // heads),
        "causal": "1",
        "extra": f"vLLM layerwise profiler (CUPTI kernel time); {page}{kind}; tp {workers}",
        "metric": "time_us",
        "value": row.positive("time_us"),
    }


def _varlen(device: str, row: Row) -> dict[str, Any]:
    if device.startswith("TPU"):
        raise LeftOutError("a TPU's")
    workers, heads = row.count("num_tensor_parallel_workers"), row.count("n_q_head")
    fills, batch = row.flag("is_prefill"), row.count("batch_size")
    if not workers or not heads or not batch:
        raise InputError(f"{row.where}: n_q_head, num_tensor_parallel_workers and batch_size: 0")
    keys = row.count("kv_cache_size") // batch
    queries = row.count("prefill_chunk_size") // batch if fills else 1
    if not keys or not queries:
        raise LeftOutError("an empty cache, or no query")
    return {
        "gpu": names.device(device),
        "kernel": names.LLMSERVINGSIM_V0,
        "pass": "fwd" if fills else "decode",
        "dtype": "fp16",
        "kv_dtype": "fp16",
        "batch": batch,
        "heads": heads // workers,
        "kv_heads": max(row.count("n_kv_head") // workers, 1),
        "seq_q": queries,
        "seq_kv": keys,
        "head_dim": row.count("n_embd") // heads,
        "causal": "1",
        "extra": f"{KERNELS_ALONE}; tp {workers} (heads are local)",
        "metric": "time_us",
        "value": milliseconds(row, fills) * 1e3,
    }


def _workers(file: Path, folder: str) -> int:
    if not re.fullmatch(r"tp[1-9]\d*", folder):
        raise InputError(f"{file}: its folder should say tensor parallelism, such as tp1")
    return int(folder[2:])


@lru_cache(64)
def _page(meta: Path) -> str:
    """A phrase that states the page size, where the profile's description does."""
    stated = re.search(r"\bblock_size: (\d+)", meta.read_text("utf-8") if meta.exists() else "")
    return f"paged block {stated[1]}; " if stated else ""


SOURCE = Source(
    "casys-kaist/LLMServingSim",
    (
        "perf/*/*/*/*/tp*/attention.csv",
        "perf/*/*/*/tp*/attention.csv",
        "perf_models/*/*/*/tp*/attention.csv",
    ),
    figure,
)

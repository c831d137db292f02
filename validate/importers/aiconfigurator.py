"""ai-dynamo/aiconfigurator: attention of vLLM, SGLang and TensorRT-LLM, a table a release.

Read of `systems/data/DEVICE/{attention,mla}/FRAMEWORK/VERSION`: `context_attention_perf`,
`generation_attention_perf`, `context_mla_perf`, `generation_mla_perf` (`.parquet`; `.txt` of
commas in older commits, some of them in Git LFS). `collector/{vllm,sglang,trtllm}/collect_attn.py`
say what is timed: the mean of replays of a CUDA graph, the write of K and V to the cache in it,
`isl` new tokens after `step` cached ones, pages of 64 in vLLM and TensorRT-LLM. `latency` is in ms.
Not all in it can be: TensorRT-LLM's decoding on an A100 is faster than its HBM.
"""

from pathlib import Path
from typing import Any

from validate.importers import names
from validate.importers.rows import LeftOutError, Row, Source

PAGES = {"vllm": 64, "trtllm": 64}
TIMED = "CUDA graph replay mean, warm L2"


def figure(file: Path, row: Row) -> dict[str, Any]:
    """A row of attention or MLA."""
    is_latent = "mla" in file.name
    if row.count("beam_width", "1") != 1:
        raise LeftOutError("decodes by beams")
    new, cached = row.count("isl"), row.count("step")
    decodes = file.name.startswith("generation")
    framework, version = row.text("framework").lower(), row.text("version")
    if is_latent:
        name, said = names.AICONFIGURATOR_MLA, _latent(row, decodes)
    else:
        name, said = names.AICONFIGURATOR, _attention(row, framework)
    extra = said.pop("extra")
    return said | {
        "gpu": names.device(row.text("device")),
        "kernel": name.format(framework=framework, kernel=row.text("kernel_source")),
        "pass": "decode" if decodes else "fwd",
        "kv_dtype": names.dtype(row.text("kv_cache_dtype")),
        "batch": row.count("batch_size"),
        "heads": row.count("num_heads"),
        "seq_q": new,
        "seq_kv": new + cached,
        "causal": "1",
        "extra": f"{framework} {version}; {TIMED}; {extra}",
        "metric": "time_us",
        "value": row.positive("latency") * 1e3,
    }


def _attention(row: Row, framework: str) -> dict[str, Any]:
    window = row.count("window_size", "0")
    phrases = [
        "KV write included",
        f"page {PAGES[framework]}" if framework in PAGES else "",
        f"window {window}" if window else "",
    ]
    return {
        "dtype": names.dtype(row.text("attn_dtype")),
        "kv_heads": row.count("num_key_value_heads") or row.count("num_heads"),
        "head_dim": row.count("head_dim"),
        "extra": "; ".join(filter(None, phrases)),
    }


def _latent(row: Row, decodes: bool) -> dict[str, Any]:
    """Decoding is absorbed into the latent, K of 512 + 64 elements; prefill has K of 128 + 64."""
    shape = "MLA latent 512+64" + (" absorbed decode" if decodes else " context, qk 192 v 128")
    return {
        "dtype": names.dtype(row.text("mla_dtype")),
        "kv_heads": 1 if decodes else row.count("num_heads"),
        "head_dim": 576 if decodes else 192,
        "extra": f"{shape}; heads are local; tp {row.count('tp_size')}",
    }


SOURCE = Source(
    "ai-dynamo/aiconfigurator",
    tuple(
        f"{phase}_{kind}_perf.{suffix}"
        for phase in ("context", "generation")
        for kind in ("attention", "mla")
        for suffix in ("parquet", "txt")
    ),
    figure,
)

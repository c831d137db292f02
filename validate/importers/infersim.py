"""alibaba/InferSim: FlashAttention-3's prefill, FlashInfer's decoding and MLA on H20 and H800.

Read of `bench_data`: `{mha,mla}/{decode,prefill}/DEVICE/A-B-C.csv`, whose name is heads, KV heads
and head_dim, of MLA heads, latent (prefill: without RoPE) and RoPE elements. How they are timed, by
`kernel_benchmark/{fa3_mha_prefill,flashinfer_mha_decode,…}.py`: torch's Timer over the Python
wrapper, mean of 10 after 10, pages of one token. Not read: GEMMs, sparse and linear attention.
"""

from pathlib import Path
from typing import Any

from sim.inputs.files import InputError
from validate.importers import names
from validate.importers.rows import Row, Source

TIMED = "torch Timer over the Python wrapper: below some 40 us it is host time; warm L2"
DECODE = ("dtype", "kv_dtype", "batch_size", "kv_len", "latency_us", "mfu")
PREFILL = ("dtype", "seq_len", "latency_us", "mfu")


def figure(file: Path, row: Row) -> dict[str, Any]:
    """A row of one kernel."""
    kind, phase, device = file.absolute().parts[-4:-1]
    first, second, third = _numbers_in_name(file)
    decodes, is_latent = phase == "decode", kind == "mla"
    keys = row.count("kv_len" if decodes else "seq_len")
    dtype = names.dtype(row.text("dtype"))
    return {
        "gpu": names.device(device),
        "kernel": names.INFERSIM[f"{kind}/{phase}"],
        "pass": "decode" if decodes else "fwd",
        "dtype": dtype,
        "kv_dtype": names.dtype(row.text("kv_dtype")) if decodes else dtype,
        "batch": row.count("batch_size") if decodes else 1,
        "heads": first,
        "kv_heads": second if not is_latent else 1 if decodes else first,
        "seq_q": 1 if decodes else keys,
        "seq_kv": keys,
        "head_dim": second + third if is_latent else third,
        "causal": "0" if decodes else "1",
        "extra": ("page 1; " if decodes and not is_latent else "") + TIMED,
        "metric": "time_us",
        "value": row.positive("latency_us"),
    }


def _numbers_in_name(file: Path) -> tuple[int, int, int]:
    try:
        first, second, third = map(int, file.stem.split("-"))
    except ValueError:
        raise InputError(
            f"{file}: its name should be three numbers, such as 32-8-128.csv: "
            "heads, KV heads and head_dim"
        ) from None
    return first, second, third


SOURCE = Source(
    "alibaba/InferSim",
    ("mha/decode/*/*.csv", "mha/prefill/*/*.csv", "mla/decode/*/*.csv", "mla/prefill/*/*.csv"),
    figure,
    headers=(DECODE, PREFILL),
)

"""Tables that others published, as measurements: to judge predictions with no GPU at hand.

`measurements/published/attention.csv` has a figure a row, with its source. Rates count 4 B H N^2 d
FLOPs (half of it where causal; three and a half times as many with backward), as FlashAttention's
benchmarks do. Its column `l2` is what the
source's benchmark leaves in L2 before each repetition: "warm" where it repeats on the same inputs
(FlashAttention's benchmark_forward, CUDA graphs), "cold" where it clears L2 (Triton's do_bench, a
buffer of 256 MB). Rows of the split "train" may calibrate; what is reported as a prediction is
"test".
"""

import csv
from importlib import resources
from typing import Any

from sim.inputs.workload import AttentionWorkload, WorkloadTable
from validate.measurement import FORMAT, Device, Measurement, Measurements

# What the simulator predicts each algorithm by; None where it has no such schedule (yet). All that
# is "eager" in the table, in PyTorch before 2.4 (July 2024) "eager_2_3", ran FlashAttention's
# attention_pytorch. "triton_paged_gather" is a program a query head that multiplies without tensor
# cores (Wenyueh/MinivLLM, benchmark_decoding.py).
SCHEDULES: dict[str, dict[str, Any] | None] = {
    "eager": {"name": "naive", "framework": "pytorch"},
    "eager_2_3": {"name": "naive", "framework": "pytorch", "release": "2.3"},
    "flash2": {"name": "flash2"},
    "flash3": {"name": "flash3"},
    "flash4": {"name": "flash4"},
    "flex": {"name": "flex"},
    "flashmla": {"name": "mla"},
    "triton_flash2": {"name": "flash2", "implementation": "triton"},
    "flash_decoding": {"name": "flash_decoding"},
    "triton_flash_decoding": {"name": "flash_decoding", "implementation": "triton"},
    "paged_decode": {"name": "paged", "implementation": "flashinfer"},
    "hip": {"name": "hip"},
    "nsa_selected": {"name": "nsa", "drawn": "anywhere"},
    "nsa_compressed": {"name": "nsa"},
    "nsa_compressed_only": {"name": "nsa"},
    "triton_paged_gather": None,
}
# Of which fwd+bwd is a training step's attention. The FlashAttention paper's eager and flash1 had
# dropout and padding masks besides.
TRAINED = ("flash2", "flash4")
# What a workload has besides a row's columns: DeepSeek's latents, of one or a few tokens.
OF_LATENTS = {"phase": "decode", "latent_dim": 512, "rope_dim": 64}
# Of a schedule with more kernels, those that the figure is of: functions of
# native-sparse-attention-triton, topk_sparse_attention and compressed_attention.
LAUNCHES = {
    "nsa_selected": "selected attention",
    "nsa_compressed": "compressed attention|scores|.*block.*",
    "nsa_compressed_only": "compressed attention",
}
# At which clock [MHz] a source held the SMs of its GPU (appendix C).
HELD_AT = {"arXiv 2407.08608": 1830.0}
TO_SI = {"TFLOP/s": 1e12, "GB": 1e9, "s": 1.0, "ms": 1e-3, "us": 1e-6}


def rows() -> list[dict[str, str]]:
    """The table's rows, as text."""
    path = resources.files("validate") / "measurements" / "published" / "attention.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def published(profile: str) -> Measurements:
    """What was published of one GPU; "?" after its name in the table means that it was inferred."""
    points = [_measurement(row) for row in rows() if row["gpu"].rstrip("?") == profile]
    return Measurements(
        format=FORMAT,
        title=f"published tables, {profile}",
        taken="various",
        device=Device(name=profile, profile=profile),
        points=points,
    )


def published_profiles() -> list[str]:
    """The GPUs that the table has figures of."""
    return sorted({row["gpu"].rstrip("?") for row in rows()})


def _measurement(row: dict[str, str]) -> Measurement:
    algorithm, forward = row["algorithm"], row["pass"] == "fwd"
    trained = algorithm in TRAINED and not forward
    counts = ("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim")
    table = {
        "dtype": row["dtype"],
        "causal": row["causal"] == "1",
        "phase": "training" if trained else "decode" if row["seq_q"] == "1" else "prefill",
        **{count: int(row[count]) for count in counts},
        **(OF_LATENTS if algorithm == "flashmla" else {}),
    }
    w = WorkloadTable.model_validate(table)
    return Measurement(
        runner="published",
        family=algorithm if forward else f"{algorithm} {row['pass']}",
        split=row["split"],
        workload=w,
        schedule=SCHEDULES.get(algorithm) if forward or trained else None,
        launches=LAUNCHES.get(algorithm),
        source=row["source"],
        clock_mhz=next((mhz for of, mhz in HELD_AT.items() if row["source"].startswith(of)), None),
        **_figure(row, w.workload()),
    )


def _figure(row: dict[str, str], w: AttentionWorkload) -> dict[str, Any]:
    if row["value"] == "OOM":
        return {"status": "out of memory"}
    value = float(row["value"]) * TO_SI[row["unit"]]
    if row["metric"] == "hbm_bytes":
        return {"published_hbm_bytes": value}
    if row["metric"] == "rate":
        pairs = w.seq_q * w.seq_kv / (2 if w.causal else 1)
        passes = 1 if row["pass"] == "fwd" else 3.5
        value = passes * 4 * w.batch * w.heads * pairs * w.head_dim / value
    return {f"{row['l2']}_s": [value]}

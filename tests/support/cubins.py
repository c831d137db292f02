"""Cubins compiled here, for GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HEADS = {"heads": 1, "dtype": "bf16"}
Case = tuple[dict[str, Any], dict[str, Any], int]  # schedule, workload, compute capability


def flash(q: int, kv: int, warps: int, head_dim: int, capability: int, causal: bool = True) -> Case:
    """Triton's flash kernel of that tile."""
    tiles = {"tile": {"q": q, "kv": kv}, "stages": 2, "warps": warps}
    schedule = {"name": "flash2", "implementation": "triton", **tiles}
    workload = {**HEADS, "head_dim": head_dim, "seq_len": 512, "causal": causal}
    return schedule, workload, capability


def without_interpreter() -> dict[str, str]:
    """The environment in which Triton compiles."""
    return {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def compiled_into(folder: Path, cases: list[Case]) -> list[list[dict[str, Any]]]:
    """Leave NUMBER-KERNEL.cubin of each case in a folder; what the compiler says of each kernel."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_for_gpu", str(folder)],
        input=json.dumps(cases),
        env=without_interpreter(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]

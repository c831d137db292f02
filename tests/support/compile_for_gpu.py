"""Compile the schedules' kernels for a GPU that is not there, and print what the compiler says.

    python -m tests.support.compile_for_gpu [FOLDER] < CASES > WHAT

CASES is a JSON list of [schedule table, workload table, compute capability]. With a FOLDER the
kernels' cubins are left there too, each beside Triton's description of it, as in Triton's cache:
0-1.cubin and 0-1.json are of the first case's second kernel. This is a program of its own because
TRITON_INTERPRET must not be set where kernels are compiled.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import make_schedule
from validate.kernels.launch import Launch, place

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
PROFILES = {80: "a100-sxm-80gb", 89: "rtx-4090", 90: "h100-sxm"}
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}


def compiled(launch: Launch, capability: int) -> Any:
    """The launch's kernel, compiled as Triton would for these arguments."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes = {}
    for index, parameter in enumerate(launch.entry.params):
        value = launch.arguments[parameter.name]
        divisible = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.entry, signature, constants, attributes)
    options = {"num_warps": launch.arguments["num_warps"]}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def described(name: str, kernel: Any) -> dict[str, Any]:
    """Registers, SRAM and instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = kernel.asm["ptx"]
    return {
        "name": name,
        "threads": kernel.metadata.num_warps * kernel.metadata.warp_size,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),  # type: ignore[index]
        "sram_bytes": kernel.metadata.shared,
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma_sync": ptx.count("mma.sync"),
    }


def leave(kernel: Any, path: Path) -> None:
    """The kernel as Triton's cache has it: code, and a description beside it."""
    path.with_suffix(".cubin").write_bytes(kernel.asm["cubin"])
    description = json.dumps(kernel.metadata._asdict(), default=vars)
    path.with_suffix(".json").write_text(description)


def main() -> None:
    """Read the cases, print a list of descriptions for each."""
    results = []
    for schedule, workload, capability in json.load(sys.stdin):
        hw = load_profile(PROFILES[capability])
        w = WorkloadTable.model_validate(workload).workload()
        attention = place(make_schedule(schedule, "a test"), w, hw, "cpu")
        kernels = [(la.name, compiled(la, capability)) for la in attention.launches]
        for folder in sys.argv[1:]:
            for number, (_, kernel) in enumerate(kernels):
                leave(kernel, Path(folder) / f"{len(results)}-{number}")
        results.append([described(name, kernel) for name, kernel in kernels])
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()

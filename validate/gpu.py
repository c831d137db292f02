"""The bench that is a CUDA device: kernels are checked, then timed; bytes come from Nsight Compute.

python -m validate.gpu POINTS.json      # what Nsight Compute watches: each point once
"""

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, load_profile
from validate import counters
from validate.clock import CudaClock
from validate.float64 import TOLERANCE, relative_error
from validate.kernels.launch import Placed, place
from validate.measure import DeviceLostError
from validate.measurement import Compiled, Counters, Device, Measurement, Micro, Shape
from validate.micro import run_micro
from validate.torch_attention import torch_attention

CHECKED_BLOCKS = 8  # blocks of query rows that are held against float64
POINT_S = 0.4  # what the repetitions of one point may take, for each kind of time
FEWEST, MOST = 7, 50  # repetitions
GRAPH_S = 2e-3  # what one replay of a graph lasts at least, if MOST launches reach it
PACKAGES = ("attnsim", "torch", "triton", "numpy")

# What a device's name begins with, and the profile that is nearest.
PROFILES = {
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA H20": "h20",
    "NVIDIA H800": "h800-sxm",
    "NVIDIA GH200 120GB": "gh200",  # by its CPU's memory; the one with HBM3e is called 144G
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb",
    "NVIDIA A100-SXM4-40GB": "a100-sxm-40gb",
    "NVIDIA A800-SXM4-80GB": "a800-sxm-80gb",
    "NVIDIA A30": "a30",
    "NVIDIA A10G": "a10g",
    "NVIDIA A40": "a40",
    "NVIDIA B200": "b200",
    "NVIDIA B300": "b300",
    "NVIDIA GB200": "gb200",
    "NVIDIA GB300": "gb300",
    "NVIDIA GB10": "gb10",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 5060 Ti": "rtx-5060-ti",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
    "NVIDIA RTX A5000": "rtx-a5000",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000-blackwell",
    "NVIDIA L20": "l20",
    "NVIDIA L40": "l40s",  # the same die
    "NVIDIA L4": "l4",
    "Tesla V100-SXM2-32GB": "v100-sxm-32gb",
    "Tesla T4": "t4",
}


def nearest_profile() -> str:
    """The shipped profile of the current device; raises InputError where none is known."""
    name = torch.cuda.get_device_name(0)
    for beginning in sorted(PROFILES, key=len, reverse=True):
        if name.startswith(beginning):
            return PROFILES[beginning]
    raise InputError(f"no profile is known for {name}: give --profile, the nearest or your own")


@dataclass
class GpuBench:
    """The current CUDA device. `profile` names the hardware profile that is nearest to it."""

    profile: str
    clock: CudaClock = field(default_factory=CudaClock)

    @cached_property
    def hw(self) -> HardwareProfile:
        """The profile: tiles and buffers go by its SRAM and SMs."""
        return load_profile(self.profile)

    def describe(self) -> tuple[Device, dict[str, str]]:
        """The device as its driver tells it, and versions."""
        properties = torch.cuda.get_device_properties(0)
        smi = nvidia_smi()
        device = Device(
            name=properties.name,
            profile=self.hw.name,
            driver=smi.pop("driver_version", None),
            sms=properties.multi_processor_count,
            hbm_bytes=properties.total_memory,
            l2_bytes=properties.L2_cache_size,
            clocks=smi,
        )
        return device, versions()

    def micro(self) -> Iterator[Micro]:
        """The micro-benchmarks."""
        return run_micro(self.clock, self.hw)

    def measure(self, shape: Shape) -> Measurement:
        """A point, checked against float64 and timed; raises DeviceLostError."""
        facts = {name: getattr(shape, name) for name in Shape.model_fields}
        try:
            return Measurement(**facts, **self._timed(shape))
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            return Measurement(**facts, status="out of memory", reason=reason)
        except (InputError, WrongResultError) as error:
            return Measurement(**facts, status="failed", reason=str(error))
        except Exception as error:  # Triton and CUDA raise many types; the campaign goes on
            self._check_alive(error)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Measurement(**facts, status="failed", reason=reason)
        finally:
            torch.cuda.empty_cache()

    def _timed(self, shape: Shape) -> dict[str, Any]:
        w = shape.workload.workload()
        work: Callable[[], object]
        compiled: list[Compiled] = []
        if shape.runner == "attnsim":
            attention = placed(shape, self.hw)
            binaries = attention.run()
            check(attention)
            compiled = [
                Compiled(
                    kernel=launch.name,
                    registers_per_thread=binary.n_regs,
                    spills=binary.n_spills,
                    sram_bytes=binary.metadata.shared,
                )
                for launch, binary in zip(attention.launches, binaries, strict=True)
            ]
            work = attention.run
        else:
            work = torch_attention(shape.runner, w, self.clock.device)
        for _ in range(3):
            work()
        once_s = median(self.clock.time_s(work, 3))
        repeats = min(MOST, max(FEWEST, int(POINT_S / once_s)))
        launches = min(MOST, max(1, round(GRAPH_S / once_s)))
        return {
            "cold_s": self.clock.cold_time_s(work, repeats),
            "warm_s": self.clock.graph_time_s(work, launches),
            "compiled": compiled,
        }

    def _check_alive(self, error: Exception) -> None:
        """Raises DeviceLostError where `error` left the device unusable for this process."""
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self.clock.device).item()
        except RuntimeError:
            text = str(error).splitlines()[0]
            raise DeviceLostError(f"the device no longer answers after: {text}") from error

    def count(self, points: Sequence[Measurement]) -> list[list[Counters]]:
        """Counters of each point's kernels: Nsight Compute watches a process that runs each."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "points.json"
            shapes = [point.shape.model_dump() for point in points]
            path.write_text(json.dumps({"profile": self.profile, "points": shapes}))
            command = [sys.executable, "-m", "validate.gpu", str(path)]
            launched = iter(counters.profile(command))
        counted = []
        for point in points:
            kernels = [next(launched, None) for _ in point.compiled]
            if None in kernels:
                raise counters.NcuError("it reported fewer launches than were made")
            counted.append([kernel for kernel in kernels if kernel is not None])
        return counted


class WrongResultError(Exception):
    """A kernel's output is not the attention of its inputs."""


def placed(shape: Shape, hw: HardwareProfile) -> Placed:
    """A point's schedule on the device."""
    schedule = shape.parsed_schedule("campaign")
    if schedule is None:
        raise InputError(f"{shape.family}: a schedule was expected")
    return place(schedule, shape.workload.workload(), hw, CudaClock.device)


def check(attention: Placed) -> None:
    """Raises WrongResultError unless the output is float64's, to the rounding of its dtype."""
    error = relative_error(attention, CHECKED_BLOCKS)
    most = TOLERANCE[attention.w.dtype]
    if not error <= most:  # a NaN is not
        raise WrongResultError(
            f"wrong result: relative error {error:.2g}, at most {most:g} expected"
        )


def versions() -> dict[str, str]:
    """Versions of what measures, as installed."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # such as attnsim run from its source tree
            continue
    return found


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks and power limit as nvidia-smi prints them; empty where it cannot be asked."""
    fields = (
        "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
        "power.limit", "temperature.gpu",
    )  # fmt: skip
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(fields, values, strict=False))


def run_watched(path: Path) -> None:
    """Run each point of a file once from a cold L2, telling the profiler when to watch."""
    data = json.loads(path.read_text())
    hw, clock = load_profile(data["profile"]), CudaClock()
    for table in data["points"]:
        attention = placed(Shape.model_validate(table), hw)
        attention.run()
        clock.flush_l2()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        attention.run()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        del attention
        torch.cuda.empty_cache()


if __name__ == "__main__":
    run_watched(Path(sys.argv[1]))

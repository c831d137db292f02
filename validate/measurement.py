"""Measurement files: what a device took for schedules and micro-benchmarks, as checked JSON.

All numbers are SI floats under names that carry their unit; every repetition is kept.
"""

import json
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from sim.inputs.files import InputError, checked, save_text, shown
from sim.inputs.units import FractionOrNone
from sim.inputs.workload import WorkloadTable
from sim.schedules import make_schedule
from sim.schedules.base import Schedule

FORMAT = "attnsim measurements 1"

Runner = Literal[
    "attnsim", "torch_eager", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "published"
]
Split = Literal["train", "test"]
Status = Literal["ok", "out of memory", "failed"]
Unit = Literal["B/s", "s", "FLOP/s", "op/s"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Micro(_Part):
    """A micro-benchmark: repetitions of one quantity at one setting.

    `settings` say what was varied, such as {"working_set_bytes": 4194304}.
    """

    name: str = Field(min_length=1)
    settings: dict[str, int | float | str] = Field(default_factory=dict)
    unit: Unit
    samples: list[PositiveFloat] = Field(min_length=1)

    @property
    def value(self) -> float:
        """The median, in `unit`."""
        return median(self.samples)


class Counters(_Part):
    """What Nsight Compute counted of one launch. L2 bytes are those between L2 and the SMs."""

    kernel: str
    time_s: PositiveFloat | None = None
    hbm_read_bytes: NonNegativeFloat
    hbm_write_bytes: NonNegativeFloat
    l2_read_bytes: NonNegativeFloat | None = None
    l2_write_bytes: NonNegativeFloat | None = None
    l2_hit_rate: FractionOrNone | None = None
    tensor_utilisation: NonNegativeFloat | None = None  # a counter's: just above 1 may be read


class Compiled(_Part):
    """What the compiler made of one kernel, as the launched binary says."""

    kernel: str
    registers_per_thread: int
    spills: int
    sram_bytes: int


class Shape(_Part):
    """One point of a campaign: what runs, on what workload, and what the result is used for.

    `schedule` is what the simulator predicts it by, None where it has no such schedule; `launches`
    is a pattern of those of its kernels that were measured, all unless given. `clock_mhz` is of the
    SMs, where it was held at one other than the profile's.
    """

    runner: Runner
    family: str
    split: Split
    workload: WorkloadTable
    schedule: dict[str, Any] | None
    launches: str | None = None
    clock_mhz: PositiveFloat | None = None

    def parsed_schedule(self, where: str) -> Schedule | None:
        """The schedule that the simulator predicts by; raises InputError."""
        return None if self.schedule is None else make_schedule(self.schedule, where)


class Measurement(Shape):
    """What one point took: repetitions from a cold and a warm L2, and counters of its kernels."""

    status: Status = "ok"
    reason: str | None = None
    cold_s: list[PositiveFloat] = Field(default_factory=list)
    warm_s: list[PositiveFloat] = Field(default_factory=list)
    counters: list[Counters] = Field(default_factory=list)
    compiled: list[Compiled] = Field(default_factory=list)
    source: str | None = None
    published_hbm_bytes: PositiveFloat | None = None  # where a paper gives no more than the sum

    @property
    def shape(self) -> Shape:
        """The point that was measured."""
        return Shape(**{name: getattr(self, name) for name in Shape.model_fields})

    @property
    def hbm_bytes(self) -> float | None:
        """HBM reads and writes of all kernels, where they were counted."""
        if not self.counters:
            return self.published_hbm_bytes
        return sum(c.hbm_read_bytes + c.hbm_write_bytes for c in self.counters)


class Device(_Part):
    """The card as its driver describes it; `clocks` as nvidia-smi printed them."""

    name: str
    profile: str  # the hardware profile that is nearest
    driver: str | None = None
    sms: int | None = None
    hbm_bytes: int | None = None
    l2_bytes: int | None = None
    clocks: dict[str, str] = Field(default_factory=dict)


class Measurements(_Part):
    """A measurement file."""

    format: Literal["attnsim measurements 1"]
    title: str
    taken: str  # the day, as YYYY-MM-DD
    device: Device
    versions: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)  # such as why there are no counters
    micro: list[Micro] = Field(default_factory=list)
    points: list[Measurement] = Field(default_factory=list)


def load_measurements(path: Path) -> Measurements:
    """The measurements in a file; raises InputError where it is missing, cut short or foreign."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a measurement file (it is not UTF-8 text)") from None
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise InputError(f"{path}: not valid JSON, or cut short: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        given = data.get("format") if isinstance(data, dict) else None
        said = f"format = {shown(given)}" if given else "no format"
        raise InputError(f'{path}: not a measurement file: {said}; "{FORMAT}" was expected')
    return checked(Measurements, data, str(path))


def save_measurements(measurements: Measurements, path: Path) -> None:
    """Write the file, whole or not at all."""
    save_text(measurements.model_dump_json(indent=1, exclude_defaults=True) + "\n", path)

"""Which profile a measured device's name means, and at which clock it ran.

A table, by what the measurements' authors call the device. A name that says that the device was
inferred or is not known has no profile, and what was measured on it is not predicted.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, load_profile
from validate.figures import Figure


@dataclass(frozen=True)
class Device:
    """A device as a pattern of its name, the profile that it is, or why it has none.

    `base_clock_mhz` is what Nsight Compute locks its SMs to unless told otherwise.
    """

    name: str
    profile: str | None = None
    base_clock_mhz: float | None = None
    why: str = ""


# Base clocks: NVIDIA's A30 datasheet, L4 and T4 product briefs and GeForce RTX 5060 Ti page.
DEVICES = (
    Device(
        r".*\b(assumed|not stated|not in excerpt|does not say)\b.*", why="its device is a guess"
    ),
    Device(r"A100([- ]SXM4)?([- ]80 ?GB)?", "a100-sxm-80gb"),
    Device(r"A100([- ]SXM4)?[- ]40 ?GB", "a100-sxm-40gb"),
    Device(r"A800([- ]SXM4)?([- ]80 ?GB)?", "a800-sxm-80gb"),
    Device(r"A30", "a30", base_clock_mhz=930),
    Device(r"A40", "a40"),
    Device(r"A10G", "a10g"),
    Device(r"(RTX )?A5000", "rtx-a5000"),
    Device(r"(RTX )?A6000", "rtx-a6000"),
    Device(r"H100( SXM5?)?( 80 ?GB HBM3)?", "h100-sxm"),
    Device(r"H100 PCIe", "h100-pcie"),
    Device(r"H200( SXM)?", "h200-sxm"),
    Device(r"H800( SXM5?)?", "h800-sxm"),
    Device(r"H20", "h20"),
    Device(r"GH200", "gh200"),
    Device(r"B200( \(2250 TF peak by MFU\))?", "b200"),
    Device(r"B300", "b300"),
    Device(r"GB200", "gb200"),
    Device(r"GB300", "gb300"),
    Device(r"GB10", "gb10"),
    Device(r"L4", "l4", base_clock_mhz=795),
    Device(r"L20", "l20"),
    Device(r"L40S", "l40s"),
    Device(r"T4( \(.*\))?", "t4", base_clock_mhz=585),
    Device(r"V100( SXM2)?( 32 ?GB)?", "v100-sxm-32gb"),
    Device(r"(GeForce )?RTX 3090", "rtx-3090"),
    Device(r"(GeForce )?RTX 4090", "rtx-4090"),
    Device(r"(GeForce )?RTX 5090", "rtx-5090"),
    Device(r"(GeForce )?RTX 5060 Ti", "rtx-5060-ti", base_clock_mhz=2407),
    Device(r"RTX PRO 6000( Blackwell)?.*", "rtx-pro-6000-blackwell"),
    Device(r"MI300X", "mi300x"),
    Device(r"MI325X", "mi325x"),
)
# At which clock [MHz] of its SMs a device began a load, by the source of the row, where that was
# measured by others' means. The L40S of ai-dynamo/aiconfigurator's later collections takes 1.12
# times as long for bf16 matmuls of the same shapes as that of the first (vLLM 0.24.0 beside 0.14.0,
# systems/data/l40s/gemm, calls of up to 1.6 ms; TensorRT-LLM's and SGLang's alike), and exactly as
# long where HBM binds (m <= 16: 728 GB/s). After half a second it is 1.04 times.
SLOW_STARTS = (
    (re.compile(r"aiconfigurator.*/l40s/.*/(vllm/0\.2\d|sglang/0\.5\.1\d|trtllm/1\.3)"), 2220.0),
)
STATED_CLOCK = re.compile(r"clocks? (?:locked )?(?:at )?~?([\d.]+) ?(MHz|GHz)", re.IGNORECASE)
BASE_CLOCK = re.compile(r"\bbase clocks?\b", re.IGNORECASE)


class UnknownDeviceError(Exception):
    """A device's name means no profile; the message says why."""


def device_of(figure: Figure, otherwise: str | None = None) -> HardwareProfile:
    """The profile of the figure's device at the clock that the row states.

    `otherwise` is the profile for names that mean none. Raises UnknownDeviceError, and InputError
    where a profile cannot be read.
    """
    for device in DEVICES:
        if re.fullmatch(device.name, figure.gpu, re.IGNORECASE):
            if device.profile is None:
                break
            return _at(device.profile, _clock_mhz(figure, device))
    else:
        device = Device(figure.gpu, why="it is no profile's device; --profile NAME says which")
    if otherwise is not None:
        return _at(otherwise, _clock_mhz(figure, device))
    try:  # a table of one's own may name the profile itself
        return _at(figure.gpu, _clock_mhz(figure, device))
    except InputError:
        raise UnknownDeviceError(f"{figure.gpu}: {device.why}") from None


def _clock_mhz(figure: Figure, device: Device) -> float | None:
    """The SMs' clock where the row states it, or says that it is the base clock."""
    stated = STATED_CLOCK.search(f"{figure.gpu}; {figure.extra}")
    if stated:
        return float(stated[1]) * (1000 if stated[2].lower() == "ghz" else 1)
    if BASE_CLOCK.search(figure.extra):
        return device.base_clock_mhz
    return next((clock for source, clock in SLOW_STARTS if source.search(figure.source)), None)


@lru_cache(128)
def _at(profile: str, clock_mhz: float | None) -> HardwareProfile:
    hw = load_profile(profile)
    return hw if clock_mhz is None else at_clock(hw, clock_mhz * 1e6)


def at_clock(hw: HardwareProfile, clock_hz: float) -> HardwareProfile:
    """The device with its SMs and L2 at another clock: what takes cycles takes so much longer.

    HBM keeps its own clock, also in its latency, of which most is not on the chip, and with it a
    CTA's setup, which waits for what it reads.
    """
    ratio = clock_hz / hw.sm.clock
    rates = ("sm.clock", "l2.bandwidth")
    times = ["calibration.l2.latency"]
    times += [f"calibration.sm.{name}" for name in ("op_latency", "cta_start")]
    return hw.with_figures(
        {key: hw.figure(key) * ratio for key in rates}
        | {key: hw.figure(key) / ratio for key in times}
    )

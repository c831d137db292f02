"""What a device would cost: the area of its die, and the price of its parts.

    die   = fixed + stacks x interface + L2 bits + crossbar + SMs x (rest + SRAM + tensor cores)
    price = wafer price / dies a wafer + HBM + package

Every figure is an estimate or rests on some, so that only ratios of two designs mean something.
Each die is made to come out at its published area: `rest`, an SM's logic without SRAM and tensor
cores, is what the other parts leave over.

A design has as many spare SMs, L2 and stacks in proportion as the die it is derived from (GH100
has 144 SMs, an H100 uses 132), so that no die is thrown away for a defect. Designs are one die on
the same process, with HBM of the same speed a stack (not an H200's faster one); one larger than a
reticle cannot be made.

Sources. GA100's parts, from an annotated die photo: PrincetonUniversity/LLMCompass,
ae/figure6/real_hardware/die_area.csv (SMs 476.25 mm2, interconnect 76.44, L2 119.31, HBM PHY 58,
HBM control 31.77, NVLink and PCIe 20.95, other 40); PHYs do not shrink with the process (the same
paper, ISCA 2024, Section III-D). GH100: 814 mm2, 144 SMs, 60 MB L2, 6 stacks (NVIDIA's H100
whitepaper). Logic shrinks as the dies' transistors: 54.2e9 on 826 mm2, 80e9 on 814.
"""

import math
from dataclasses import dataclass

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile

MIB = 2.0**20
RETICLE_MM2 = 26 * 33  # the field of a scanner
SHRINK = (54.2 / 826) / (80 / 814)  # area of the same logic on 4N, of that on N7
CELL_SHRINK = 0.021 / 0.027  # bit cells of N5 and N7 in um2 (TSMC, IEDM; N7's recalled)

# A cache's bits with their periphery: 41 mm2 for 64 MiB on N7 (AMD's V-Cache, ISSCC 2022, 26.4).
L2_MM2_PER_MIB = 41 / 64
# GA100's interconnect, and what its L2 has beside the bits, for 5120 bytes a clock. That both grow
# with the bandwidth is an estimate.
CROSSBAR_MM2_PER_BYTE = (76.44 + 119.31 - 48 * L2_MM2_PER_MIB) / 5120
# Registers and shared memory on 4N: 0.77 mm2 for 768 KiB, measured on Thor's die
# (sun-lingyu/LLMCompassPlus, area_model/configs/Thor_die_mm.json).
SM_SRAM_MM2_PER_MIB = 0.77 / 0.75
# Tensor cores at 12 nm: 1.25 mm2 for the two SMs of a TPC, by the die photos of TU106 and TU116
# (Qesa's comparison, 2019), 1024 FLOP a clock each; TU106 has 10.8e9 transistors on 445 mm2.
# Later cores may be denser: an estimate.
TENSOR_MM2_PER_FLOP = 1.25 / 2 / 1024 * (10.8 / 445) / (54.2 / 826)
HBM_PHY_MM2, HBM_CONTROL_MM2 = 58 / 6, 31.77 / 6  # a stack
FIXED_MM2 = 826 - 476.25 - 76.44 - 119.31 - 58 - 31.77  # the same on both dies: an estimate

# 300 mm wafers: CSET, "AI Chips" (Khan and Mann, 2020), Table 9; estimates of its authors.
WAFER_MM = 300
# HBM at five times DDR5 (TrendForce, May 2024), that at 2.4 dollars a GB (spot price of October
# 2023 in LLMCompass, cost_model.py): an estimate.
HBM_DOLLARS_PER_GB = 12.0
# Package and interposer: an estimate of 750 dollars for an H100 (siliconanalysts.com, cost bridge,
# 2026), shared out over the die and six stacks of 110 mm2.
STACK_MM2 = 110
PACKAGE_DOLLARS_PER_MM2 = 750 / (814 + 6 * STACK_MM2)


@dataclass(frozen=True)
class Die:
    """A die that was made; areas in mm2, amounts of the whole die, `used` as a product has them."""

    name: str
    area: float
    sms: int
    used_sms: int
    l2_mib: float
    used_l2_mib: float
    stacks: int
    used_stacks: int
    stack_bytes_per_s: float  # of the products' HBM
    sm_sram_bytes: float  # shared memory and registers of an SM
    sm_flops_per_clock: float  # of 16-bit matmuls
    logic: float  # area of logic, of that on N7
    cell: float  # area of a bit cell, of that on N7
    wafer_dollars: float

    @property
    def stack_mm2(self) -> float:
        """One stack's interface."""
        return HBM_PHY_MM2 + HBM_CONTROL_MM2 * self.logic

    def uncore_mm2(self, stacks: float, l2_mib: float, l2_bytes_per_clock: float) -> float:
        """All but the SMs; `stacks` and `l2_mib` with the spare ones."""
        return (
            FIXED_MM2
            + stacks * self.stack_mm2
            + l2_mib * L2_MM2_PER_MIB * self.cell
            + l2_bytes_per_clock * CROSSBAR_MM2_PER_BYTE * self.logic
        )

    def sm_parts_mm2(self, sram_bytes: float, flops_per_clock: float) -> float:
        """SRAM and tensor cores of an SM."""
        sram_mm2_per_mib = SM_SRAM_MM2_PER_MIB * self.cell / CELL_SHRINK
        tensor_mm2 = flops_per_clock * TENSOR_MM2_PER_FLOP * self.logic
        return sram_bytes / MIB * sram_mm2_per_mib + tensor_mm2

    @property
    def sm_rest_mm2(self) -> float:
        """An SM's logic: what the other parts leave of the die."""
        left = self.area - self.uncore_mm2(self.stacks, self.l2_mib, 5120)
        return left / self.sms - self.sm_parts_mm2(self.sm_sram_bytes, self.sm_flops_per_clock)


DIES = {
    "sm80": Die(
        name="GA100",
        area=826,
        sms=128,
        used_sms=108,
        l2_mib=48,
        used_l2_mib=40,
        stacks=6,
        used_stacks=5,
        stack_bytes_per_s=2.039e12 / 5,
        sm_sram_bytes=(164 + 256) * 1024,
        sm_flops_per_clock=2048,
        logic=1.0,
        cell=1.0,
        wafer_dollars=9346,
    ),
    "sm90": Die(
        name="GH100",
        area=814,
        sms=144,
        used_sms=132,
        l2_mib=60,
        used_l2_mib=50,
        stacks=6,
        used_stacks=5,
        stack_bytes_per_s=3.35e12 / 5,
        sm_sram_bytes=(228 + 256) * 1024,
        sm_flops_per_clock=4096,
        logic=SHRINK,
        cell=CELL_SHRINK,
        wafer_dollars=16988,
    ),
}

# What the area depends on; a design that changes anything else would have it for nothing.
COUNTED = (
    "hbm.bandwidth",
    "hbm.capacity",
    "l2.bandwidth",
    "l2.capacity",
    "sm.count",
    "sm.registers",
    "sram.capacity",
    "tensor.bf16",
    "tensor.fp16",
    "tensor.fp8",
)


def die_of(hw: HardwareProfile) -> Die:
    """The die that the device's costs are derived from; raises InputError where none is known."""
    if hw.arch not in DIES:
        raise InputError(
            f"{hw.name} is {hw.arch}: areas and prices are known of {', '.join(DIES)} only"
        )
    return DIES[hw.arch]


def stacks_of(hw: HardwareProfile) -> float:
    """Sites for HBM stacks, also spare ones: as much of one as the bandwidth needs."""
    die = die_of(hw)
    return hw.hbm.bandwidth / die.stack_bytes_per_s * die.stacks / die.used_stacks


def die_area_mm2(hw: HardwareProfile, dtype: str) -> float:
    """Area of the device's die, its tensor cores being those that the rate of `dtype` needs.

    Raises InputError where it exceeds a reticle.
    """
    die = die_of(hw)
    flops_per_clock = hw.tensor_flops_per_clock(dtype) or hw.tensor.fp16 or 0.0
    if dtype == "fp8":
        flops_per_clock /= 2
    sm_mm2 = die.sm_rest_mm2 + die.sm_parts_mm2(
        hw.sram.capacity + 4 * hw.sm.registers, flops_per_clock
    )
    area = hw.sm.count * die.sms / die.used_sms * sm_mm2 + die.uncore_mm2(
        stacks_of(hw),
        hw.l2.capacity / MIB * die.l2_mib / die.used_l2_mib,
        hw.l2.bandwidth / hw.sm.clock,
    )
    if area > RETICLE_MM2:
        raise InputError(f"a die of {area:.0f} mm2 exceeds the {RETICLE_MM2} mm2 of a reticle")
    return area


def dies_per_wafer(area_mm2: float) -> float:
    """Square dies on a round wafer, less those that its edge cuts (the usual estimate)."""
    across = math.pi * WAFER_MM / math.sqrt(2 * area_mm2)
    return math.pi * (WAFER_MM / 2) ** 2 / area_mm2 - across


def price_dollars(hw: HardwareProfile, dtype: str) -> float:
    """Die, HBM and package; without the board, test, margins and design. Raises InputError."""
    area = die_area_mm2(hw, dtype)
    return (
        die_of(hw).wafer_dollars / dies_per_wafer(area)
        + hw.hbm.capacity / 1e9 * HBM_DOLLARS_PER_GB
        + (area + stacks_of(hw) * STACK_MM2) * PACKAGE_DOLLARS_PER_MM2
    )

"""Instructions of a compiled kernel (SASS), and what one does: its class, FLOPs and SRAM bytes.

An instruction is a warp's. The classes:

    mma       matmuls of any type and path          ldsm      LDSM
    fp32      FMUL, FADD, FFMA, also packed         lds_sts   LDS, STS, STSM; spills (LDL, STL)
    mufu      exponentials, reciprocals             global    loads, stores and copies (also TMA)
    minmax    FMNMX                                 uniform   the uniform datapath
    convert   F2F, F2FP, I2F                        control   branches, barriers, waiting, NOP
    shuffle   SHFL                                  alu       all else

What opcodes mean: CUDA Binary Utilities (NVIDIA), section "Instruction Set Reference".
"""

import json
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from shutil import which
from typing import Literal, get_args

from sim.inputs.files import InputError
from sim.machine_code.kernel import EXTRA, CompiledKernel

InstructionClass = Literal[
    "mma", "fp32", "mufu", "minmax", "convert", "shuffle", "ldsm", "lds_sts", "global", "uniform",
    "control", "alu",
]  # fmt: skip
CLASSES: tuple[InstructionClass, ...] = get_args(InstructionClass)
INSTRUCTION_BYTES = 16
WARP_LANES = 32
WARPS_A_GROUP = 4

_OF_CLASS: dict[InstructionClass, str] = {
    "fp32": "FMUL FADD FFMA FMUL2 FADD2 FFMA2 FMUL32I FADD32I FFMA32I",
    "mufu": "MUFU",
    "minmax": "FMNMX FMNMX3",
    "convert": "F2F F2FP I2F I2FP F2I",
    "shuffle": "SHFL",
    "ldsm": "LDSM",
    "lds_sts": "LDS STS STSM LDL STL",
    "global": "LD ST LDG STG LDGSTS LDGDEPBAR ATOM ATOMG RED REDG UTMALDG UTMASTG UTMAREDG UTMAPF "
    "UTMACMDFLUSH UBLKCP UBLKRED UBLKPF CCTL",
    "uniform": "R2UR REDUX S2UR VOTEU",  # and all that begins with U
    "control": "BRA BRX JMP JMX CALL RET EXIT BSSY BSYNC BREAK BMOV WARPSYNC WARPGROUP BAR "
    "DEPBAR MEMBAR FENCE ERRBAR SYNCS YIELD NANOSLEEP NOP ELECT KILL BPT RPCMOV USETMAXREG "
    "ACQBULK ARRIVES UCGABAR_ARV UCGABAR_WAIT",
}
_CLASS_OF = {root: of for of, roots in _OF_CLASS.items() for root in roots.split()}
_MMA = re.compile(r"(?:H|Q|I|B|D|O)MMA$|(?:H|Q|I|B)GMMA$|UTC\w*MMA$")
# m x n x k of a warp ("16816") and of a warp group ("64x128x16").
_WARP_SHAPE = re.compile(r"\.(16|8)(8)(\d{1,3})(?=\.|$)")
_GROUP_SHAPE = re.compile(r"\.(64)x(\d+)x(\d+)(?=\.|$)")
_MMA_DTYPES = {"BF16": "bf16", "F16": "fp16", "E4M3": "fp8", "E5M2": "fp8", "TF32": "tf32"}


@dataclass(frozen=True)
class Instruction:
    """A warp instruction, such as "@!P0", "HMMA.16816.F32.BF16", "R4,R8,R12,R4".

    `control` is what the assembler has decided on its issue (sim/machine_code/played.py).
    """

    predicate: str
    opcode: str
    operands: str
    control: int = 0

    @cached_property
    def root(self) -> str:
        """What stands before the modifiers: "HMMA"."""
        return self.opcode.partition(".")[0]

    @cached_property
    def of(self) -> InstructionClass:
        """Its class."""
        if _MMA.match(self.root):
            return "mma"
        known = _CLASS_OF.get(self.root)
        return known or ("uniform" if self.root[0] == "U" else "alu")

    @property
    def waits_for_all(self) -> bool:
        """Whether it is a barrier of the whole CTA, not of so many threads of it."""
        return self.opcode.startswith(("BAR.SYNC", "BAR.RED")) and self.operands.count(",") == 0

    @property
    def address(self) -> int | None:
        """Where a branch goes [bytes from the kernel's start]; None where it is no such number."""
        last = self.operands.rpartition(",")[2]
        return int(last, 16) if self.root == "BRA" and last.startswith("0x") else None

    @property
    def always_leaves(self) -> bool:
        """Whether what stands behind it is not reached from it."""
        conditional = self.predicate or "," in self.operands
        return self.root in ("BRA", "EXIT", "RET", "BRX", "JMP") and not conditional

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """A matmul's m, n, k, as the warp or the warp group does it; None where it is not told.

        tcgen05's stands in a descriptor. Source: PTX ISA, "Matrix Shape" of mma and wgmma.
        """
        found = _GROUP_SHAPE.search(self.opcode) or _WARP_SHAPE.search(self.opcode)
        if self.of != "mma" or found is None:
            return None
        m, n, k = map(int, found.groups())
        return m, n, k

    @property
    def by_warp_group(self) -> bool:
        """Whether four warps do it together, each a quarter (wgmma)."""
        return self.root.endswith("GMMA")

    @property
    def flops(self) -> float | None:
        """FLOPs of a warp's part of a matmul; None where its shape is not told."""
        if self.shape is None:
            return None
        m, n, k = self.shape
        return 2 * m * n * k / (WARPS_A_GROUP if self.by_warp_group else 1)

    @property
    def dtype(self) -> str | None:
        """A matmul's, such as "bf16"; "fp16" where the opcode tells none (HMMA of fp16)."""
        if self.of != "mma" or self.root[0] in "IBD":
            return None
        told = [_MMA_DTYPES[part] for part in self.opcode.split(".") if part in _MMA_DTYPES]
        return told[-1] if told else "fp16" if self.root[0] == "H" else None

    @property
    def fp32_lanes(self) -> int:
        """Lane operations on the fp32 pipe; a packed instruction does two a lane."""
        return 0 if self.of != "fp32" else WARP_LANES * (2 if self.root.endswith("2") else 1)

    @property
    def sram_bytes(self) -> float:
        """Shared memory that a warp reads or writes, bank conflicts left out.

        Also by copies to it (LDGSTS) and by a matmul of a warp group: a warp has a quarter of it.
        A TMA copy does not tell its bytes here.
        """
        if self.root in ("LDSM", "STSM"):  # 8 x 8 matrices of 16 bits
            return 128 * int(self.opcode[-1] if self.opcode[-1] in "24" else 1)
        if self.root in ("LDS", "STS", "LDGSTS"):
            bits = re.search(r"\.[US]?(8|16|64|128)(?=\.|$)", self.opcode)
            return WARP_LANES * (int(bits[1]) if bits else 32) / 8
        if self.by_warp_group and self.shape:
            m, n, k = self.shape
            element_bytes = 2 if self.root[0] == "H" else 1
            # B is read from shared memory; A too, unless it stands in registers.
            a = 0 if self.operands.split(",")[1].startswith("R") else m * k
            return (a + n * k) * element_bytes / WARPS_A_GROUP
        return 0


def mix_of(instructions: Iterable[Instruction]) -> dict[InstructionClass, int]:
    """How many there are of each class."""
    counted = Counter(instruction.of for instruction in instructions)
    return {of: counted[of] for of in CLASSES}


def instructions_of(kernel: CompiledKernel) -> list[Instruction]:
    """The kernel's instructions in their order; raises InputError without nvdisasm."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.cubin)
        command = [str(nvdisasm()), "-c", "-json", "-fun", str(kernel.symbol), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        functions = json.loads(done.stdout)[1]
        (found,) = [one for one in functions if one["function-name"] == kernel.name]
    except (ValueError, IndexError, KeyError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise InputError(f"{kernel.name}: nvdisasm cannot read it; it says: {said}") from None
    words = struct.iter_unpack("<QQ", kernel.code)
    return [
        Instruction(one.get("predicate", ""), one["opcode"], one.get("operands", ""), word >> 41)
        for one, (_, word) in zip(found["sass-instructions"], words, strict=True)
    ]


def nvdisasm() -> Path:
    """NVIDIA's disassembler: of its wheel, in Triton's, or on the PATH; raises InputError."""
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if Path(file.name).stem == "nvdisasm"]
    triton = util.find_spec("triton")
    if triton is not None and triton.submodule_search_locations:
        found.append(Path(triton.submodule_search_locations[0], "backends/nvidia/bin/nvdisasm"))
    on_path = which("nvdisasm")
    found += [Path(on_path)] if on_path else []
    existing = [path for path in found if path.exists()]
    if not existing:
        raise InputError(f"reading machine code needs nvdisasm, which is not installed: {EXTRA}")
    return existing[0]

"""Loops in a kernel's instructions, and which of them is the main one.

A loop is a backward branch that can be reached again from where it goes, without leaving what
stands between. Blocks that wait at the end of a kernel and jump back are none. Its *trip* is all
that stands between, once: both sides of a condition, and inner loops as if they ran once.
"""

from dataclasses import dataclass
from functools import cached_property

from sim.machine_code.sass import INSTRUCTION_BYTES, Instruction, InstructionClass, mix_of


@dataclass(frozen=True, eq=False)
class Loop:
    """The instructions from the number `first` to the branch back, `last`."""

    first: int
    last: int
    body: list[Instruction]

    @cached_property
    def mix(self) -> dict[InstructionClass, int]:
        """What a warp executes a trip, by class."""
        return mix_of(self.body)

    @property
    def mma_flops(self) -> float | None:
        """FLOPs of a warp's trip on tensor cores; None where a matmul does not tell its shape."""
        flops = [one.flops for one in self.body if one.of == "mma"]
        return None if None in flops else sum(filter(None, flops))

    @property
    def barriers(self) -> int:
        """How often a trip all warps of the CTA meet."""
        return sum(one.waits_for_all for one in self.body)

    @property
    def exponentials(self) -> int:
        """MUFU.EX2 of a trip."""
        return sum(one.opcode.startswith("MUFU.EX2") for one in self.body)


@dataclass(frozen=True, eq=False)
class MainLoop:
    """The loop in which a kernel spends its time, as far as its code tells, and why that one."""

    loop: Loop
    why: str


def loops_of(code: list[Instruction]) -> list[Loop]:
    """The loops of a kernel, in the order of their branches."""
    found = []
    for last, branch in enumerate(code):
        address = branch.address
        if address is None or address // INSTRUCTION_BYTES > last:
            continue
        first = address // INSTRUCTION_BYTES
        if first < last and _comes_back(code, first, last):
            found.append(Loop(first, last, code[first : last + 1]))
    return found


def main_loop(loops: list[Loop]) -> MainLoop | None:
    """The main one of a kernel's loops; None where it has none."""
    if not loops:
        return None
    flash = [loop for loop in loops if loop.mix["mma"] and loop.exponentials]
    if flash:
        smallest = min(flash, key=lambda loop: len(loop.body))
        return MainLoop(smallest, "the smallest that holds both a matmul and an exponential")
    most = max(loops, key=lambda loop: (loop.mix["mma"], -len(loop.body)))
    if most.mix["mma"]:
        return MainLoop(most, "the one with the most matmuls; none has exponentials beside them")
    largest = max(loops, key=lambda loop: len(loop.body))
    return MainLoop(largest, "the largest; none has a matmul")


def _comes_back(code: list[Instruction], first: int, last: int) -> bool:
    """Whether the branch at `last` is reached from `first` by what stands between."""
    reached, to_visit = set(), [first]
    while to_visit:
        at = to_visit.pop()
        while first <= at <= last and at not in reached:
            if at == last:
                return True
            reached.add(at)
            address = code[at].address
            if address is not None:
                to_visit.append(address // INSTRUCTION_BYTES)
            if code[at].always_leaves:
                break
            at += 1
    return False

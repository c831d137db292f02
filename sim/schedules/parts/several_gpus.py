"""What schedules over several GPUs share: how many, their links, results merged from parts.

Part of the keys gives a part of the result: its O and log-sum-exp. Parts are merged in fp32:

    LSE' = LSE + log(1 + exp(LSE_part - LSE))
    O'   = O + sigmoid(LSE_part - LSE) (O_part - O)

Source: zhuzilin/ring-flash-attention, ring_flash_attn/utils.py (update_out_and_lse). Its pointwise
operations are taken here as one fused kernel that touches each tensor once (elementwise.py); both
are estimates, as is the count of operations.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.machine import peer_link
from sim.schedules.base import STATISTICS_BYTES, blocks
from sim.schedules.parts.elementwise import elementwise, rows_of
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.results import Result
from sim.tile_program import Command, IntArray, Kernel, Stream, Tensor


class SeveralGpus(FlashSchedule):
    """A schedule over `gpus` GPUs; the other options are those of the kernels on each of them."""

    gpus: Annotated[int, Field(ge=2)]

    on_several_gpus = True
    rotates = False

    def share(self, key: str, count: int, ways: int | None = None) -> int:
        """One GPU's share of `count`; raises InputError where it does not come out even.

        `ways` is in how many parts it is cut where that is not one a GPU.
        """
        ways = ways or self.gpus
        if count % ways:
            raise InputError(
                f"schedule {self.name}: gpus = {self.gpus}: workload.{key} = {count}: a multiple "
                f"of {ways} was expected"
            )
        return count // ways

    def check_links(self, hw: HardwareProfile) -> None:
        """Raises InputError where the profile lacks a link that so many GPUs need."""
        for other in (1, self.gpus - 1):
            try:
                peer_link(hw, 0, other)
            except InputError as error:
                raise InputError(f"schedule {self.name}: gpus = {self.gpus}: {error}") from None


def merged_like(part: Result) -> Result:
    """Room for the merged result of parts of that shape: O in fp32."""
    o = part.o
    return Result(
        Tensor("O in fp32", o.groups, o.rows, o.cols, STATISTICS_BYTES),
        Tensor("merged LSE", o.groups, o.rows, 1, STATISTICS_BYTES),
    )


def start_kernel(part: Result, merged: Result) -> Kernel:
    """The first part becomes the merged result."""
    return rows_kernel("to fp32", [part.o, part.lse], [merged.o, merged.lse], vector_ops=1)


def merge_kernel(part: Result, merged: Result, chunks: int = 1, first: int = 0) -> Kernel:
    """One more part is merged: as in `rows_kernel`, into the chunks from `first` on."""
    both = [merged.o, merged.lse]
    reads = [*both, part.o, part.lse]
    # A lane each: the difference, its product with the weight added (an FMA), conversion to fp32.
    return rows_kernel("merge", reads, both, 3, exps_a_row=2, chunks=chunks, first=first)


def finish_kernel(merged: Result, o: Tensor) -> Kernel:
    """O as the workload's dtype has it."""
    return rows_kernel("to dtype", [merged.o], [o], vector_ops=1)


def copy_kernel(name: str, source: Tensor, target: Tensor) -> Kernel:
    """A copy into another order; its tensors are of one shape, its accesses taken as in order."""
    return rows_kernel(name, [source], [target], vector_ops=0)


def rows_kernel(
    name: str,
    reads: list[Tensor],
    writes: list[Tensor],
    vector_ops: int,
    exps_a_row: int = 0,
    *,
    chunks: int = 1,
    first: int = 0,
) -> Kernel:
    """An elementwise kernel over whole rows; its tensors have the same groups and rows.

    `vector_ops` are lane operations an element of the widest tensor. Of every `chunks` groups only
    those from number `first` on take part.
    """
    widest = max([*reads, *writes], key=lambda tensor: tensor.cols)
    rows = rows_of(widest)
    down = blocks(widest.rows, rows)
    grid = Grid(down, chunks - first, widest.groups // chunks)

    def tile(items: IntArray) -> IntArray:
        block, chunk, among = grid.at(items)
        return (among * chunks + first + chunk) * down + block

    kernel = elementwise(
        name,
        [Stream(tensor, rows, tensor.cols, tile) for tensor in reads],
        [Stream(tensor, rows, tensor.cols, tile) for tensor in writes],
        vector_ops * rows * widest.cols,
        exps_a_row * rows,
    )
    return replace(kernel, ctas=grid.size, periods=widest.groups // chunks)


def run_kernels(
    kernels: Iterable[Kernel], gpu: int, after: tuple[Command, ...] = ()
) -> list[Command]:
    """The kernels in order on one GPU; the first waits for `after`."""
    commands: list[Command] = []
    for kernel in kernels:
        commands.append(Command(kernel, gpu, after if not commands else ()))
    return commands

"""What schedules over several GPUs share: how many, their links, results merged from parts.

Part of the keys gives a part of the result: its O and log-sum-exp. Parts are merged in fp32:

    LSE' = LSE + log(1 + exp(LSE_part - LSE))
    O'   = O - sigmoid(LSE_part - LSE) (O - O_part)

Source: zhuzilin/ring-flash-attention, ring_flash_attn/utils.py (update_out_and_lse). PyTorch runs
it as a kernel for each operation, of which those on O move 3.8 times the bytes of one that is fused
(pointwise_merge); where the result of a slice is put back (`slice_`), two copies come after them.
It is scripted (torch.jit), which could fuse: that it does not is an inference. With these kernels
the balanced rings of its README come out within 11% on 8 H800s and 8 A100s, with 32 heads and with
5, fused up to 24% too fast; and vllm-project/vllm-omni, pull request 5187, which replaces the same
function by one Triton kernel, found "several elementwise kernels". merge_kernel is the fused one,
which touches each tensor once. Counts of vector operations are estimates.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import whole
from sim.inputs.workload import AttentionWorkload
from sim.machine import peer_link
from sim.schedules.base import STATISTICS_BYTES, blocks
from sim.schedules.parts.elementwise import elementwise, rows_of
from sim.schedules.parts.flash_schedule import FlashSchedule
from sim.schedules.parts.grid import Grid
from sim.schedules.parts.results import Result
from sim.tile_program import Command, IntArray, Kernel, Stream, Tensor

MOST_GPUS = 256
# Tokens x gpus^2, with which kernels and transfers grow: a ring's are 11 times as many, and take
# 2 s to list.
MOST_MEETINGS = MOST_GPUS**2


class SeveralGpus(FlashSchedule):
    """A schedule over `gpus` GPUs; the other options are those of the kernels on each of them."""

    gpus: Annotated[int, Field(ge=2, le=MOST_GPUS), whole(2, MOST_GPUS)]

    on_several_gpus = True
    rotates = False

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or so many tokens."""
        super().check(w)
        meetings = w.tokens * self.gpus**2
        if meetings > MOST_MEETINGS:
            raise InputError(
                f"schedule {self.name}: gpus = {self.gpus}, workload.tokens = {w.tokens}: tokens x "
                f"gpus^2 is {meetings:,}: at most {MOST_MEETINGS:,} was expected"
            )

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


def pointwise_merge(
    part: Result, merged: Result, chunks: int = 1, first: int = 0, *, sliced: bool = False
) -> list[Kernel]:
    """The same as PyTorch runs it, operation after operation; `sliced` puts the result back.

    Of every `chunks` groups only those from number `first` on take part, as in `rows_kernel`.
    """
    o, lse = merged.o, merged.lse

    def new(name: str, like: Tensor) -> Tensor:
        return Tensor(name, like.groups, like.rows, like.cols, STATISTICS_BYTES)

    wide, difference, weighted = (new(name, o) for name in ("O_s", "O - O_s", "weighted"))
    ahead, weight, behind, log = (
        new(name, lse) for name in ("LSE_s - LSE", "weight", "LSE - LSE_s", "log sigmoid")
    )
    o_to, lse_to = (new("O'", o), new("LSE'", lse)) if sliced else (o, lse)
    passes: list[tuple[str, list[Tensor], Tensor, int]] = [
        ("O_s to fp32", [part.o], wide, 0),
        ("LSE_s - LSE", [part.lse, lse], ahead, 0),
        ("sigmoid", [ahead], weight, 1),
        ("O - O_s", [o, wide], difference, 0),
        ("weight", [weight, difference], weighted, 0),
        ("O", [o, weighted], o_to, 0),
        ("LSE - LSE_s", [lse, part.lse], behind, 0),
        ("log sigmoid", [behind], log, 2),
        ("LSE", [lse, log], lse_to, 0),
    ]
    if sliced:
        passes += [("put O back", [o_to], o, 0), ("put LSE back", [lse_to], lse, 0)]
    return [
        rows_kernel(f"merge: {name}", reads, [to], 1, exps, chunks=chunks, first=first)
        for name, reads, to, exps in passes
    ]


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
    kernels: Iterable[Kernel],
    gpu: int,
    after: tuple[Command, ...] = (),
    host_s: tuple[float, float] = (0.0, 0.0),
) -> list[Command]:
    """The kernels in order on one GPU; the first waits for `after`.

    `host_s` is what the host does before it launches the first, and before each other one.
    """
    commands: list[Command] = []
    for kernel in kernels:
        waits, before_s = ((), host_s[1]) if commands else (after, host_s[0])
        commands.append(Command(kernel, gpu, waits, before_s))
    return commands

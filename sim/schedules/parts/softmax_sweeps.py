"""Softmax in sweeps over rows: forward where no CTA holds a row, and backward.

    P = softmax(S)                   S is read three times: for the maximum, the sum, the result
    dS = P dP - P rowsum(P dP)       P and P dP once where a CTA holds a row, else P dP twice

Source: pytorch/pytorch, aten/src/ATen/native/cuda/SoftMax.cu (cunn_SoftMaxForward,
softmax_backward_cuda_out), PersistentSoftmax.cuh.
"""

from dataclasses import dataclass

from sim.inputs.hardware import HardwareProfile
from sim.schedules.base import blocks, of_constant
from sim.schedules.parts import registers
from sim.tile_program import Compute, Footprint, Kernel, Load, Loop, Store, Stream, Tensor

# SoftMax.cu, host_softmax_backward: up to so many columns and bytes one warp a row, 4 rows a block
# of 128 threads, its row in fp32 registers; above, a block of 1024 threads a row.
SOFTMAX_BACKWARD_WARP = (1024, 4096)
LONG_ROW_COLS = 4096  # of a pass over a row that does not fit a CTA: an estimate


def swept_softmax(scores: Tensor, p: Tensor, hw: HardwareProfile, *, own: bool) -> Kernel:
    """P = softmax(S), each row read three times.

    A block of 1024 threads has a row, in SRAM if that fits; of someone's `own` kernel 256 threads
    have one, which is read from L2 each time.
    """
    of = _ByRows.of(scores, hw, (0, 0))
    if own:
        of = _ByRows(scores, 1, False, Footprint(0, 256, registers.LONG_ROWS))
    return of.kernel(
        "P = softmax(S)",
        of.sweep("row maximum", (scores,), 1, 0),
        of.sweep("row sum", (scores,), 2, 1),
        of.sweep("normalise", (scores,), 2, 1, p),
    )


def softmax_backward_kernel(p: Tensor, product: Tensor, ds: Tensor, hw: HardwareProfile) -> Kernel:
    """dS = P dP - P rowsum(P dP): whole rows as in forward, else P dP is read a second time."""
    of = _ByRows.of(p, hw, SOFTMAX_BACKWARD_WARP, tensors=2)
    # Sum; multiply and subtract (one FMA), convert.
    sweeps = [of.sweep("dS", (p, product), 3 if of.whole else 2, 0, ds)]
    if not of.whole:
        sweeps.insert(0, of.sweep("row sum", (product,), 1, 0))
    return of.kernel("dS = softmax backward", *sweeps)


@dataclass(frozen=True)
class _ByRows:
    """How eager softmax goes through matrices: so many rows a CTA, whole if they fit it."""

    matrix: Tensor
    rows: int
    whole: bool
    footprint: Footprint

    @classmethod
    def of(
        cls, matrix: Tensor, hw: HardwareProfile, most: tuple[int, int], tensors: int = 1
    ) -> "_ByRows":
        """A warp a row of up to so many columns and bytes, which holds it of so many tensors.

        Above that a block a row, which has it in SRAM if it fits.
        """
        cols, row_bytes = matrix.cols, matrix.cols * matrix.element_bytes
        if cols <= most[0] and row_bytes <= most[1]:
            taken = registers.rows_by_warp(cols, tensors)
            return cls(matrix, 4, True, Footprint(0, 128, taken))
        fits = row_bytes <= hw.sram.max_per_cta
        footprint = Footprint(row_bytes if fits else 0, 1024, registers.LONG_ROWS)
        return cls(matrix, 1, fits, footprint)

    @property
    def width(self) -> int:
        """Columns of a trip."""
        return self.matrix.cols if self.whole else LONG_ROW_COLS

    @property
    def across(self) -> int:
        """Trips of a sweep over the CTA's rows."""
        return blocks(self.matrix.cols, self.width)

    def stream(self, tensor: Tensor) -> Stream:
        """A sweep over the CTA's rows of a tensor of that shape."""
        return Stream(tensor, self.rows, self.width, lambda items: items * self.across, 1)

    def sweep(self, name: str, reads: tuple[Tensor, ...], ops: int, exps: int, *to: Tensor) -> Loop:
        """A loop over the rows, with so many operations an element, that stores `to`."""
        loads = tuple(Load(self.stream(tensor)) for tensor in reads)
        elements = self.rows * self.width
        work = Compute(name, loads, vector_ops=ops * elements, exp_count=exps * elements)
        stores = (Store(self.stream(tensor)) for tensor in to)
        return Loop(of_constant(self.across), (*loads, work, *stores))

    def kernel(self, name: str, *sweeps: Loop) -> Kernel:
        """The kernel of these sweeps."""
        return Kernel(
            name=name,
            ctas=self.matrix.groups * blocks(self.matrix.rows, self.rows),
            loops=sweeps,
            footprint=self.footprint,
            periods=self.matrix.groups,
        )

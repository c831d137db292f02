"""The options that all schedules built on the FlashAttention-2 loop have, and what they mean."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import Schedule, TiledSchedule
from sim.schedules.parts import registers
from sim.schedules.parts.flash_cta import (
    FLASH2_HEAD_DIMS,
    FlashCta,
    flash_sram_bytes,
    triton_buffers,
    triton_meetings,
)
from sim.schedules.parts.rope import angles_of, check_fused, with_passes
from sim.tile_program import Command, in_order

Implementation = Literal["cuda", "triton", "sglang"]
Like = TypeVar("Like", bound="FlashSchedule")


class FlashSchedule(TiledSchedule):
    """What all schedules built on the FlashAttention-2 loop take.

    `implementation` says whose kernel it is: FlashAttention's CUDA with its mma.sync, or Triton's
    with the device's best matmuls. `warps`, and `stages` of K and V buffers, are that
    kernel's unless given. `rope` rotates Q and K in kernels before (`pass`) or in the loop
    (`fused`), as rope.py tells; a schedule of which `rotates` is false takes them rotated.
    """

    implementation: Literal["cuda", "triton"] = "cuda"
    warps: Literal[4, 8, 16] | None = None
    stages: Annotated[int, Field(ge=1, le=8)] | None = None
    rope: Literal["pass", "fused"] | None = None

    rotates: ClassVar[bool] = True
    multiplies_fp8: ClassVar[bool] = False  # a schedule that stands for more than FlashAttention-2

    @property
    def compiled_by_triton(self) -> bool:
        """Whether it is Triton's flash kernel, or SGLang's."""
        return self.implementation in ("triton", "sglang")

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or no `rope`."""
        super().check(w)
        self._check_compiled(w)
        if self.rope and w.lengths is not None:
            raise InputError(
                f'schedule {self.name}: rope = "{self.rope}": sequences of one length were '
                "expected; of lists of lengths it takes Q and K rotated (no rope)"
            )
        if self.rope and not self.rotates:
            raise InputError(
                f'schedule {self.name}: rope = "{self.rope}": it takes Q and K rotated (no rope)'
            )

    def _check_compiled(self, w: AttentionWorkload) -> None:
        """csrc/flash_attn/flash_api.cpp, mha_fwd: head_dim up to 256, no fp8."""
        if self.compiled_by_triton:
            return
        most = FLASH2_HEAD_DIMS[-1]
        if w.head_dim > most:
            raise InputError(
                f"schedule {self.name}: workload.head_dim = {w.head_dim}: FlashAttention-2 has "
                f'kernels up to {most}; beyond are implementation = "triton", and naive'
            )
        if w.dtype == "fp8" and not self.multiplies_fp8:
            raise InputError(
                f'schedule {self.name}: workload.dtype = "fp8": FlashAttention-2 has kernels of '
                'fp16 and bf16; in fp8 are implementation = "triton", and flash3'
            )

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """What runs: the kernels in order, with `rope`, for each token that is decoded."""
        kernels = self.lower(w, hw)
        if self.rope == "fused":
            check_fused(self.name, kernels)
        if self.rope == "pass":
            kernels = with_passes(w, self.name, kernels)
        return in_order(kernels * w.tokens)

    def like(self, schedule: type[Like], **options: Any) -> Like:
        """Another schedule on the loop, with this one's options of the loop and those given."""
        keys = FlashSchedule.model_fields.keys() - Schedule.model_fields.keys()
        return schedule.model_validate({key: getattr(self, key) for key in keys} | options)

    def cta(self, public: FlashCta, w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
        """The CTA asked for, else the public one if it fits, else with the largest tile that does.

        Raises InputError.
        """
        warps, stages = self.warps or public.warps, public.stages
        if self.stages:
            stages = triton_buffers(self.stages) if self.compiled_by_triton else self.stages
        filled = public.filled(w)
        tile = self.fit_tile(public.tile, flash_sram_bytes(filled, stages), w, hw)
        # A warp has 16 rows; warps beyond the tile's rows share out the keys.
        taken, readers, meetings = registers.FLASH_CUDA, min(warps, tile.q // 16), public.meetings
        if self.compiled_by_triton:
            taken = registers.triton_flash(tile, filled.head_dim, warps)
            if str(self.implementation) == "sglang":  # of those that widen the literal
                taken = registers.sglang_flash(warps)
            meetings = triton_meetings(hw)
            if hw.matmul_by_warp_group:
                readers = warps // 4
        return replace(
            public,
            tile=tile,
            warps=warps,
            stages=stages,
            registers_per_thread=taken,
            kv_readers=readers,
            meetings=meetings,
            angles=angles_of(w, self.name) if self.rope == "fused" else None,
        )

"""The options that all schedules built on the FlashAttention-2 loop have, and what they mean."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from sim.inputs.files import InputError, file_of
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import BytesOrNone, whole
from sim.inputs.workload import AttentionWorkload
from sim.machine import fits_sm
from sim.machine_code.counts import files_read, flash_loop_of
from sim.schedules.base import Schedule, Taken, TiledSchedule, changes_asked
from sim.schedules.parts.flash_cta import (
    FLASH2_HEAD_DIMS,
    FlashCta,
    flash_sram_bytes,
    triton_buffers,
    triton_kv_readers,
    triton_meetings,
)
from sim.schedules.parts.own_kernel import Asked, fits, own_trip
from sim.schedules.parts.registers import MOST, sglang_flash, triton_flash
from sim.schedules.parts.rope import angles_of, check_fused, with_passes
from sim.schedules.parts.scores import changes, masked
from sim.tile_program import Command, in_order

Implementation = Literal["cuda", "triton", "sglang", "fa3", "mem-efficient", "trtllm"]
BY_CUDA = ("cuda", "trtllm")  # whose loop is FlashAttention-2's
MASKED_BY_DIAGONAL = (*BY_CUDA, "fa3")  # a score at a time, on the trips that it may cross
# How a kernel of each can change scores before the softmax.
CHANGES: dict[str, tuple[Taken, ...]] = {
    "cuda": ("softcap", "alibi"),
    "triton": ("softcap", "alibi", "bias"),
    "flashinfer": ("softcap", "alibi"),
    "fa3": ("softcap",),
    "trtllm": ("softcap", "alibi"),
    "mem-efficient": ("bias",),
}
WARPS, MOST_STAGES = (4, 8, 16), 8  # that a kernel may be asked to have
Like = TypeVar("Like", bound="FlashSchedule")


class FlashSchedule(TiledSchedule):
    """What all schedules built on the FlashAttention-2 loop take.

    `implementation` says whose kernel it is: FlashAttention's CUDA with its mma.sync, or Triton's
    with the device's best matmuls. `warps`, `registers` of a thread and `stages` of K and V buffers
    are that kernel's unless given. `rope` rotates Q and K in kernels before (`pass`) or in the loop
    (`fused`), as rope.py tells; a schedule of which `rotates` is false takes them rotated.

    `machine_code` is a file with one's own kernel: its trip, registers, shared memory and threads
    are taken from there (own_kernel.py). `function` is a regular expression in the kernel's name,
    `dynamic_sram` what its launch gives a CTA, where no description by Triton tells; `warps` says
    how many it has, where the code does not.
    """

    implementation: Literal["cuda", "triton"] = "cuda"
    warps: Literal[4, 8, 16] | None = None
    registers: Annotated[int, Field(ge=16, le=MOST), whole(16, MOST)] | None = None
    stages: Annotated[int, Field(ge=1, le=MOST_STAGES), whole(1, MOST_STAGES)] | None = None
    rope: Literal["pass", "fused"] | None = None
    machine_code: Path | None = None
    function: str = ""
    dynamic_sram: BytesOrNone | None = None

    rotates: ClassVar[bool] = True

    @model_validator(mode="after")
    def _of_machine_code(self) -> Self:
        if self.machine_code is None and (self.function or self.dynamic_sram is not None):
            raise ValueError("function and dynamic_sram are of a kernel in machine_code")
        if self.machine_code is not None and self.registers is not None:
            raise ValueError("registers are those of the kernel in machine_code")
        return self

    def relative_to(self, folder: Path | None) -> Self:
        """The schedule with `machine_code` looked up from `folder`, then from where one stands."""
        here, path = super().relative_to(folder), self.machine_code
        if folder is None or path is None:
            return here
        return here.model_copy(update={"machine_code": file_of(str(path), folder)})

    @property
    def files(self) -> tuple[Path, ...]:
        """Triton's description beside the machine code."""
        return files_read(self.machine_code)[1:] if self.machine_code else ()

    @property
    def multiplies_fp8(self) -> bool:
        """Whether its kernel does, as FlashAttention-2's does not."""
        return False

    @property
    def compiled_by_triton(self) -> bool:
        """Whether it is Triton's flash kernel, or SGLang's."""
        return self.implementation in ("triton", "sglang")

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or no `rope`."""
        super().check(w)
        self._check_changes(w)
        if self.machine_code is None:
            self._check_compiled(w)
        elif w.phase == "training":
            raise InputError(
                f'schedule {self.name}: machine_code: workload.phase = "training": it is of a '
                "forward kernel: prefill or decode was expected"
            )
        if self.rope and w.lengths is not None:
            raise InputError(
                f'schedule {self.name}: rope = "{self.rope}": sequences of one length were '
                "expected; of lists of lengths it takes Q and K rotated (no rope)"
            )
        if self.rope and not self.rotates:
            raise InputError(
                f'schedule {self.name}: rope = "{self.rope}": it takes Q and K rotated (no rope)'
            )

    def _check_changes(self, w: AttentionWorkload) -> None:
        """Raises InputError where the implementation's kernel does not change scores so."""
        own = CHANGES.get(self.implementation, ())
        for key, given in changes_asked(w).items():
            if key not in own:
                others = [f'"{name}"' for name, taken in CHANGES.items() if key in taken]
                raise InputError(
                    f'schedule {self.name}: implementation = "{self.implementation}": '
                    f"workload.{key} = {given}: its kernel has {' and '.join(own) or 'none'}; "
                    f"{', '.join(others)} have it"
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
        if self.machine_code is not None:
            return self._own_cta(self.machine_code, public, w, hw)
        stages, filled = self._buffers(hw, self.stages, public.stages), public.filled(w)
        by_stages = {
            count: flash_sram_bytes(filled, self._buffers(hw, count, count))
            for count in range(1, MOST_STAGES + 1)
        }
        needed = flash_sram_bytes(filled, stages)
        tile = self.fit_tile(public.tile, needed, w, hw, by_stages)
        changed = replace(public, tile=tile, stages=stages)
        made = self._with_warps(changed, self.warps or public.warps, w, hw)
        if self.warps is not None and not fits_sm(made.footprint(w), hw):
            ctas = {n: self._with_warps(changed, n, w, hw) for n in WARPS}
            fitting = [str(n) for n, cta in ctas.items() if fits_sm(cta.footprint(w), hw)]
            raise InputError(
                f"schedule {self.name}: warps = {self.warps}: of tile = {tile} they take "
                f"{made.registers_per_thread} registers a thread, an SM of {hw.name} has "
                f"{hw.sm.registers:,}; "
                + (f"it fits with warps = {' or '.join(fitting)}" if fitting else "none would fit")
            )
        return made

    def _with_warps(
        self, public: FlashCta, warps: int, w: AttentionWorkload, hw: HardwareProfile
    ) -> FlashCta:
        """The public CTA, of the tile and stages asked for, with so many warps."""
        tile = public.tile
        # A warp has 16 rows; warps beyond the tile's rows share out the keys.
        taken, meetings = public.registers_per_thread, public.meetings
        readers = min(warps, tile.q // 16)
        if self.compiled_by_triton:
            taken = triton_flash(tile, public.filled(w).value_columns, warps)
            # of those that widen the literal; decoding has one loop, as other kernels of Triton's
            if str(self.implementation) == "sglang" and w.phase != "decode":
                taken = sglang_flash(warps)
            meetings = triton_meetings(hw)
            if hw.matmul_by_warp_group:
                readers = triton_kv_readers(hw, tile.q, warps)
        a_score = public.a_score + changes(w, by_column=self.implementation in BY_CUDA)
        if self.implementation in MASKED_BY_DIAGONAL:
            a_score += masked(w, tile, public.in_window)
        return replace(
            public,
            warps=warps,
            registers_per_thread=self.registers or taken,
            kv_readers=readers,
            meetings=meetings,
            a_score=a_score,
            angles=angles_of(w, self.name) if self.rope == "fused" else None,
        )

    def _buffers(self, hw: HardwareProfile, stages: int | None, usual: int) -> int:
        """Buffers of K and V of so many stages or, where none are asked for, the usual ones."""
        if stages is None:
            return usual
        by_triton = self.compiled_by_triton
        return triton_buffers(stages, hw.matmul_by_warp_group) if by_triton else stages

    def _own_cta(
        self, path: Path, public: FlashCta, w: AttentionWorkload, hw: HardwareProfile
    ) -> FlashCta:
        """The CTA of the kernel in a file; the tile is the public one unless given."""
        tile = self.tile or public.tile
        dynamic = None if self.dynamic_sram is None else int(self.dynamic_sram)
        asked = Asked(tile, self.tile is not None, self.warps, dynamic)
        try:
            code = flash_loop_of(path, self.function, hw.arch)
            # One's own kernel need not be of a head_dim for which the public one is compiled.
            filled = next(
                (f for f in (public.filled(w), w) if fits(code, tile, f)), public.filled(w)
            )
            own = own_trip(code, asked, filled, hw)
        except InputError as error:
            raise InputError(f"schedule {self.name}: machine_code: {error}") from None
        head_dim, of_stage = filled.head_dim, flash_sram_bytes(filled, 1)(tile)
        of_q = filled.head_dim * filled.dtype_bytes * tile.q
        room = own.footprint.sram_bytes // (of_stage - of_q)
        buffers = self._buffers(hw, self.stages, min(room, code.kernel.stages or public.stages))
        if self.stages is not None and buffers > room:
            raise InputError(
                f"schedule {self.name}: machine_code: stages = {self.stages}: its shared memory "
                f"holds {room} buffers of K and V of tile = {tile}"
            )
        return replace(
            public,
            tile=tile,
            warps=own.footprint.threads // 32,
            stages=max(1, buffers),
            meetings=code.barriers,
            tensor_path=own.tensor_path,
            registers_per_thread=own.footprint.registers_per_thread,
            angles=angles_of(w, self.name) if self.rope == "fused" else None,
            head_dim_of=lambda _: head_dim,
            own=own,
        )

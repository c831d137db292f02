"""What a schedule's kernels are on a device, unless its options say otherwise."""

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import show_binary
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.machine import room_on_sm
from sim.report.table import new_table, show_table
from sim.schedules import make_schedule
from sim.schedules.base import Schedule
from sim.tile_program import Kernel

SEQ_LEN = 8192
GPUS = 8
MODELS = ("llama-3-8b", "deepseek-v3")  # heads that share K and V; latents


def print_kernels(kind: type[Schedule], hw: HardwareProfile) -> None:
    """A row a kernel: tiles in the order of its loads, room on an SM, and what limits that.

    Of 8,192 tokens of the first of two models that the schedule takes, over eight GPUs where it
    runs on several. Where it takes neither the refusal is told.
    """
    options = {"name": kind.model_fields["name"].default}
    if "gpus" in kind.model_fields and kind.model_fields["gpus"].is_required():
        options["gpus"] = GPUS
    refusal = ""
    for model in MODELS:
        try:
            w = _workload(kind, model, hw)
            program = make_schedule(options, "schedule").program(w, hw)
        except InputError as error:
            refusal = refusal or str(error)
            continue
        kernels = [command.work for command in program if isinstance(command.work, Kernel)]
        mask = "" if w.mask == "full" else f", {w.mask}"
        title = f"On {hw.name}, {w.phase} of {SEQ_LEN:,} tokens{mask}, in the shape of {model}"
        _print_table(title, {kernel.name: kernel for kernel in kernels}, hw)
        return
    print(f"On {hw.name}: {refusal} (--hardware PROFILE tells of another device)")


def _workload(kind: type[Schedule], model: str, hw: HardwareProfile) -> AttentionWorkload:
    dtype = "bf16" if hw.tensor_flops_per_s("bf16") else "fp16"
    asked = {"model": model, "seq_len": SEQ_LEN, "phase": kind.phases[0], "dtype": dtype}
    return WorkloadTable.model_validate(asked | {"causal": "causal" in kind.masks}).workload()


def _print_table(title: str, kernels: dict[str, Kernel], hw: HardwareProfile) -> None:
    columns = ("kernel", "tiles", "threads", "registers", "SRAM", "CTAs an SM", "limited by")
    table = new_table(title, *columns)
    for name, kernel in kernels.items():
        footprint = kernel.footprint
        ctas, limit = room_on_sm(footprint, hw)
        table.add_row(
            name,
            _tiles(kernel),
            str(footprint.threads),
            str(footprint.registers_per_thread),
            show_binary(footprint.sram_bytes),
            str(ctas),
            limit,
        )
    show_table(table)


def _tiles(kernel: Kernel) -> str:
    """The tiles that it loads, such as "Q 128x128, K 64x128"."""
    loads = [load.stream for loop in kernel.loops for load in loop.loads]
    return ", ".join(
        {s.tensor.name: f"{s.tensor.name} {s.tile_rows}x{s.tile_cols}" for s in loads}.values()
    )

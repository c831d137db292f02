"""The command that asks of memory: fit."""

from typing import Annotated, Any

import typer

from sim.cli import complete
from sim.cli.options import FiguresOption, FormatOption, JsonOption, SizeOption
from sim.cli.output import a_bar, give, sheet_for

ModelOption = Annotated[
    str, typer.Option(help="A model's name, such as llama-3-8b.", autocompletion=complete.models)
]
HardwareOption = Annotated[
    str,
    typer.Option(
        help="A profile's name or path; several, with commas, side by side.",
        autocompletion=complete.profiles,
    ),
]
WeightsOption = Annotated[
    str, typer.Option(help="fp16, bf16, fp8, int8, int4, mxfp4: how parameters are stored.")
]
KvDtypeOption = Annotated[str, typer.Option(help="fp16, bf16, fp8, int8 or int4: the KV cache's.")]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        help="The attention of all uses; a usual library's for each otherwise.",
        autocompletion=complete.schedules,
    ),
]
BatchOption = Annotated[str, typer.Option(metavar="N", help="Sequences.")]
ContextOption = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Tokens to ask about and tell the parts of; the model's otherwise."
    ),
]
UsesOption = Annotated[
    str | None,
    typer.Option(help="Of prefill, decode, training, training with checkpointing: those."),
]
GpusOption = Annotated[str, typer.Option(metavar="N", help="How many GPUs share the work.")]
ParallelOption = Annotated[
    str, typer.Option(help="tensor, pipeline or context: how they share it.")
]
ChunkOption = Annotated[
    str | None,
    typer.Option(metavar="N", help="Tokens of a prefill chunk (2048); 0: the whole prompt."),
]
ReserveOption = Annotated[
    str | None, typer.Option(help='What the framework takes of each GPU ("1 GiB").')
]
UtilisationOption = Annotated[
    str | None,
    typer.Option(metavar="SHARE", help="Of each GPU's memory, what may be used (1)."),
]


def fit(
    model: ModelOption,
    hardware: HardwareOption,
    weights: WeightsOption = "bf16",
    kv_dtype: KvDtypeOption = "bf16",
    schedule: ScheduleOption = None,
    batch: BatchOption = "1",
    context: ContextOption = None,
    uses: UsesOption = None,
    gpus: GpusOption = "1",
    parallel: ParallelOption = "tensor",
    chunk: ChunkOption = None,
    reserve: ReserveOption = None,
    utilisation: UtilisationOption = None,
    dropout: Annotated[bool, typer.Option("--dropout", help="Train with dropout.")] = False,
    out: FiguresOption = None,
    format: FormatOption = None,
    size: SizeOption = None,
    json: JsonOption = False,
) -> None:
    """Does it fit: what lives in a GPU's memory, and the longest context there is room for."""
    from sim.whole_model.fit import FitQuestion

    cards = hardware.split(",")
    row: dict[str, Any] = {"model": model, "hardware": cards, "weights": weights}
    row |= {"kv_dtype": kv_dtype, "schedule": schedule, "batch": batch, "context": context}
    row |= {"gpus": gpus, "parallel": parallel, "chunk": chunk, "reserve": reserve}
    row |= {"utilisation": utilisation, "dropout": dropout}
    given = {key: value for key, value in row.items() if value is not None}
    file: dict[str, Any] = {"title": f"Does {model} fit on {', '.join(cards)}?", "fit": [given]}
    if uses is not None:
        file["uses"] = [use.strip() for use in uses.split(",")]
    question = FitQuestion.from_tables(file, "fit", "fit")
    sheet = sheet_for(out, format, size)
    with a_bar(engine=None) as update:
        answer = question.answer(update)
    give(answer, out, json, sheet=sheet)

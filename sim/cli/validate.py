"""`attnsim validate` and `attnsim calibrate`: kernels measured, predictions held against them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sim.cli import complete
from sim.cli.interrupt import keeping
from sim.cli.options import FormatOption, SizeOption, folder
from sim.cli.output import a_bar, check_folder, check_writable, give, make_folder, sheet_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from validate.campaign import Campaign
    from validate.compare import Comparison
    from validate.figures import FigureSplit
    from validate.measurement import Measurements, Micro, Split
    from validate.samples import Sample
    from validate.stick import Stick

PathsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH",
        help='Tables of figures (CSV; a folder for all in it), a measurement file, or "published" '
        'for the tables of papers on the profile\'s GPU ("published/h100-sxm": on that GPU).',
    ),
]
MeasurementsArgument = Annotated[
    str,
    typer.Argument(
        metavar="MEASUREMENTS",
        help='A measurement file, tables of figures (CSV, or a folder of them), or "published" for '
        'the tables of papers on the profile\'s GPU ("published/h100-sxm": on that GPU).',
    ),
]
CampaignOption = Annotated[
    str,
    typer.Option(
        help="A shipped campaign's name, or a file's path.", autocompletion=complete.campaigns
    ),
]
DeviceProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="The profile nearest to the device, where it is not known.",
        autocompletion=complete.profiles,
    ),
]
ProfileOption = Annotated[
    str,
    typer.Option("--profile", help="A profile's name or path.", autocompletion=complete.profiles),
]


def measure(
    out: Annotated[Path, typer.Option(help="The measurement file; one that exists is resumed.")],
    campaign: CampaignOption = "h100",
    profile: DeviceProfileOption = None,
) -> None:
    """Time the kernels of a campaign on this machine's GPU, and count their bytes."""
    from validate.campaign import load_campaign

    planned = load_campaign(campaign)
    check_writable("--out", out)
    measured = measure_here(planned, out, profile)
    print(f"{len(measured.points)} points are in {out}")


def validate_run(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            parser=folder,
            help="A folder for measurements, profile, comparison and figures.",
        ),
    ],
    campaign: CampaignOption = "h100",
    profile: DeviceProfileOption = None,
) -> None:
    """Measure, calibrate and compare in one go; leaves a profile of this machine's GPU."""
    from validate.campaign import load_campaign

    planned = load_campaign(campaign)
    check_folder(out)
    measurements, calibrated = out / "measurements.json", out / "profile.toml"
    measured = measure_here(planned, measurements, profile)
    calibrate(str(measurements), profile or measured.device.profile, calibrated)
    compare([str(measurements)], str(calibrated), out=out)


def measure_here(campaign: "Campaign", out: Path, profile: str | None) -> "Measurements":
    """Run a campaign on this machine's GPU; raises InputError where there is none to use."""
    from sim.inputs.files import InputError

    try:
        import torch
        import triton  # noqa: F401  the kernels' compiler
    except ImportError as error:
        raise InputError(
            f"measuring needs {error.name}, which is not installed: pip install 'attnsim[validate]'"
        ) from None
    if not torch.cuda.is_available():
        raise InputError("measuring needs a CUDA device, and PyTorch finds none here")
    from validate.gpu import GpuBench, nearest_profile
    from validate.measure import DeviceLostError, run_campaign

    bench = GpuBench(profile or nearest_profile())
    make_folder(out.parent)
    go_on = f"what was measured is in {out}: run again to go on"
    try:
        with keeping(go_on):
            return run_campaign(campaign, out, bench, lambda line: print(line, file=sys.stderr))
    except DeviceLostError as error:
        raise InputError(f"{error}; {go_on}") from None


def compare(
    paths: PathsArgument,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            help="A profile's name or path, for a device that has none of its own.",
            autocompletion=complete.profiles,
        ),
    ] = None,
    split: Annotated[
        Literal["fit", "train", "test", "transfer", "all"] | None,
        typer.Option(
            metavar="SPLIT",
            help="Which rows: of a measurement file train or test (unless given), of tables fit, "
            "test or transfer, or all; only test and transfer are predictions.",
        ),
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Of tables, only kernels whose name has this in it.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Of tables, only devices whose name has this in it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=folder,
            help="A folder for comparison.json, tables and figures.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Of tables, an .html file: every row beside its prediction, charts."),
    ] = None,
    format: FormatOption = None,
    size: SizeOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print comparison.json instead.")] = False,
) -> None:
    """Predicted against measured, beside what a plain roofline would have said."""
    from sim.inputs.files import InputError
    from validate.figures import is_table

    sheet = sheet_for(out, format, size)
    if report is not None:
        check_writable("--report", report)
    tables = [Path(path) for path in paths if is_table(Path(path))]
    if tables:
        if len(tables) < len(paths):
            other = next(path for path in paths if Path(path) not in tables)
            raise InputError(f"{other}: no table of figures; give tables and others one at a time")
        wanted = None if split == "all" else "fit" if split == "train" else split
        stick = _of_tables(tables, profile, wanted, kernel or "", device or "")
        give(stick, out, json, file="comparison.json, tables.md, regimes.md", sheet=sheet)
        if report is not None:
            _save_report(stick, tables, report, quiet=json)
        return
    if kernel or device or report or split == "fit" or split == "transfer":
        raise InputError(
            f"{paths[0]}: --kernel, --device, --report and the splits fit and transfer are of "
            "tables"
        )
    for name in paths:
        its_out = out if out is None or len(paths) == 1 else out / Path(name).stem
        comparison = _of_file(name, profile, split or "test")
        give(comparison, its_out, json, file="comparison.json", sheet=sheet)


def _save_report(stick: "Stick", tables: list[Path], report: Path, *, quiet: bool) -> None:
    from validate.stick_page import save_stick_page

    save_stick_page(stick, ", ".join(table.name for table in tables), report)
    if not quiet:
        print(f"The report is {report}")


def _of_file(name: str, profile: str | None, split: "Split | Literal['all']") -> "Comparison":
    """A measurement file, or what was published, held against predictions."""
    import validate.report  # noqa: F401  it registers what draws the comparison
    from sim.inputs.hardware import load_profile
    from validate.compare import compare as compared

    hw = load_profile(profile) if profile else None
    measured = find_measurements(name, hw.name if hw else None)
    hw = hw or load_profile(measured.device.profile)
    with a_bar() as update:
        return compared(measured, hw, None if split == "all" else split, update)


def _of_tables(
    paths: list[Path], profile: str | None, split: "FigureSplit | None", kernel: str, device: str
) -> "Stick":
    """The rows of tables whose kernel and device have these in their names, held against it."""
    import validate.stick_report  # noqa: F401  it registers what draws the stick
    from sim.inputs.files import InputError
    from validate.figures import read_figures
    from validate.stick import measure_up, user_store

    figures = [
        figure
        for figure in read_figures(paths)
        if kernel.lower() in figure.kernel.lower() and device.lower() in figure.gpu.lower()
    ]
    if not figures:
        raise InputError(f"{paths[0]}: no row has such a kernel on such a device")
    with a_bar(kept="what was simulated is kept: run again to go on") as update:
        return measure_up(figures, split, profile, user_store(), update)


def import_set(
    source: Annotated[
        Literal["aiconfigurator", "infersim", "frontier", "llmservingsim", "vidur"],
        typer.Argument(
            metavar="SOURCE",
            help="Whose: aiconfigurator, infersim, frontier, llmservingsim or vidur.",
        ),
    ],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A clone, or a folder or file of it.")
    ],
    out: Annotated[Path, typer.Option(help="The table of figures to write (CSV).")],
) -> None:
    """Read a public set of measurements, as cloned, into a table for `validate compare`."""
    from sim.inputs.files import InputError
    from validate.importers.run import SOURCES, save_imported

    check_writable("--out", out)
    if out.suffix != ".csv":
        raise InputError(f"--out {out}: tables of figures end in .csv")
    with a_bar(engine=None) as update:
        imported = save_imported(SOURCES[source], path, out, update)
    for reason, count in imported.left.most_common():
        print(f"Left out: {count} rows: {reason}")
    print(f"{imported.rows} rows of {imported.files} files are in {out}")


def calibrate(
    measurements: MeasurementsArgument,
    profile: ProfileOption,
    out: Annotated[Path, typer.Option(help="The profile file to write.")],
) -> None:
    """Fit a profile's calibration to micro-benchmarks and the train split of a measurement file.

    Or to tables of figures: to the times of their split "fit" on all devices of the profile's
    architecture, each on its own datasheet.
    """
    from sim.inputs.files import find_toml, save_text
    from sim.inputs.hardware import load_profile
    from validate.calibrate import calibrate as calibrated
    from validate.calibrate import profile_toml
    from validate.figures import is_table, read_figures
    from validate.report import show_calibration
    from validate.samples import points_of, rows_of

    hw = load_profile(profile)
    micro: list[Micro] = []
    samples: Sequence[Sample]
    if is_table(Path(measurements)):
        title, samples = measurements, rows_of(read_figures([Path(measurements)]), profile)
    else:
        measured = find_measurements(measurements, hw.name)
        title, samples, micro = measured.title, points_of(measured, hw), measured.micro
    check_writable("--out", out)
    with a_bar() as update:
        calibration = calibrated(samples, hw, micro, update)
    parent = find_toml(profile, "hw_profiles", "profile")
    save_text(profile_toml(calibration, parent, hw.title, title, out), out)
    show_calibration(calibration)
    print(f"The calibrated profile is in {out}")


def find_measurements(name: str, profile: str | None) -> "Measurements":
    """What a measurement file holds, or what was published of a GPU; raises InputError."""
    from sim.inputs.files import InputError
    from validate.measurement import load_measurements
    from validate.published import published, published_profiles

    source, _, gpu = name.partition("/")
    if source != "published" or name.endswith(".json"):
        return load_measurements(Path(name))
    there_are = f"there are of {', '.join(published_profiles())} (published/NAME)"
    asked = gpu or profile
    if asked is None:
        raise InputError(f"{name}: of which GPU? Give --profile; {there_are}")
    measured = published(asked)
    if not measured.points:
        raise InputError(f"{name}: there are no published figures of {asked}; {there_are}")
    return measured

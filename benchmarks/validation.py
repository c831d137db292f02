"""How near predictions are to measurements: the errors that attnsim ships, and tells in reports.

The shipped profile of every GPU of which there are measurements (published tables, and files in
validate/measurements) is judged on their test split. It takes a minute. With --write, the data file
and the tables of README.md and docs/validation.md are renewed; what their text says is left alone.

Given a folder of tables of figures (docs/measurements.md), these are judged too, all splits: what
comes of them stands between two marks in docs/errors.md and, by family, in README.md, and in the
data file under "measured".
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sim.inputs.files import save_text
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.report.known_errors import FILE, KnownError, mean_over, shipped
from validate.compare import WARM, Comparison, compare
from validate.figures import read_figures
from validate.measured import Case
from validate.measurement import Measurement, Measurements, load_measurements
from validate.published import published, published_profiles
from validate.stick import ANY, DRAM, HITS, TIME, Stick, measure_up, user_store
from validate.stick_report import markdown

ROOT = Path(__file__).parent.parent
DATA = ROOT / "sim" / "report" / FILE
MEASURED = ROOT / "validate" / "measurements"
# In the order of the table.
GPUS = (
    "h100-sxm",
    "h100-pcie",
    "h200-sxm",
    "h20",
    "b200",
    "a100-sxm-80gb",
    "a100-sxm-40gb",
    "a800-sxm-80gb",
    "rtx-a5000",
    "rtx-3090",
    "rtx-4090",
)
KERNELS = (
    "flash2",
    "flash2 fwd+bwd",
    "flash3",
    "flash4",
    "flash4 fwd+bwd",
    "triton_flash2",
    "flex",
    "eager",
    "eager_2_3",
    "flash_decoding",
    "triton_flash_decoding",
    "paged_decode",
    "flashmla",
    "hip",
    "nsa_selected",
    "nsa_compressed",
    "nsa_compressed_only",
)
KERNEL = ("name", "implementation", "framework")  # what of a schedule's table the data tell


def all_measurements() -> Iterator[Measurements]:
    """The published tables, GPU by GPU, and the measurement files that are shipped."""
    for profile in published_profiles():
        yield published(profile)
    for path in sorted(MEASURED.glob("*.json")):
        yield load_measurements(path)


def data_of(all_measured: Iterable[Measurements]) -> dict[str, Any]:
    """What the data file says of these measurements: every kernel's errors, and pairs."""
    compared, errors = [], []
    for measured in all_measured:
        print(f"{measured.title} ...", file=sys.stderr, flush=True)
        hw = load_profile(measured.device.profile)
        comparison = compare(measured, hw)
        compared.append(
            {
                "title": measured.title,
                "profile": hw.name,
                "inputs": digest(measured, hw),
                "pairs": asdict(comparison.pairs),
            }
        )
        errors += errors_of(comparison)
    errors.sort(key=_place)
    return {
        "made_by": "python benchmarks/validation.py --write",
        "attnsim": version("attnsim"),
        "compared": compared,
        "errors": [asdict(error) for error in errors],
    }


def digest(measured: Measurements, hw: HardwareProfile) -> str:
    """Of what the errors rest on but the simulator: the measurements and the profile's figures."""
    return sha256((measured.model_dump_json() + hw.model_dump_json()).encode()).hexdigest()[:16]


def errors_of(comparison: Comparison) -> Iterator[KnownError]:
    """A comparison's scores, with what each kernel was predicted by and whose figures it has."""
    for score in comparison.scores:
        points = [
            one.point
            for one in comparison.judged
            if (one.point.family, one.quantity) == (score.family, score.quantity)
        ]
        yield KnownError(
            **asdict(score),
            profile=comparison.hardware,
            title=comparison.title,
            schedule=_kernel(points),
            sources=tuple(sorted({point.source for point in points if point.source})),
        )


def _kernel(points: Iterable[Measurement]) -> dict[str, Any]:
    """The one kernel that a family's points were predicted by, and whether they are of training."""
    kernels = set()
    for point in points:
        table = point.schedule or {}
        told = tuple((key, table[key]) for key in KERNEL if key in table)
        trains = point.workload.phase == "training"
        kernels.add((*told, ("phase", "training")) if trains else told)
    (kernel,) = kernels
    return dict(kernel)


def _place(error: KnownError) -> tuple[int, int, str, str]:
    return _index(GPUS, error.profile), _index(KERNELS, error.family), error.family, error.quantity


def _index(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else len(names)


def docs_table(errors: Iterable[KnownError]) -> str:
    """The table of docs/validation.md."""
    columns = "GPU|kernel|points|mean error|worst|bias|rank correlation|roofline's mean error"
    return _markdown(
        columns.split("|"),
        (
            (
                one.profile,
                one.family if one.quantity == WARM else f"{one.family}: {one.quantity}",
                str(one.points),
                f"{one.mean_error:.1%}",
                f"{one.worst_error:.1%}",
                f"{one.bias:+.1%}",
                "" if one.rank_correlation is None else f"{one.rank_correlation:.2f}",
                "" if one.roofline_error is None else f"{one.roofline_error:.1%}",
            )
            for one in errors
        ),
    )


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _line(columns) + "|" + "---|" * len(columns) + "\n" + "".join(map(_line, rows))


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells) + "\n"


def renew(path: Path, table: str) -> None:
    """Put the table in the place of the one with its header in a Markdown file."""
    header = table.splitlines(keepends=True)[0]
    before, after = path.read_text(encoding="utf-8").split(header)
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    save_text(before + table + "".join(rest), path)


MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")


def renew_between(path: Path, text: str) -> None:
    """Put the text between the two marks in a Markdown file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    assert mark, f"{path} has no {MARKS}"
    save_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", path)


def measured_data(stick: Stick) -> list[dict[str, Any]]:
    """What the data file says of tables of figures: the errors of predictions, by regime.

    A row is a score, with the schedules that predicted it.
    """
    asked: dict[tuple[str, str, str], list[Case]] = {}
    for one in stick.judged:
        case = one.measured.case
        asked.setdefault((one.measured.family, one.device, one.regime), []).append(case)
    return [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(score).items()}
        | {"schedules": _schedules(asked[score.family, score.device, score.regime])}
        for score in stick.scores
        if score.split != "fit" and not score.host and score.regime != ANY
    ]


def _schedules(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """The kernels of cases' schedules as far as the data tell them, and the phase of each."""
    kernels = set()
    for case in cases:
        table = case.schedule.model_dump(mode="json", exclude_none=True)
        told = tuple((key, table[key]) for key in KERNEL if key in table)
        kernels.add((*told, ("phase", case.workload.phase)))
    return [dict(kernel) for kernel in sorted(kernels)]


LEAST_POINTS = 20  # of a family in the README; docs/errors.md has all
OTHER_QUANTITIES = {DRAM: "DRAM bytes, all kernels", HITS: "L2 hit rate, all kernels"}


def readme_measured(rows: Iterable[dict[str, Any]]) -> str:
    """The README's table of strangers' figures, from the data file's rows: a line a family."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["quantity"] in (TIME, *OTHER_QUANTITIES):
            name = OTHER_QUANTITIES.get(row["quantity"], row["family"])
            groups.setdefault(name, {}).setdefault(row["split"], []).append(row)
    names = sorted(groups, key=lambda name: (name in OTHER_QUANTITIES.values(), name))
    columns = "kernels|test: points|mean error|roofline|best constant"
    columns += "|never fitted devices: points|mean error|roofline|best constant"
    return _markdown(
        columns.split("|"),
        (
            (
                name,
                *(cell for split in ("test", "transfer") for cell in _cells(by_split.get(split))),
            )
            for name, by_split in ((name, groups[name]) for name in names)
            if sum(row["points"] for own in by_split.values() for row in own) >= LEAST_POINTS
        ),
    )


def _cells(rows: list[dict[str, Any]] | None) -> list[str]:
    """Points, and means of errors over them; of hit rates they are differences."""
    if not rows:
        return [""] * 4
    errors = (mean_over(rows, key) for key in ("mean", "roofline", "constant"))
    texts = ("" if error is None else f"{error:.1%}" for error in errors)
    return [str(sum(row["points"] for row in rows)), *texts]


def measured_up(folder: Path) -> Stick:
    """The tables in a folder, judged on all splits."""

    def told(_: str, done: int, total: int) -> None:
        if done % 200 == 0:
            print(f"{done} of {total} predictions ...", file=sys.stderr, flush=True)

    return measure_up(read_figures([folder]), store=user_store(), progress=told)


def main() -> None:
    """Judge, print and, with --write, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measurements", nargs="?", type=Path, help="a folder of tables of figures")
    parser.add_argument("--json", action="store_true", help="print the data file instead")
    parser.add_argument("--write", action="store_true", help="renew the data file and the tables")
    asked = parser.parse_args()
    data = data_of(all_measurements())
    errors = [KnownError(**row) for row in data["errors"]]
    stick = measured_up(asked.measurements) if asked.measurements else None
    if stick is not None:
        data["measured"] = measured_data(stick)
    elif "measured" in shipped():
        data["measured"] = shipped()["measured"]
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    if asked.write:
        of_others = [one for one in errors if one.sources]
        save_text(text, DATA)
        renew(ROOT / "docs" / "validation.md", docs_table(of_others))
        if stick is not None:
            renew_between(ROOT / "docs" / "errors.md", markdown(stick))
        if "measured" in data:
            renew_between(ROOT / "README.md", readme_measured(data["measured"]))
    if asked.json:
        print(text, end="")
        return
    print(docs_table(errors))
    if stick is not None:
        print(markdown(stick))
    for one in data["compared"]:
        pairs = one["pairs"]
        if pairs["total"]:
            print(
                f"{one['title']}: the faster kernel is named in {pairs['right']} of "
                f"{pairs['total']} pairs (roofline: {pairs['roofline_right']})"
            )


if __name__ == "__main__":
    main()

"""A measurement campaign: every point timed and counted, saved as it comes, resumed where it ended.

What measures is a `Bench`: the GPU here (validate.gpu), anything that answers likewise in tests.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from sim.inputs.files import InputError
from validate.campaign import Campaign
from validate.compare import point_text
from validate.counters import NcuError
from validate.measurement import (
    FORMAT,
    Counters,
    Device,
    Measurement,
    Measurements,
    Micro,
    Shape,
    load_measurements,
    save_measurements,
)

COUNTED_TOGETHER = 96  # points whose bytes one run of Nsight Compute counts


class DeviceLostError(Exception):
    """The device no longer answers: nothing more can be measured in this process."""


class Bench(Protocol):
    """What a campaign asks of the machine that measures."""

    def describe(self) -> tuple[Device, dict[str, str]]:
        """The device, and the versions of what runs on it."""

    def micro(self) -> Iterator[Micro]:
        """The micro-benchmarks, one by one."""

    def measure(self, shape: Shape) -> Measurement:
        """Times of a point; a status other than "ok" where it cannot run."""

    def count(self, points: Sequence[Measurement]) -> list[list[Counters]]:
        """Counters of each point's kernels; raises NcuError."""


def run_campaign(
    campaign: Campaign, out: Path, bench: Bench, tell: Callable[[str], None]
) -> Measurements:
    """Measure what `out` does not hold yet, saving after each point; `tell` is told each line.

    Raises InputError where `out` is of another campaign or device, DeviceLostError.
    """
    measured = _begin(campaign, out, bench)
    if not measured.micro:
        measured = _save(measured, out, micro=list(_told(bench.micro(), tell)))
    done = {point.shape.model_dump_json() for point in measured.points}
    left = [shape for shape in campaign.points if shape.model_dump_json() not in done]
    if done:
        tell(f"{len(done)} of {len(campaign.points)} points are in {out} already")
    began_s = time.monotonic()
    for number, shape in enumerate(left, 1):
        point = bench.measure(shape)
        measured = _save(measured, out, points=[*measured.points, point])
        left_s = (time.monotonic() - began_s) / number * (len(left) - number)
        tell(f"[{len(measured.points)}/{len(campaign.points)}, {left_s:.0f} s left] {_line(point)}")
    return _count(measured, out, bench, tell)


def _begin(campaign: Campaign, out: Path, bench: Bench) -> Measurements:
    """What was measured before, or an empty file's worth."""
    device, versions = bench.describe()
    if not os.path.exists(out):
        return Measurements(
            format=FORMAT,
            title=campaign.title,
            taken=datetime.now(UTC).date().isoformat(),
            device=device,
            versions=versions,
        )
    measured = load_measurements(out)
    if measured.title != campaign.title:
        raise InputError(
            f'{out}: holds another campaign, "{measured.title}"; "{campaign.title}" was expected: '
            "give another --out"
        )
    if measured.device.name != device.name:
        raise InputError(
            f"{out}: was measured on {measured.device.name}, this is {device.name}: give another "
            "--out"
        )
    return measured


def _save(measured: Measurements, out: Path, **changes: object) -> Measurements:
    measured = measured.model_copy(update=changes)
    save_measurements(measured, out)
    return measured


def _told(micro: Iterator[Micro], tell: Callable[[str], None]) -> Iterator[Micro]:
    for one in micro:
        settings = ", ".join(f"{key} {value}" for key, value in one.settings.items())
        tell(f"[micro-benchmarks] {one.name} {settings}: {one.value:.4g} {one.unit}")
        yield one


def _line(point: Measurement) -> str:
    if point.status != "ok":
        return f"{point_text(point)} [{point.runner}]: {point.status}: {point.reason}"
    times = [
        f"{what} {sorted(samples)[len(samples) // 2] * 1e6:.1f} us"
        for what, samples in (("cold", point.cold_s), ("warm", point.warm_s))
        if samples
    ]
    return f"{point_text(point)} [{point.runner}]: {', '.join(times)}"


def _count(
    measured: Measurements, out: Path, bench: Bench, tell: Callable[[str], None]
) -> Measurements:
    """Add the counters that are missing; without Nsight Compute times stay alone, with a note."""
    while True:
        waiting = [
            number
            for number, point in enumerate(measured.points)
            if point.runner == "attnsim" and point.status == "ok" and not point.counters
        ][:COUNTED_TOGETHER]
        if not waiting:
            return measured
        tell(f"[Nsight Compute] counting the bytes of {len(waiting)} points ...")
        try:
            counted = bench.count([measured.points[number] for number in waiting])
        except NcuError as error:
            note = f"bytes are not counted: {error}"
            tell(note)
            notes = list(dict.fromkeys([*measured.notes, note]))
            return _save(measured, out, notes=notes)
        points = list(measured.points)
        for number, counters in zip(waiting, counted, strict=True):
            points[number] = points[number].model_copy(update={"counters": counters})
        measured = _save(measured, out, points=points)

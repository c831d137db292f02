"""Fast-forward: how near what a part tells is to the exact replay, and how long vast kernels take.

A set of questions is told by a part and replayed whole: all families of schedules, three devices
and a small one, 16k to 512k tokens; and programs that go head by head, of which the first heads
tell the others. Printed is each kernel's error and, by method, how many errors lie below their
estimates; then how many would where each schedule on a device is told by the lines of all others.
With --derive the lines by which estimates are made (`sim/engine/fast_forward/errors.json`) are
found anew. It takes some minutes of one core.
--vast times questions that no one replays whole instead.
"""

import argparse
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.engine.compiled import replay
from sim.engine.fast_forward.choice import own_cost
from sim.engine.fast_forward.errors import FILE, Line, errors_of, kind_of, line_of, shipped
from sim.engine.fast_forward.run import run_kernel
from sim.engine.fast_forward.told import hbm_bytes_of
from sim.inputs.files import save_text
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.workload import WorkloadTable
from sim.runs.scenario import Limits
from sim.schedules import make_schedule
from sim.tile_program import Command, Kernel, chunk_tensors

DATA = Path(__file__).parent.parent / "sim" / "engine" / "fast_forward" / FILE
MOST_STEPS = Limits().replayed_steps
K = 1024
H100, A100, ADA = (load_profile(name) for name in ("h100-sxm", "a100-sxm-80gb", "rtx-4090"))
FEW_SMS = load_profile("h100-sxm", {"sm": {"count": 24}}, "a benchmark")
# No device holds naive attention's N x N matrices of a million tokens: 2 TiB each a head.
VAST = load_profile("h100-sxm", {"hbm": {"capacity": "1000 TiB"}}, "a benchmark")
SHARE = 3  # of a kernel is replayed at most, or it would tell nothing of telling by a part
LEAST_COST = 2_000_000  # of a kernel that is asked about
MOST_COST = 60_000_000  # of one that is replayed whole
ALIKE = 2  # kernels of a name, at most, of a question
PROMISED = 0.9  # of errors lie below their estimates
FEWEST = 4  # kernels by which a kind has a line of its own
SLOPES = tuple(tenths / 10 for tenths in range(21))


@dataclass(frozen=True)
class Question:
    """A schedule on a device, with heads over KV heads and so many thousands of tokens.

    `more` is of the workload, `settings` of the schedule.
    """

    hw: HardwareProfile
    schedule: str
    thousands: int
    heads: int
    kv_heads: int
    more: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        more = "".join(f", {key} {value}" for key, value in (self.more | self.settings).items())
        heads = f"{self.heads} over {self.kv_heads} heads"
        return f"{self.schedule} on {self.hw.name}, {self.thousands}k tokens, {heads}{more}"

    def program(self) -> tuple[list[Command], str]:
        """What runs, and its dtype."""
        w = WorkloadTable.model_validate(
            {
                "head_dim": 128,
                "causal": True,
                "heads": self.heads,
                "kv_heads": self.kv_heads,
                "seq_len": self.thousands * K,
                **self.more,
            }
        ).workload()
        schedule = make_schedule({"name": self.schedule, **self.settings}, "a benchmark")
        return schedule.program(w, self.hw), w.dtype

    def kernels(self) -> tuple[list[Kernel], str]:
        """The regular kernels that are neither short nor vast, a few of a name, and their dtype."""
        program, dtype = self.program()
        asked = [
            kernel
            for kernel in kernels_of(program)
            if LEAST_COST <= own_cost(kernel) <= MOST_COST and not kernel.irregular
        ]
        asked.sort(key=lambda kernel: kernel.name)
        by_name = [list(alike)[:ALIKE] for _, alike in groupby(asked, key=lambda k: k.name)]
        return [kernel for alike in by_name for kernel in alike], dtype


def questions() -> Iterator[Question]:
    """All of them."""
    full, decode = {"causal": False}, {"phase": "decode"}
    # A matmul as one writes it himself: the four or eight CTAs of a row of tiles share P.
    narrow = {"tile": {"q": 32, "kv": 32}, "depth": 32, "stages": 1, "mask": False}
    for hw in (H100, A100, ADA):
        for asked in (
            (32, 32, 8, {}),
            (32, 32, 32, full),
            (64, 16, 4, {}),
            (64, 32, 8, full),
            (128, 8, 2, {}),
            (128, 8, 8, full),
            (128, 4, 4, {}),
            (256, 2, 2, {}),
            (256, 2, 1, full),
        ):
            yield Question(hw, "flash2", *asked)
        yield Question(hw, "flash2", 64, 8, 2, {"phase": "training"})
        yield Question(hw, "naive", 16, 2, 2, {})
        yield Question(hw, "naive", 32, 1, 1, full)
        yield Question(hw, "hip", 128, 32, 8, {})
        yield Question(hw, "block_sparse", 64, 32, 8, {})
        yield Question(hw, "minference", 64, 16, 4, {})
        yield Question(hw, "nsa", 32, 32, 8, {})
        yield Question(hw, "paged", 64, 32, 32, {"batch": 128, **decode})
    for asked in (
        (64, 32, 32, full),
        (64, 16, 4, full),
        (128, 8, 2, {}),
        (128, 8, 1, full),
        (128, 4, 4, full),
        (256, 2, 2, {}),
    ):
        yield Question(H100, "flash3", *asked)
    yield Question(H100, "flash3", 512, 1, 1, {})
    yield Question(H100, "flash1", 64, 32, 32, {})
    yield Question(H100, "flash_decoding", 512, 32, 32, {"batch": 32, **decode})
    yield Question(H100, "naive", 4, 32, 32, {"batch": 4, "dtype": "fp32"}, narrow)
    for hw in (H100, A100, ADA):
        yield Question(hw, "naive", 16, 4, 4, {"dtype": "fp32"}, narrow)
    yield Question(A100, "naive", 8, 8, 2, {}, narrow)
    yield Question(ADA, "naive", 8, 8, 8, {"head_dim": 256}, narrow)
    for asked in ((64, 8, 8, {}), (64, 8, 2, {}), (128, 4, 4, {}), (128, 2, 2, {})):
        yield Question(FEW_SMS, "flash2", *asked)
    for asked in ((128, 8, 8, {}), (256, 2, 2, {})):
        yield Question(FEW_SMS, "flash3", *asked)
        yield Question(FEW_SMS, "hip", *asked)


def head_by_head() -> Iterator[Question]:
    """Those whose launches repeat."""
    for hw in (H100, A100, ADA):
        yield Question(hw, "minference", 32, 16, 16, {})
        yield Question(hw, "minference", 64, 8, 2, {})
    yield Question(H100, "minference", 128, 6, 2, {})
    yield Question(FEW_SMS, "minference", 32, 12, 4, {})


@dataclass(frozen=True)
class Answer:
    """A kernel's errors, absolute and of one, and how much what should be alike differed."""

    question: str
    kernel: str
    method: str
    steps: int
    replayed: int
    time_error: float
    time_scatter: float
    hbm_error: float
    hbm_scatter: float


def exactly(kernel: Kernel, hw: HardwareProfile, dtype: str) -> tuple[float, int]:
    """Time and HBM bytes of the whole kernel, from an empty L2."""
    chunkings = chunk_tensors([kernel])
    l2 = replay.new_l2(chunkings, hw)
    run = replay.run_kernel(kernel, chunkings, hw, l2, dtype, lambda _: None)
    return run.time_s, hbm_bytes_of(run)


def answers() -> Iterator[Answer]:
    """Each question's kernels."""
    for question in questions():
        kernels, dtype = question.kernels()
        for kernel in kernels:
            most = min(MOST_STEPS, own_cost(kernel) // SHARE)
            run = run_kernel(replay, kernel, question.hw, dtype, lambda _: None, most)
            if run.fast_forward is None:
                continue
            time_s, hbm_bytes = exactly(kernel, question.hw, dtype)
            yield Answer(
                str(question),
                kernel.name,
                run.fast_forward.method,
                kernel.tile_steps,
                kernel.tile_steps - run.fast_forward.steps_skipped,
                abs(run.time_s / time_s - 1),
                run.fast_forward.time_scatter,
                abs(hbm_bytes_of(run) / hbm_bytes - 1),
                run.fast_forward.hbm_scatter,
            )


def repeated_answers() -> Iterator[Answer]:
    """Of each question what is told by those like it, together."""
    for question in head_by_head():
        program, dtype = question.program()
        enough = max(map(own_cost, kernels_of(program)))  # for any of them, but not for all
        told, whole = (
            run_on_device(program, question.hw, dtype, "replay", lambda _: None, most_steps=most)
            for most in (enough, None)
        )
        own = [
            (ours.run, exact.run, ours.run.fast_forward)
            for ours, exact in zip(told.kernels, whole.kernels, strict=True)
            if ours.run.fast_forward is not None
        ]
        times_s = [(ours.time_s, exact.time_s, by.time_scatter) for ours, exact, by in own]
        hbm = [(hbm_bytes_of(ours), hbm_bytes_of(exact), by.hbm_scatter) for ours, exact, by in own]
        yield Answer(
            str(question),
            "all launches of the other heads",
            own[0][2].method,
            sum(ours.kernel.tile_steps for ours, *_ in own),
            0,
            *_error_and_scatter(times_s),
            *_error_and_scatter(hbm),
        )


def _error_and_scatter(of_launches: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Of their sum: each is what was told, what is so, and the scatter as a share of the former."""
    told, exact, scatter = np.array(of_launches).T
    return abs(told.sum() / exact.sum() - 1), float(scatter @ told / told.sum())


def line_below(errors: list[float], scatters: list[float]) -> Line:
    """The line below which as many errors lie as promised; of those the lowest in the middle."""
    error, scatter = np.array(errors), np.array(scatters)

    def of(slope: float) -> Line:
        above = error - slope * scatter
        floor = float(np.quantile(above, PROMISED, method="higher"))
        return Line(max(0.0, ceil(floor * 1e4) / 1e4), slope)

    lines = [of(slope) for slope in SLOPES]
    return min(lines, key=lambda line: float(np.median(line.floor + line.slope * scatter)))


def derived(found: list[Answer], quantity: str) -> dict[str, tuple[int, Line]]:
    """The lines of a quantity, "time" or "hbm", by kind, and of how many kernels each is."""
    errors, scatters = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for answer in found:
        kind = kind_of(answer.method, quantity)
        errors[kind].append(getattr(answer, f"{quantity}_error"))
        scatters[kind].append(getattr(answer, f"{quantity}_scatter"))
    return {
        kind: (len(errors[kind]), line_below(errors[kind], scatters[kind]))
        for kind in sorted(errors)
        if len(errors[kind]) >= FEWEST
    }


def left_out(found: list[Answer], quantity: str) -> float:
    """Which share of the errors of each schedule on a device is below the lines of all others."""
    within = []
    for case, own in groupby(sorted(found, key=_case), key=_case):
        others = derived([answer for answer in found if _case(answer) != case], quantity)
        lines = {kind: line for kind, (_, line) in others.items()}
        for answer in own:
            line = line_of(lines, kind_of(answer.method, quantity))
            estimate = line.estimate(getattr(answer, f"{quantity}_scatter"))
            within.append(getattr(answer, f"{quantity}_error") <= estimate)
    return float(np.mean(within))


def _case(answer: Answer) -> str:
    """Its schedule on its device."""
    return answer.question.partition(",")[0]


def save(found: list[Answer]) -> None:
    """Leave the lines for the simulator to ship."""
    lines = {
        quantity: {
            kind: {"kernels": kernels, **asdict(line)}
            for kind, (kernels, line) in derived(found, quantity).items()
        }
        for quantity in ("time", "hbm")
    }
    save_text(json.dumps(lines, indent=1) + "\n", DATA)


def show(answer: Answer) -> None:
    """An answer's line."""
    print(
        f"{answer.question}: {answer.kernel}, {answer.steps / 1e6:.1f} M steps, by {answer.method}"
        f" of {answer.replayed / 1e6:.1f} M: time off by {answer.time_error:.2%}, HBM bytes by "
        f"{answer.hbm_error:.2%}",
        flush=True,
    )


def summary(found: list[Answer]) -> None:
    """By method: errors against estimates."""
    print("method      kernels             of time                          of HBM bytes")
    for method in [*sorted({answer.method for answer in found}), "all"]:
        own = [answer for answer in found if method in ("all", answer.method)]
        cells = [f"{method:10} {len(own):8}"]
        for quantity in ("time", "hbm"):
            error = np.array([getattr(answer, f"{quantity}_error") for answer in own])
            estimate = np.array(
                [
                    getattr(errors_of(answer.method), quantity).estimate(
                        getattr(answer, f"{quantity}_scatter")
                    )
                    for answer in own
                ]
            )
            cells.append(
                f"median {np.median(error):7.3%}, estimate {np.median(estimate):7.3%}, "
                f"within {np.mean(error <= estimate):4.0%}"
            )
        print("   ".join(cells))


def vast() -> None:
    """Time questions that no one replays whole, warm, in seconds of one core."""
    few, eight = (4, 1), (32, 8)
    rows = [
        *((name, thousands, *eight) for name in ("flash2", "flash3") for thousands in (128, 1024)),
        ("flash2", 10240, *few),
        ("flash3", 10240, *few),
        ("naive", 128, 1, 1),
        ("naive", 1024, *eight),
        ("hip", 1024, *eight),
        ("nsa", 1024, *eight),
        ("minference", 1024, *eight),
    ]
    for name, thousands, heads, kv_heads in rows:
        table = {"heads": heads, "kv_heads": kv_heads, "seq_len": thousands * K, "head_dim": 128}
        w = WorkloadTable.model_validate({**table, "causal": True}).workload()
        began = time.process_time()
        program = make_schedule({"name": name}, "a benchmark").program(w, VAST)
        lowered_s = time.process_time() - began
        run = run_on_device(program, VAST, w.dtype, "replay", lambda _: None, most_steps=MOST_STEPS)
        skipped = [k.run.fast_forward for k in run.kernels if k.run.fast_forward is not None]
        print(
            f"{name:10} {thousands:6,}k tokens, {heads:2} heads: "
            f"{time.process_time() - began:5.1f} s, {lowered_s:.1f} of them to lower; estimated "
            f"errors up to {max((f.time_error for f in skipped), default=0.0):.1%} of time, "
            f"{max((f.hbm_error for f in skipped), default=0.0):.1%} of HBM bytes",
            flush=True,
        )
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory {peak_bytes / 2**20:,.0f} MiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--derive", action="store_true", help=f"renew {DATA.name}")
    parser.add_argument("--vast", action="store_true", help="time what is not replayed whole")
    asked = parser.parse_args()
    if asked.vast:
        vast()
        return
    found = []
    for answer in chain(answers(), repeated_answers()):
        show(answer)
        found.append(answer)
    if asked.derive:
        save(found)
        print(f"{DATA.name} is renewed", file=sys.stderr)
        shipped.cache_clear()
    summary(found)
    shares = (left_out(found, "time"), left_out(found, "hbm"))
    print("by the lines of all other schedules and devices within", *map("{:.0%}".format, shares))


if __name__ == "__main__":
    main()

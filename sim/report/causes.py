"""Why a schedule takes as long as it does, in the facts that people look for.

How full the last wave is, CTAs an SM and what limits them, splits, padding in tiles, L2 misses
beyond the compulsory, the power limit: facts of a record's longest kernel, as the record has them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from sim.inputs.units import show
from sim.report.notes import CAUSES_IN_WORDS
from sim.runs.record import KernelResult, Record

MOVING = ("hbm", "hbm_latency")  # what a record waits for where HBM bytes matter
COMPUTING = ("tensor", "vector", "exp", "issue", "sram", "op_latency", "power")
MATTERS = 0.2  # of the time, at least, goes to what a fact is told as a cause of
NOTABLE = 1.05  # by how much times a fact must lengthen to be told
MOST_TOLD = 3
LEAST_WAVES = 0.01  # that two decimals tell


def wave_text(kernel: KernelResult) -> str:
    """How often its grid fills the device: "1.03"."""
    if kernel.waves is None:
        return ""
    if kernel.waves < LEAST_WAVES:
        return f"{kernel.waves:.1g}"
    return f"{kernel.waves:.2f}" if kernel.waves < 10 else f"{kernel.waves:.1f}"


def last_wave(kernel: KernelResult) -> float | None:
    """How full its last wave is."""
    return None if kernel.waves is None else kernel.waves % 1 or 1.0


def room_text(kernel: KernelResult) -> str:
    """CTAs an SM holds, and what it has no room for beside them: "2 (registers)"."""
    limit = f" ({kernel.ctas_limited_by})" if kernel.ctas_limited_by else ""
    return f"{kernel.ctas_per_sm}{limit}"


@dataclass(frozen=True)
class Fact:
    """Something that makes times longer: by how many times (None: not known), and its figure.

    `words` has a place for the figure, `more` is what else is said of it. `is_loss`: 1 is the best
    there is, so that it is worth telling of one record alone. `is_choice`: a kernel's, which tells
    times of the same work apart. `of_kernel` says that it is no record's. It is told where time
    goes to any of `waits`.
    """

    slows: Callable[[Record, KernelResult], float | None]
    figure: Callable[[Record, KernelResult], str]
    words: str
    more: Callable[[KernelResult], str] = lambda _: ""
    is_loss: bool = False
    is_choice: bool = False
    of_kernel: bool = False
    waits: tuple[str, ...] = ()

    def matters(self, record: Record) -> bool:
        """Whether the record waits for what the fact is about."""
        shares = record.bottleneck_shares
        return not self.waits or sum(shares.get(cause, 0.0) for cause in self.waits) >= MATTERS


def _of_waves(_: Record, kernel: KernelResult) -> float | None:
    return ceil(kernel.waves) / kernel.waves if kernel.waves else None


def _last(kernel: KernelResult) -> str:
    fill = last_wave(kernel) or 1.0
    return f", the last {fill:.0%} full" if kernel.waves and kernel.waves > 1 > fill else ""


def _of_rereads(record: Record, _: KernelResult) -> float | None:
    share = record.hbm_reread_share
    return None if share is None else 1 / max(1 - share, 1e-3)


def _over(value: float | None) -> float | None:
    """By how many times a rate or a share lengthens what goes by it."""
    return 1 / value if value else None


FACTS = (
    Fact(
        _of_waves,
        lambda _, kernel: wave_text(kernel),
        "{} waves of CTAs",
        more=_last,
        is_loss=True,
        of_kernel=True,
    ),
    Fact(
        lambda _, kernel: _over(kernel.rows_used),
        lambda _, kernel: f"{kernel.rows_used:.0%}",
        "{} of tiles' rows used, the rest padding",
        is_loss=True,
        of_kernel=True,
        waits=COMPUTING,
    ),
    Fact(
        _of_rereads,
        lambda record, _: f"{record.hbm_reread_share:.0%}",
        "{} of HBM reads are L2 misses beyond the compulsory",
        is_loss=True,
        waits=MOVING,
    ),
    Fact(
        lambda _, kernel: _over(kernel.clock_share),
        lambda _, kernel: f"{kernel.clock_share:.0%}",
        "{} of the clock left by the power limit",
        is_loss=True,
        waits=COMPUTING,
    ),
    Fact(
        lambda record, _: record.hbm_bytes,
        lambda record, _: show(record.hbm_bytes or 0, "B"),
        "{} through HBM",
        waits=MOVING,
    ),
    Fact(
        lambda record, _: _over(record.hbm_bytes_per_s),
        lambda record, _: show(record.hbm_bytes_per_s or 0, "B/s"),
        "HBM of {}",
        waits=MOVING,
    ),
    Fact(
        lambda record, _: record.flops,
        lambda record, _: show(record.flops or 0, "FLOP"),
        "{} computed",
        waits=COMPUTING,
    ),
    Fact(
        lambda record, _: _over(record.peak_flops_per_s),
        lambda record, _: show(record.peak_flops_per_s or 0, "FLOP/s"),
        "tensor cores of {}",
        waits=("tensor", "issue"),
    ),
    Fact(
        lambda _, kernel: 1 / kernel.ctas_per_sm,
        lambda _, kernel: str(kernel.ctas_per_sm),
        "CTAs an SM: {}",
        more=lambda kernel: f", limited by {kernel.ctas_limited_by}",
        is_choice=True,
        of_kernel=True,
    ),
    Fact(
        lambda _, kernel: _over(kernel.splits),
        lambda _, kernel: str(kernel.splits),
        "ranges of keys: {}",
        is_choice=True,
        of_kernel=True,
    ),
)


def losses(record: Record) -> list[str]:
    """What its longest kernel loses by: "1.03 waves of CTAs, the last 3% full", most first."""
    kernel = record.longest_kernel
    if kernel is None:
        return []
    found = []
    for fact in FACTS:
        slows = fact.slows(record, kernel) if fact.is_loss and fact.matters(record) else None
        if slows and slows > NOTABLE:
            words = fact.words.format(fact.figure(record, kernel)) + fact.more(kernel)
            found.append((slows, words))
    return _most(found)


def why(slow: Record, fast: Record) -> list[str]:
    """What the slower of two has that explains it: "3 splits instead of 12", most first.

    Where no fact does, what holds it back for longer: "exponentials for 1.3 ms instead of 0 s".
    """
    apart = _kernels_apart(slow, fast)
    if apart is None:
        return []
    of_slow, of_fast = apart
    whose = "" if of_slow == slow.longest_kernel else f"{of_slow.name}: "
    same_work = 1 / NOTABLE < (slow.flops or 1) / (fast.flops or 1) < NOTABLE
    found = []
    for fact in FACTS:
        here, there = fact.slows(slow, of_slow), fact.slows(fast, of_fast)
        if not (here and there and here > NOTABLE * there and fact.matters(slow)):
            continue
        if same_work or not fact.is_choice:
            words = whose if fact.of_kernel else ""
            words += fact.words.format(fact.figure(slow, of_slow))
            words += f"{more}," if (more := fact.more(of_slow)) else ""
            found.append((here / there, f"{words} instead of {fact.figure(fast, of_fast)}"))
    return _most(found) or [_held_back_for_longer(slow, fast)]


def _kernels_apart(slow: Record, fast: Record) -> tuple[KernelResult, KernelResult] | None:
    """The kernel by which they differ most; the longest of each if they have none in common."""
    of_fast = {kernel.name: kernel for kernel in fast.kernels}
    both = [(kernel, of_fast[kernel.name]) for kernel in slow.kernels if kernel.name in of_fast]
    if both:
        return max(both, key=lambda pair: pair[0].all_launches_s - pair[1].all_launches_s)
    if (of_slow := slow.longest_kernel) and (longest := fast.longest_kernel):
        return of_slow, longest
    return None


def _held_back_for_longer(slow: Record, fast: Record) -> str:
    """Of all that holds the slower back, what accounts for most of the difference."""

    def held_s(record: Record, cause: str) -> float:
        return record.bottleneck_shares.get(cause, 0.0) * (record.time_s or 0.0)

    causes = slow.bottleneck_shares
    cause = max(causes, key=lambda one: held_s(slow, one) - held_s(fast, one))
    times = f"{show(held_s(slow, cause), 's')} instead of {show(held_s(fast, cause), 's')}"
    return f"held back by {CAUSES_IN_WORDS[cause]} for {times}"


def _most(found: list[tuple[float, str]]) -> list[str]:
    """The words of those that lengthen times most."""
    return [words for _, words in sorted(found, key=lambda one: -one[0])][:MOST_TOLD]

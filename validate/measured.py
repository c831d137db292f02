"""What a row of a table measured: the case that predicts it, and what else is in its figure.

The kernel is looked up in `validate.operations`; what the row's `extra` says of page size, splits,
window, L2 and timing is read by the patterns here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sim.inputs.files import InputError, expected_of
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import DTYPE_BYTES, KV_BITS, AttentionWorkload, WorkloadTable
from sim.schedules import make_schedule
from sim.schedules.base import Schedule
from sim.schedules.parts.split_kv import SplitKv
from validate.beside import Beside, Kind, beside
from validate.devices import UnknownDeviceError, device_of
from validate.figures import Figure
from validate.operations import Operation, operation_of
from validate.predict import NotPredictedError

# What `extra` (and of splits, the kernel's name) states. A window's keys include the query's own.
PAGE = re.compile(r"\bpaged? (?:block )?(\d+)\b")
SPLIT_COUNT = re.compile(r"\b(\d+) splits\b")
Q_ROWS, THEIR_KEYS = re.compile(r"\bQ tile rows (\d+)\b"), 32  # of an own kernel's tile
WINDOW = re.compile(r"\bwindow (\d+)\b")
SIDES = re.compile(r"\bwindow left (-?\d+) right (-?\d+)\b")
WRITES_CACHE = re.compile(r"\bKV write included\b")
COLD = re.compile(r"\bcold\b|\bflush|\bKV mostly cold\b|\bL2 full of dirty lines\b", re.IGNORECASE)
# Calls of ai-dynamo/aiconfigurator, collector/*/collect_attn.py: those before timing, half of them
# before a graph is captured (helper.py, benchmark_with_power), and all; collect_mla.py of vLLM has
# no graph. The first name that a kernel's begins with counts.
COLLECTED = {"vllm MLA": (3, 9), "trtllm": (20, 26), "vllm": (6, 12), "sglang": (6, 26)}
# All others' calls are graphs of one call each, replayed one after the other (repeat_n = 1): what
# stands between two beyond a gap, and for how long the first waits for the host. Of the same small
# kernels, alone in a graph and six in one: an nvfp4 linear layer takes a B200 6.8 and 4.5 us a call
# of six replays (systems/data/b200_sxm/gemm, vllm 0.24.0 and sglang 0.5.14: both FlashInfer's
# CuteDSL), a bf16 matmul an H100 3.9 of ten (mla_bmm) and 2.6 of six (gemm). So 5/6 of the former
# and 5/36 of the latter are 2.3 us, 5/6 and 13/180 are 1.3.
NO_GRAPH, BETWEEN_GRAPHS_S, FIRST_GRAPH_S = "vllm MLA ", 0.3e-6, 15e-6
# How much longer a gap is between kernels that are launched one by one: an estimate, below the 0.7
# to 1.4 us by which RRZE-HPC/gpu-benches (gpu-small-kernels: l40, a40, h200, a100_80) has them
# further apart than in a graph, of which some part is the host's.
IN_A_STREAM_S = 0.6e-6
# Flushed by writing: nvbench's cold passes (nvbench/detail/l2flush.cuh, cudaMemsetAsync).
WRITTEN_COLD = re.compile(r"\bnvbench cold\b|\bzeroed between calls\b")
# Between the events of a call run with --disable-blocking-kernel stands its host part too
# (JakeFlasher/benchmark_flash_attention, scripts/run_all.sh), some 10 us where it decodes.
HOST_IN_IT, CALL_HOST_S = re.compile(r"\bnvbench cold\b"), 10e-6
# Ten calls between two waits for the GPU, which stands idle until the first has been asked for
# (alibaba/InferSim, kernel_benchmark, benchmark_forward; torch.utils.benchmark, timeit).
TIMED_TOGETHER, CALLS_TOGETHER = re.compile(r"\btorch Timer\b"), 10
# Energies that go by the values of operands: multiplied, and moved to where they are.
OF_OPERANDS = ("energy.tensor_per_flop", "energy.sram_per_byte", "energy.l2_per_byte")
WARM = re.compile(r"\bwarm\b", re.IGNORECASE)
BY_PROFILER = re.compile(r"\bncu\b|\bNsight\b|\bCUPTI\b", re.IGNORECASE)  # kernels, no gaps
NCU = re.compile(r"\bncu\b|\bNsight Compute\b", re.IGNORECASE)
FLOOR = re.compile(r"\bbelow some (\d+) us it is host time\b")
TIMES = ("time_us", "tflops", "gbps")
FLOOR_US = 30.0  # host time rules below it, where nothing else is said
MOST_PAGE = 4096  # of `paged`

# What in `extra` keeps a figure from being predicted: a pattern, of which metrics, and why.
KEPT_FROM = (
    (
        re.compile(r"\bKV shared\b|\bshared KV\b", re.IGNORECASE),
        "",
        "all sequences read one copy of the cache: a workload has one for each",
    ),
    (re.compile(r"\brandom ragged lengths\b"), "", "its sequences have different lengths"),
    (
        re.compile(r"\bL2 full of dirty lines\b"),
        "dram_total_bytes",
        "its DRAM bytes hold what the flush before it had left dirty in L2",
    ),
    (re.compile(r"\bMODULE time\b"), "", "its time is a module's, projections and all"),
)


@dataclass(frozen=True)
class Case:
    """What is simulated for a figure: figures of one launch share it.

    `launches` is a pattern of the kernels that count, None of all. From a cold L2 each of those
    that it names starts from an empty one, as a profiler has it. `dirty` is a cold L2 that holds
    what a flush has written to it. `whole` is of figures of bytes: none of its kernels is told by
    a part, whose caches are as much smaller.
    """

    workload: AttentionWorkload
    hardware: HardwareProfile
    schedule: Schedule
    launches: str | None
    warm: bool
    dirty: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Measured:
    """A figure, the case that predicts it, and what else is in it.

    `beside` is what its call does within its time beside attention. Between launches stand gaps
    unless a profiler timed the kernels alone, longer by `apart_s` where no graph launches them.
    Below `floor_us` a time is the host's; none is below `host_s`, what the host takes to ask for
    it. It was timed from one to another of the `calls` in a row, None if they went on.
    """

    figure: Figure
    family: str
    case: Case
    beside: Beside
    has_gaps: bool
    apart_s: float
    floor_us: float
    calls: tuple[int, int] | None
    host_s: float = 0.0


def measured_of(figure: Figure, profile: str | None = None) -> Measured:
    """What a figure measured; `profile` is for devices that have none.

    Raises NotPredictedError, whose message says why, and InputError for an unreadable profile.
    """
    for pattern, metric, why in KEPT_FROM:
        if pattern.search(figure.extra) and metric in ("", figure.metric):
            raise NotPredictedError(why)
    try:
        hw = device_of(figure, profile)
    except UnknownDeviceError as error:
        raise NotPredictedError(str(error)) from None
    operation = operation_of(figure, hw)
    if operation.own_loop and figure.metric in TIMES:
        raise NotPredictedError("its author's own loop: the schedule has its bytes, not its time")
    try:
        w = _workload(figure, operation)
        schedule = make_schedule(_options(figure, operation, w, hw), figure.where)
    except (InputError, ValueError) as error:
        raise NotPredictedError(_first_line(error, figure)) from None
    if w.dtype != "fp32" and hw.tensor_flops_per_s(w.dtype) is None:
        raise NotPredictedError(f"{hw.name} has no tensor rate for {w.dtype}")
    if operation.zeros and hw.energy:
        drawn = {key: hw.figure(key) * (1 - operation.zeros) for key in OF_OPERANDS}
        hw = hw.with_figures(drawn)
    dirty = WRITTEN_COLD.search(figure.extra) is not None
    case = Case(
        w, hw, schedule, operation.launches, _is_warm(figure), dirty, figure.metric not in TIMES
    )
    return Measured(
        figure,
        operation.family,
        case,
        beside=_beside(figure, operation, w, schedule),
        has_gaps=BY_PROFILER.search(figure.extra) is None,
        apart_s=0.0 if _in_graphs(figure) else IN_A_STREAM_S,
        floor_us=_floor_us(figure, operation),
        calls=_calls(figure),
        host_s=operation.host_us * 1e-6,
    )


def _calls(figure: Figure) -> tuple[int, int] | None:
    """After which of a load's calls timing began and ended; None of a load that lasts."""
    if NCU.search(figure.extra):
        return (0, 1)  # then a pause
    return _collected(figure)


def _collected(figure: Figure) -> tuple[int, int] | None:
    """Those of aiconfigurator's collectors; None of a figure of others."""
    if "aiconfigurator" not in figure.source:
        return None
    named = (calls for name, calls in COLLECTED.items() if figure.kernel.startswith(f"{name} "))
    return next(named, None)


def _in_graphs(figure: Figure) -> bool:
    return _collected(figure) is not None and not figure.kernel.startswith(NO_GRAPH)


def _floor_us(figure: Figure, operation: Operation) -> float:
    """Below which a time is the host's: as the row states, the table, or by how it was timed."""
    stated = FLOOR.search(figure.extra)
    if stated:
        return float(stated[1])
    if operation.floor_us is not None:
        return operation.floor_us
    return 0.0 if BY_PROFILER.search(figure.extra) else FLOOR_US


def _options(
    figure: Figure, operation: Operation, w: AttentionWorkload, hw: HardwareProfile
) -> dict[str, Any]:
    public = operation.schedule
    options = dict(public(w, hw) if callable(public) else public or {})
    page, splits = PAGE.search(figure.extra), SPLIT_COUNT.search(f"{figure.kernel} {figure.extra}")
    if page and options["name"] == "paged":
        options["page_size"] = min(int(page[1]), MOST_PAGE)
    if splits and options["name"] in ("paged", "flash_decoding"):
        options["splits"] = int(splits[1])
    q_rows = Q_ROWS.search(figure.extra)
    if q_rows and operation.own_loop:
        options["tile"] = {"q": int(q_rows[1]), "kv": THEIR_KEYS}
    if operation.cache_tokens:
        options["room_tokens"] = operation.cache_tokens // w.batch
    by_flash2 = options["name"] in ("paged", "flash_decoding") and "implementation" not in options
    if by_flash2 and _states_window(figure):
        options.setdefault("pack_gqa", False)  # a wide one too (flash_api.cpp, mha_fwd_kvcache)
    return options


def _states_window(figure: Figure) -> bool:
    return any(stated.search(figure.extra) for stated in (WINDOW, SIDES))


def _workload(figure: Figure, operation: Operation) -> AttentionWorkload:
    """Raises ValueError, NotPredictedError."""
    decodes = figure.pass_ == "decode"
    for name in ("batch", "heads", "kv_heads", "seq_q", "seq_kv", "head_dim"):
        if getattr(figure, name) is None:
            raise NotPredictedError(f"its {name} is not stated")
    if figure.causal is None and not decodes:
        raise NotPredictedError("whether it is causal is not stated")
    latent = isinstance(operation.schedule, Mapping) and operation.schedule["name"] == "mla"
    reads_cache = decodes or latent  # absorbed prefill reads the cache as decoding does
    of_cache = reads_cache or operation.from_cache
    dtype = figure.dtype.split("/")[0]
    kv_dtype = figure.kv_dtype.split("/")[0] if of_cache or operation.in_cache_dtype else dtype
    if dtype not in DTYPE_BYTES or kv_dtype not in KV_BITS:
        raise NotPredictedError(f"{figure.dtype} (cache: {figure.kv_dtype}) is no dtype here")
    if operation.in_cache_dtype:
        dtype = kv_dtype
    window, causal = _mask(figure)
    table: dict[str, Any] = {
        "batch": figure.batch,
        "heads": figure.heads,
        "kv_heads": figure.heads if latent or operation.head_dim else figure.kv_heads,
        "seq_q": figure.seq_q,
        "seq_kv": figure.seq_kv,
        "head_dim": operation.head_dim or figure.head_dim,
        "dtype": dtype,
        "kv_dtype": kv_dtype,
        "causal": causal,
        "window": window,
        "phase": "decode" if reads_cache else "prefill",
    }
    if latent:
        table |= {"head_dim": 128, "latent_dim": 512, "rope_dim": 64}
    return WorkloadTable(**(table | dict(operation.changes))).workload()


def _mask(figure: Figure) -> tuple[int | None, bool]:
    """Keys that a query sees to a side, itself included (None: all), and whether no later ones.

    Raises NotPredictedError.
    """
    keys, causal = figure.seq_kv or 0, bool(figure.causal)
    plain, sides = WINDOW.search(figure.extra), SIDES.search(figure.extra)
    if plain:
        return (int(plain[1]), True) if int(plain[1]) < keys else (None, causal)
    if sides is None:
        return None, causal
    left, right = (int(side) if int(side) >= 0 else keys for side in sides.groups())
    right = 0 if causal or figure.seq_q == 1 else right
    if min(left, right) >= keys - 1:
        return None, causal
    if right not in (0, left):
        raise NotPredictedError("its window reaches farther to one side than to the other")
    window = left + 1 if left + 1 < keys else None
    return window, causal or (window is not None and right == 0)


def _is_warm(figure: Figure) -> bool:
    """Whether L2 holds what a repetition before left: as stated, else as a plain loop leaves it."""
    if WARM.search(figure.extra):
        return True
    return COLD.search(figure.extra) is None and not BY_PROFILER.search(figure.extra)


def _beside(
    figure: Figure,
    operation: Operation,
    w: AttentionWorkload,
    schedule: Schedule,
) -> Beside:
    """What the call does beside attention; the new tokens come as wide as the row says."""
    kind: Kind = ""
    if WRITES_CACHE.search(figure.extra):
        kind = "cache write by warps" if figure.kernel.startswith("sglang") else "cache write"
    kind = operation.beside or kind
    if kind == "packed heads" and not (isinstance(schedule, SplitKv) and schedule.packs(w)):
        kind = "cache write"
    dtype, kv_dtype = (name.split("/")[0] for name in (figure.dtype, figure.kv_dtype))
    kind = operation.fp8_beside if w.dtype == "fp8" and operation.fp8_beside else kind
    host_s = _host_s(figure, operation)
    return beside(kind, w, dtype, kv_dtype).and_also(Beside(host_s=host_s))


def _host_s(figure: Figure, operation: Operation) -> float:
    """What of the host's part no kernel runs beside.

    Of calls that are timed together the first waits until it has been asked for.
    """
    collected = _collected(figure)
    if collected and _in_graphs(figure):
        return BETWEEN_GRAPHS_S + FIRST_GRAPH_S / (collected[1] - collected[0])
    if figure.pass_ == "decode" and HOST_IN_IT.search(figure.extra):
        return CALL_HOST_S
    if TIMED_TOGETHER.search(figure.extra):
        return _floor_us(figure, operation) * 1e-6 / CALLS_TOGETHER
    return 0.0


def _first_line(error: Exception, figure: Figure) -> str:
    if isinstance(error, ValidationError):
        return expected_of(error.errors(include_url=False)[0])
    return str(error).removeprefix(f"{figure.where}: ")

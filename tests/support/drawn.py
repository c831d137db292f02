"""What hypothesis draws: small workloads, tiny devices, any schedule."""

from dataclasses import replace
from functools import cache
from typing import Any, get_args

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.workload import AttentionWorkload, Bias
from sim.schedules import SCHEDULES
from sim.schedules.base import Schedule, TiledSchedule
from sim.schedules.parts.flash_schedule import CHANGES, FlashSchedule
from sim.schedules.parts.several_gpus import SeveralGpus
from sim.schedules.parts.traversal import GridOrder, KeyOrder
from sim.tile_program import Barrier, Compute, Footprint, Kernel, Load, Loop, Store, Stream, Tensor

L2_SIZES = ("0 B", "4 KiB", "100 KiB", "1 MiB", "64 MiB")


@st.composite
def workloads(draw: Any) -> AttentionWorkload:
    """Ragged lengths, grouped heads, all masks."""
    kv_heads = draw(st.integers(1, 2))
    seq_kv = draw(st.integers(1, 400))
    causal = draw(st.booleans())
    return AttentionWorkload(
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        seq_q=draw(st.integers(1, seq_kv if causal else 400)),
        seq_kv=seq_kv,
        head_dim=draw(st.sampled_from((16, 40, 64, 128))),
        dtype=draw(st.sampled_from(("fp16", "fp32", "bf16"))),
        causal=causal,
        window=draw(st.none() | st.integers(1, 300)) if causal else None,
    )


@st.composite
def of_any_mask(draw: Any) -> AttentionWorkload:
    """The same, with windows to both sides too."""
    w = draw(workloads())
    return replace(w, causal=False) if w.window is not None and draw(st.booleans()) else w


@st.composite
def devices(
    draw: Any,
    l2: str | None = None,
    names: tuple[str, ...] = ("h100-sxm", "a100-sxm-40gb", "rtx-4090"),
) -> HardwareProfile:
    """A few SMs of a real device, with any L2; where it is not given, on one die or several."""
    name = draw(st.sampled_from(names))
    figures, die_capacity = {}, None
    if l2 is None and draw(st.booleans()):
        figures["l2.dies"] = draw(st.integers(2, 4))
        die_capacity = draw(st.sampled_from(L2_SIZES))
    figures["sm.count"] = draw(st.integers(1, 5))
    hw = with_l2(name, l2 or draw(st.sampled_from(L2_SIZES)), die_capacity)
    return hw.with_figures(figures | {"calibration.l2.candidates": draw(st.integers(1, 16))})


@cache
def with_l2(name: str, capacity: str, die_capacity: str | None) -> HardwareProfile:
    """A real device with another L2, all of which data see, on two dies if one's part is given."""
    dies = {"dies": 2, "die_capacity": die_capacity} if die_capacity else {}
    overrides = {
        "l2": {"capacity": capacity} | dies,
        "calibration": {"l2": {"effective_capacity": 1.0}},
    }
    return load_profile(name, overrides, "a test")


ORDERS = {
    "grid_order": st.sampled_from(get_args(GridOrder)),
    "key_order": st.sampled_from(get_args(KeyOrder)),
}
SPLITS = st.none() | st.integers(1, 9)
PACKING = st.none() | st.booleans()
# Options of a schedule beyond those of its base class.
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "flash3": {
        "call": st.sampled_from(("batch", "varlen", "paged")),
        "splits": SPLITS,
        "implementation": st.sampled_from(("fa3", "vllm", "sglang", "trtllm")),
    },
    "flash4": {
        "implementation": st.sampled_from(("fa4", "trtllm-gen", "cutlass")),
        "emulated": st.none() | st.floats(0, 1),
        **ORDERS,
    },
    "flash2": ORDERS,
    "linear_attention": {"chunk": st.sampled_from((16, 32, 64)), "gate": st.booleans()},
    "mamba2": {
        "state": st.sampled_from((16, 48, 128, 256)),
        "groups": st.integers(1, 3),
        "chunk": st.sampled_from((64, 128, 256)),
    },
    "memorizing": {
        "memory": st.integers(1, 300),
        "retrieve": st.integers(1, 6),
        "keep_window": st.integers(1, 100),
    },
    "lm2": {"slots": st.integers(1, 200)},
    "retrieval": {
        "chunk_tokens": st.integers(1, 100),
        "top": st.integers(1, 5),
        "embedding_dim": st.integers(16, 200),
    },
    "naive": {
        "scale": st.booleans(),
        "mask": st.booleans(),
        "depth": st.sampled_from((16, 64)),
        "stages": st.integers(1, 3),
        "sweeps": st.sampled_from((1, 3)),
    },
    "block_sparse": {
        "keep_window": st.none() | st.integers(1, 100),
        "sinks": st.integers(0, 40),
        "random_blocks": st.integers(0, 3),
    },
    "flex": {"documents": st.integers(1, 3)},
    "bigbird": {
        "window_blocks": st.sampled_from((1, 3, 5)),
        "global_blocks": st.integers(0, 3),
        "random_blocks": st.integers(0, 3),
    },
    "longformer": {"keep_window": st.integers(1, 100), "global_tokens": st.integers(0, 40)},
    "minference": {
        "implementation": st.sampled_from(("minference", "sglang", "triton")),
        "vertical": st.integers(1, 100),
        "slash": st.integers(1, 250),
    },
    "quest": {"budget": st.integers(32, 300), "page_size": st.sampled_from((8, 16))},
    "nsa": {
        "implementation": st.sampled_from(("nsa_triton", "fla")),
        "compress_block": st.sampled_from((16, 32)),
        "compress_stride": st.sampled_from((8, 16)),
        "block": st.sampled_from((32, 64)),
        "top": st.integers(3, 6),
        "keep_window": st.integers(1, 100),
    },
    "ring": {
        "gpus": st.integers(2, 4),
        "balance": st.sampled_from(("contiguous", "striped", "zigzag")),
        "framework": st.sampled_from(("pytorch", "jax")),
    },
    "ulysses": {"gpus": st.integers(2, 4)},
    "tree_decoding": {"gpus": st.integers(2, 5)},
    "tensor_parallel": {"gpus": st.integers(2, 4)},
    "flash_decoding": {"splits": SPLITS, "pack_gqa": PACKING},
    # FlashAttention-3's is for Hopper alone.
    "dsa": {
        "top": st.sampled_from((128, 256)),
        "index_heads": st.sampled_from((32, 64)),
        "index_dim": st.sampled_from((32, 128)),
    },
    "mla": {
        "implementation": st.sampled_from(("flashmla", "flashinfer", "trtllm", "triton", "sglang"))
    },
    "paged": {
        "splits": SPLITS,
        "call": st.sampled_from(("varlen", "kvcache")),
        "pack_gqa": PACKING,
        "page_size": st.sampled_from((1, 16, 64, 256)),
        "implementation": st.sampled_from(("cuda", "triton", "flashinfer")),
    },
    "cascade": {"page_size": st.sampled_from((1, 16, 64, 256))},
    "streaming_llm": {
        "splits": SPLITS,
        "sinks": st.integers(0, 40),
        "keep_window": st.integers(1, 300),
    },
    "h2o": {"splits": SPLITS, "heavy": st.floats(0.01, 1), "recent": st.floats(0.01, 1)},
    "hip": {
        "implementation": st.sampled_from(("hip_attention", "cuda", "triton")),
        "keep": st.sampled_from((128, 256)),
        "sinks": st.integers(0, 40),
        "keep_window": st.integers(1, 100),
        "refresh": st.integers(1, 3),
        "reuse": st.sampled_from((0, 0.5, 0.99)),
    },
    "infinite_hip": {
        "chunks": st.sampled_from(((64, 16, 8), (32, 8, 4), (128, 64, 16))),
        "keep": st.just((128, 64, 32)),
        "refresh": st.just((4, 2, 1)),
        "sinks": st.integers(0, 40),
        "keep_window": st.integers(1, 100),
        "cache_tokens": st.integers(16, 300),
        "mask_cache_tokens": st.integers(1, 300),
    },
}

# Schedules of one architecture, and the dtypes that they take.
ARCHS = {"flash3": "sm90", "dsa": "sm90", "flash4": "sm100"}
DTYPES = {"flash3": ("fp16", "bf16", "fp8"), "flash4": ("fp16", "bf16")}
# Schedules that take all tokens as queries, or one.
WHOLE_SEQUENCE = (
    *("linear_attention", "gated_delta_net", "mamba2"),
    *("bigbird", "longformer", "minference", "nsa"),
)


@st.composite
def schedules(draw: Any, *names: str) -> Schedule:
    """Any of the schedules, with tiles small enough to give several blocks."""
    name = draw(st.sampled_from(names))
    side = st.sampled_from((16, 32, 64, 128))
    options: dict[str, Any] = {"name": name}
    if issubclass(SCHEDULES[name], TiledSchedule):
        options["tile"] = {"q": draw(side), "kv": draw(side)}
    if issubclass(SCHEDULES[name], FlashSchedule):
        options |= {
            "implementation": draw(st.sampled_from(("cuda", "triton"))),
            "stages": draw(st.none() | st.integers(1, 3)),
            "warps": draw(st.none() | st.sampled_from((4, 8))),
        }
    options |= {key: draw(values) for key, values in OPTIONS.get(name, {}).items()}
    if name == "flex":
        del options["implementation"]  # it has one
    if options.get("implementation") == "trtllm" and name == "flash3":
        options["splits"] = None
    if options.get("implementation") == "fla":  # compresses each block to a key
        del options["compress_block"], options["compress_stride"]
    return SCHEDULES[name].model_validate(options)


@st.composite
def cases(draw: Any, *names: str) -> tuple[AttentionWorkload, Schedule]:
    """Any schedule, with a workload that it takes; or one of `names`, its scores unchanged."""
    schedule = draw(schedules(*(names or tuple(SCHEDULES))))
    w = draw(suited(schedule, draw(workloads())))
    return (w if names else draw(with_changes(schedule, w))), schedule


def of_one_query(*names: str) -> Any:
    """Cases of those schedules that decode one query a sequence."""
    return cases(*names).map(lambda case: (replace(case[0], phase="decode", seq_q=1), case[1]))


@st.composite
def suited(draw: Any, schedule: Schedule, w: AttentionWorkload) -> AttentionWorkload:
    """The workload, changed as far as the schedule needs it."""
    if w.mask not in schedule.masks:
        mask = draw(st.sampled_from(schedule.masks))
        window = draw(st.integers(1, 300)) if mask == "window" else None
        w = replace(w, causal=mask != "full", window=window, seq_q=min(w.seq_q, w.seq_kv))
    if w.window is not None and _takes_two_sides(schedule):
        w = replace(w, causal=draw(st.booleans()))
    if schedule.name in DTYPES:
        w = replace(w, dtype=draw(st.sampled_from(DTYPES[schedule.name])))
    phase = draw(st.sampled_from(schedule.phases))
    if phase == "decode":
        most = min(40, w.seq_kv) if "append" in schedule.takes else 1
        w = replace(w, seq_q=draw(st.integers(1, most)))
    elif schedule.name in WHOLE_SEQUENCE or getattr(schedule, "documents", 1) > 1:
        w = replace(w, seq_q=w.seq_kv)
    if schedule.name in ("minference", "nsa") and w.dtype == "fp32":
        w = replace(w, dtype="bf16")
    if isinstance(schedule, SeveralGpus):
        w = shared_out(w, schedule.gpus, phase == "decode")
    if isinstance(schedule, FlashSchedule) and schedule.rope:
        w = replace(w, seq_q=min(w.seq_q, w.seq_kv))
    if schedule.name == "dsa":
        w = replace(w, latent_dim=512, rope_dim=64, dtype="bf16", seq_q=min(w.seq_q, 40))
        if phase == "decode":
            w = replace(w, seq_q=min(2, w.seq_q))
    if schedule.name == "mla":
        w = replace(w, latent_dim=draw(st.sampled_from((32, 128))), rope_dim=16)
        if schedule.implementation != "flashmla":
            w = replace(w, seq_q=1)
    if getattr(schedule, "implementation", "cuda") == "triton" and phase == "training":
        phase = "prefill"
    if schedule.name == "flash4" and schedule.implementation != "fa4" and phase == "training":
        phase = "prefill"
    if schedule.name == "nsa" and schedule.implementation != "fla" and phase == "training":
        phase = "prefill"
    of_flashinfer = getattr(schedule, "implementation", schedule.name) in ("flashinfer", "cascade")
    if schedule.name == "cascade":  # all queries stand behind the prefix
        shared = draw(st.integers(1, 300))
        w = replace(w, seq_kv=w.seq_kv + w.seq_q + shared, shared_prefix=shared)
    if of_flashinfer and w.dtype == "fp32":
        w = replace(w, dtype="bf16")
    dropout = "dropout" in schedule.takes and draw(st.booleans())
    dropout &= getattr(schedule, "implementation", "cuda") != "triton"
    kv_dtypes = st.none() | st.sampled_from(("fp8",) if of_flashinfer else ("fp8", "int8", "int4"))
    kv_dtype = draw(kv_dtypes) if "kv_dtype" in schedule.takes else None
    if schedule.name == "dsa":
        kv_dtype = "fp8" if phase == "decode" or kv_dtype else None
    return replace(w, phase=phase, dropout=dropout, kv_dtype=kv_dtype)


def _takes_two_sides(schedule: Schedule) -> bool:
    own = getattr(schedule, "implementation", "cuda")
    return "two sides" in schedule.takes and own in ("cuda", "triton", "fa3", "vllm", "fa4")


@st.composite
def with_changes(draw: Any, schedule: Schedule, w: AttentionWorkload) -> AttentionWorkload:
    """The workload, its scores changed in a way that the schedule has a kernel for, or not."""
    taken = schedule.takes & {"softcap", "alibi", "bias"}
    if isinstance(schedule, FlashSchedule):
        taken &= set(CHANGES.get(schedule.implementation, ()))
    if getattr(schedule, "framework", None) == "sdpa":
        taken = frozenset()
    if w.dropout or w.phase == "training":
        taken -= {"softcap", "alibi", "bias"}
    change = draw(st.sampled_from((None, *sorted(taken))))
    values = {"softcap": 30.0, "alibi": True, "bias": draw(st.sampled_from(get_args(Bias)))}
    return replace(w, **{change: values[change]}) if change else w


def shared_out(w: AttentionWorkload, gpus: int, decode: bool) -> AttentionWorkload:
    """Tokens and heads that so many GPUs can share, each token range in two."""
    seq_kv = -(-w.seq_kv // (2 * gpus)) * 2 * gpus
    seq_q = -(-w.seq_q // (2 * gpus)) * 2 * gpus if w.mask == "full" else seq_kv
    return replace(
        w,
        heads=w.heads * gpus,
        kv_heads=w.kv_heads * gpus,
        seq_q=1 if decode else seq_q,
        seq_kv=seq_kv,
        window=w.window if w.window and w.window < seq_kv else None,
    )


def lowered(schedule: Schedule, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
    """The kernels of the first GPU, with the default tile where the drawn one does not fit."""
    if ARCHS.get(schedule.name, hw.arch) != hw.arch:
        reject()
    if isinstance(schedule, SeveralGpus) and hw.links.peer is None:
        reject()
    try:
        commands = schedule.program(w, hw)
    except InputError:
        if not isinstance(schedule, TiledSchedule):
            raise
        commands = schedule.model_copy(update={"tile": None}).program(w, hw)
    return kernels_of([command for command in commands if command.gpu == 0])


@st.composite
def tensors(draw: Any) -> Tensor:
    """A small tensor, ragged against most tiles; its matrices may differ, and some be empty."""
    groups, rows, cols = (draw(st.integers(1, high)) for high in (3, 90, 70))
    sizes = None
    if draw(st.booleans()):
        each = [(draw(st.integers(0, rows)), draw(st.integers(0, cols))) for _ in range(groups)]
        each[-1] = (rows, cols)
        sizes = np.array(each, np.int64)
    return Tensor("T", groups, rows, cols, draw(st.sampled_from((2, 4))), sizes=sizes)


@st.composite
def streams(draw: Any, tensor: Tensor, items: int, trips: list[int]) -> Stream:
    """Tiles of a tensor at random, from a table, for items of so many trips."""
    side = st.sampled_from((8, 16, 32, 128))
    stream = Stream(tensor, draw(side), draw(side), np.zeros_like)
    tiles = tensor.groups * stream.tiles_down * stream.tiles_across
    length = max(1, sum(trips))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    table = rng.integers(0, tiles, length, np.int64)
    start = np.concatenate([[0], np.cumsum(trips)[:-1]]).astype(np.int64)
    return Stream(
        tensor, stream.tile_rows, stream.tile_cols, np.zeros_like, 0, table, lambda i: start[i]
    )


@st.composite
def loops(draw: Any, drawn_tensors: list[Tensor], items: int) -> Loop:
    """Loads of several depths, computes that read them; barriers, stores and atomics anywhere.

    Loads of no depth are issued by a barrier before all that reads them.
    """
    trips = draw(st.lists(st.integers(0, 6), min_size=items, max_size=items))

    def a_stream() -> Stream:
        return draw(streams(draw(st.sampled_from(drawn_tensors)), items, trips))

    held = st.sampled_from([0, 0, 700])
    loads = [
        Load(a_stream(), draw(st.integers(0, 5)), draw(held))
        for _ in range(draw(st.integers(0, 3)))
    ]
    awaiting = [load for load in loads if not load.stages]
    amount = st.sampled_from((0, 10**4, 10**6))
    ops: list[Any] = [
        Compute(
            "wait or work",
            tuple(load for load in loads if draw(st.booleans())),
            *(draw(amount) for _ in range(4)),
            latencies=draw(st.integers(1, 9)),
            held_cycles=draw(held),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    ops.append(Compute("last", tuple(loads), *(draw(amount) for _ in range(4))))
    for _ in range(draw(st.integers(0, 2))):
        ops.insert(draw(st.integers(0, len(ops))), Store(a_stream(), draw(st.booleans())))
    for _ in range(draw(st.integers(0, 2))):
        ops.insert(draw(st.integers(0, len(ops))), Barrier())
    for load in awaiting:
        first = next(k for k, op in enumerate(ops) if isinstance(op, Compute) and load in op.reads)
        ops.insert(draw(st.integers(0, first)), Barrier((load,)))
    counts = np.array(trips, np.int64)
    return Loop(lambda i: counts[i], (*loads, *ops))


@st.composite
def kernel_sequences(draw: Any) -> list[Kernel]:
    """One to three kernels over the same tensors: what no schedule has done yet, but might."""
    shared = draw(st.lists(tensors(), min_size=1, max_size=3))
    kernels = []
    for number in range(draw(st.integers(1, 3))):
        ctas, items_per_cta = draw(st.integers(1, 8)), draw(st.integers(1, 3))
        footprint = Footprint(
            draw(st.sampled_from((1, 50, 100))) * 1000,
            threads=128 * draw(st.integers(1, 3)),
            registers_per_thread=64,
        )
        items = ctas * items_per_cta
        body = tuple(draw(loops(shared, items)) for _ in range(draw(st.integers(1, 3))))
        name = f"kernel {number}"
        kernels.append(Kernel(name, ctas, body, footprint, items_per_cta=items_per_cta))
    return kernels

"""FlashAttention-3, forward on Hopper.

    each persistent CTA: a producer warp group that loads by TMA, and a worker (consumer warp group)
    for every 64 of the tile.q query rows; for each block of query rows that it is given:
        load Q_i;  S_n = Q_i K_n^T;  P_n = softmax of S_n
        for each key block j = n-1 .. 1 that the mask shows, last to first:
            S_j = Q_i K_j^T                              (wgmma, waited for)
            O_i += P_j+1 V_j+1  while  P_j = online softmax of S_j
            convert P_j;  rescale O_i
        O_i += P_1 V_1;  O_i = O_i / l_i;  store O_i through SRAM by TMA, and the log-sum-exp

A worker's softmax runs while the tensor pipe serves its own second matmul and the other workers'
matmuls: the paper's overlap within a warp group, and its ping-pong between them. A V of 8 bits is
transposed by the producer, which loads nothing meanwhile.

Sequences of one length run one kernel; of any lengths (`call = "varlen"`) another, whose query
heads are always packed, whose CTAs share no loads and are dealt tiles on demand, sequence after
sequence; with K and V in pages smaller than a key block ("paged", as vLLM and SGLang call it) a
third, in which the producer copies K and V by cp.async, from smaller tiles. Of both every tile
begins as a CTA does: who is next, lengths and entries of the page table are read one after another,
Q is copied and O stored by threads.

Other kernels of its kind, by `implementation`:

vllm     vLLM's fork sums P V of fp8 apart, waits for it and adds it to O: no softmax runs beside it
         within a warp group, which waits for each of its wgmma, from head_dim 128 in turns that
         hold the tensor cores, and tiles are smaller; up to 64 rows have one warp group unless
         behind a window, and at head_dim 64 in 16 bits tiles of their own behind one; key blocks
         are counted from the first key that a tile sees; decoding has room for 32 ranges, as it is
         captured as a graph, and is cut by whole lengths, whatever a window hides
sglang   SGLang's fork: up to 64 rows have one warp group, key blocks are counted from the first
         key that a tile sees
trtllm   TensorRT-LLM's fmha_v2 takes any lengths, and pages by TMA, in tiles of its own; a warp
         group waits for each matmul, its softmax runs beside the other group's alone; heads are
         not packed, keys not split, causal tiles of all heads and sequences come longest first
         where K and V of all query heads fit L2, else those of a head one after the other

Such sequences have splits of their own, and those with most key blocks a range are dealt first; the
results of one that is not split are stored at once.

Queries behind a cached prefix are taken as flash_attn_with_kvcache does: where their blocks fill
too few SMs, the keys of each are split in ranges, a CTA each, that write partial results in fp32,
and a second kernel combines them, with O of four ranges on its way (FlashAttention-2's: of one).
Of sequences of any lengths that kernel is launched wherever the longest alone might be split.

Source: Shah et al. 2024 (arXiv 2407.08608), Algorithm 2; Dao-AILab/flash-attention, hopper/:
tile_size.h (tile_size_fwd_sm90), mainloop_fwd_sm90_tma_gmma_ws.hpp (mma, RescaleOBeforeGemm),
flash_fwd_launch_template.h (2 stages, clusters), flash_fwd_kernel_sm90.h (SRAM, registers),
tile_scheduler.hpp, flash_prepare_scheduler.cu, heuristics.h (PackGQA, num_splits_heuristic),
flash_api.cpp (get_num_splits), flash_attn_interface.py (num_splits), mask.h, paged_kv.h;
vllm-project/flash-attention, hopper/: utils.h (gemm, Use_Two_Level), tile_size.h, heuristics.h;
NVIDIA/TensorRT-LLM, cpp/kernels/fmha_v2/: src/fmha/warpspec/ (compute.h, dma.h), kernels' names as
traced on an H20 (ai-dynamo/aiconfigurator, collector/facts/results/sm90/trtllm.yaml).

What differs: a CTA's next block of query rows is loaded when the one before is done, where the
producer runs ahead; K_n and V_1 have buffers of their own besides the two stages; a range without
keys stores nothing, where the kernel stores zeros; masks of key blocks that an edge cuts are spread
over a tile's trips but for the first, and do not lengthen a turn; where a sequence has several
blocks of query rows, key blocks that a fork counts from a tile's first key are loaded from where
those counted from key 0 lie; the page table is not read, nor is the kernel run that counts the
blocks of each sequence before a varlen call; ranges are a CTA each, not dealt; fmha_v2's head_dims
between FlashAttention-3's run the next larger of these.
"""

from sys import maxsize
from typing import ClassVar, Literal

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload, Phase
from sim.schedules.base import Tile, TiledSchedule, check_arch, check_latest_keys
from sim.schedules.parts.combine_splits import Splits
from sim.schedules.parts.flash3_cta import (
    HEAD_DIMS,
    OWN_VALUE_DIMS,
    Q_SIDES,
    Call,
    Flash3Cta,
    Implementation,
    most_of_any,
    public_splits,
    public_tile,
)
from sim.schedules.parts.flash3_kernels import (
    combine_of_none,
    counter_set_to_zero,
    forward_kernel,
    split_kernels,
)
from sim.schedules.parts.query_rows import QueryRows
from sim.schedules.parts.traversal import (
    GridOrder,
    KeyOrder,
    check_one_length,
)
from sim.tile_program import Kernel


class Flash3(TiledSchedule):
    """FlashAttention-3. A `tile` that is given has 64, 128 or 192 query rows: a worker each 64.

    `call` says what it is called on: sequences of one length, of any, or of any in pages. `splits`
    are of the keys: unless given, 1 of a whole prompt, and behind a cached prefix as the public
    heuristic. To `implementation` "trtllm" all calls are one, and its keys are not split.
    `grid_order` and `key_order` are the order of traversal (traversal.py); unless given, tiles come
    as the scheduler deals them, masked ones swizzled.
    """

    name: Literal["flash3"] = "flash3"
    call: Call = "batch"
    splits: Splits | None = None
    implementation: Implementation = "fa3"
    grid_order: GridOrder | None = None
    key_order: KeyOrder = "descending"

    summary = "Hopper: warp groups that take turns at softmax and matmul, fed by TMA"
    source = "arXiv 2407.08608; Dao-AILab/flash-attention, hopper/"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    takes = frozenset({"append", "lengths", "query lengths", "softcap", "value_dim", "two sides"})

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload, or such a tile."""
        super().check(w)
        if w.dtype == "fp32":
            raise InputError(
                'schedule flash3: workload.dtype = "fp32": it takes fp16, bf16 and fp8'
            )
        check_one_length(self.name, w, self.grid_order, self.key_order)
        if w.lengths is not None and (self.call == "batch" or self.implementation == "trtllm"):
            key = f'call = "{self.call}"'
            if self.implementation == "trtllm":
                key = 'implementation = "trtllm"'
            raise InputError(
                f"schedule flash3: {key}: it is of sequences of one length; lists of lengths go "
                'with call = "varlen" or "paged" of the other implementations'
            )
        if self.implementation == "trtllm":
            check_latest_keys('schedule flash3: implementation = "trtllm"', w)
        if w.head_dim > HEAD_DIMS[-1]:
            raise InputError(
                f"schedule flash3: workload.head_dim = {w.head_dim}: it takes up to {HEAD_DIMS[-1]}"
            )
        sides = (w.head_dim, w.value_dim)
        if w.value_dim is not None and sides not in OWN_VALUE_DIMS.items():
            raise InputError(
                f"schedule flash3: workload.head_dim = {w.head_dim}, value_dim = {w.value_dim}: V "
                "as wide as K was expected, or 128 beside 192"
            )
        if self.tile and self.tile.q not in Q_SIDES:
            raise InputError(
                f"schedule flash3: tile.q = {self.tile.q}: 64, 128 or 192 query rows were expected"
            )
        if self.implementation == "trtllm" and (self.splits or 1) > 1:
            raise InputError(
                f"schedule flash3: splits = {self.splits}: TensorRT-LLM's splits no keys"
            )

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """One kernel of at most a CTA an SM; of several splits one of a CTA each, and combine."""
        check_arch(self.name, hw, "sm90")
        splits = (self.splits or 1,) * w.batch
        appends = w.queries != w.keys and self.implementation != "trtllm"
        if self.splits is None and appends:
            splits = public_splits(w, self.call, hw.sm.count, self.implementation)
        chosen = self.cta(w, hw, max(splits))
        if chosen.splits == 1:
            rows = QueryRows(w, chosen.tile, chosen.packed, (), chosen.from_first_key)
            kernel = forward_kernel(chosen, rows, hw.sm.count, self.grid_order, self.key_order)
            return [kernel, *self._behind(kernel, chosen, hw.sm.count, appends=appends)]
        if self.grid_order or self.key_order != "descending":
            raise InputError(
                f"schedule flash3: splits = {chosen.splits}: a CTA a range has no order of "
                "traversal: no grid_order and no key_order was expected"
            )
        return split_kernels(chosen, splits)

    def _behind(self, forward: Kernel, cta: Flash3Cta, sms: int, *, appends: bool) -> list[Kernel]:
        """What a call launches behind a kernel that splits nothing.

        Combine, where there is room for ranges; else whoever plans ahead sets the counter of tiles
        back that combine would (flash_api.cpp, mha_fwd): vLLM for all layers at once, SGLang those
        of steps of decoding without a window (flashattention_backend.py, forward_decode).
        """
        if self.call == "batch" or self.implementation == "trtllm":
            return []
        room = most_of_any(cta.w, self.call, sms, self.implementation) if appends else 1
        if self.splits is None and room > 1:
            return [combine_of_none(cta, forward)]
        ahead = {"vllm": True, "sglang": cta.w.phase == "decode" and cta.w.window is None}
        plans = self.call == "paged" and ahead.get(self.implementation, False)
        return [counter_set_to_zero()] if plans else []

    def cta(self, w: AttentionWorkload, hw: HardwareProfile, splits: int = 1) -> Flash3Cta:
        """The CTA with the tile asked for, else the public one; raises InputError."""
        default, packed = public_tile(w, self.call, splits > 1, self.implementation)

        def cta(tile: Tile) -> Flash3Cta:
            return Flash3Cta(w, tile, packed, self.call, splits, self.implementation)

        def sram_bytes(tile: Tile) -> int:
            """Of a tile; of one whose rows no warp groups have, more than any device has."""
            return cta(tile).sram_bytes if tile.q in Q_SIDES else maxsize

        return cta(self.fit_tile(default, sram_bytes, w, hw))

"""Ring Attention: each GPU holds a share of the tokens, and K and V go round.

    on each of P GPUs, which holds seq / P tokens' Q, K and V:
        for each turn s = 0 .. P - 1 (the papers' steps):
            send the K and V of this turn to the next GPU, receive those of turn s + 1
            O_s, LSE_s = flash attention of Q on the K and V of this turn
            O, LSE = merge(O, LSE; O_s, LSE_s)

At turn s GPU g has the keys of GPU g - s. `balance` says which tokens a GPU holds, and so what a
causal mask leaves between its queries and those keys:

    contiguous   one range in P       s = 0: causal    s <= g: all            s > g: nothing
    striped      every P-th token     s <= g: causal                          s > g: below diagonal
    zigzag       ranges g and         s = 0: causal    s <= g: earlier keys   s > g: later queries
                 2P - 1 - g of 2P

Without its diagonal, a token wide, a causal turn mostly visits the same tiles; then it is the same
kernel here. K and V are received in two buffers in turn; one is overwritten once the kernel that
reads it is done and it is sent on. In decoding every GPU has the query, and all keys come to it.

With `framework = "pytorch"` merging is nine kernels a turn (several_gpus.py) and two more where a
part of the queries is a slice, which is put back: later queries of a zigzag, and of stripes those
below the diagonal. The host makes these calls, each as long as CALL_LAUNCHES launches, and one for
each kernel of merging:

    exchange     2 buffers allocated, 4 sends and receives, 1 launch of their group, 1 wait
    attention    O, LSE and 2 small tensors allocated, 1 launch

so that a turn takes some 0.37 ms at least, however short its sequences are. The exchange's own
kernel takes no SM here. With `framework = "jax"`, the papers' own, all turns are one compiled
program: merging is one kernel, and the host is ahead. So is decoding, whose source is in JAX.

In training K and V go round once more, and with them dK and dV of their tokens in fp32:

    at each turn s: send K and V on
        dQ_s, dK_s, dV_s = backward of flash attention, with O and LSE of all turns
        dQ += dQ_s;  receive the dK and dV of these K and V;  dK += dK_s;  dV += dV_s;  send them on
    after the last turn dK and dV are sent once more, to where their tokens are

A turn's gradients are in the workload's dtype; D = rowsum(dO O) is made anew in every turn. Of a
GPU that a turn leaves nothing to do dK and dV go on as they came. `attention = "flash3"` runs a
forward turn by FlashAttention-3's kernel.

Source: Liu et al. 2023 (arXiv 2310.01889), Algorithm 1; Brandon et al. 2023 (arXiv 2311.09431) for
stripes; the kernels of a turn, and what they skip, as in zhuzilin/ring-flash-attention
(parts/ring_kernels.py), decoding as in Zyphra/tree_attention (ring_shard_test.py).
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import STATISTICS_BYTES, check_arch
from sim.schedules.flash3 import Flash3
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.parts.eager import CALL_LAUNCHES
from sim.schedules.parts.flash2_backward import BackwardCta
from sim.schedules.parts.public_tiles import public_backward_cta, public_cta
from sim.schedules.parts.results import Result
from sim.schedules.parts.ring_kernels import (
    Backward,
    BackwardOfTurns,
    Held,
    Part,
    flash2_kernel,
    flash3_kernel,
    of_part,
)
from sim.schedules.parts.several_gpus import (
    SeveralGpus,
    finish_kernel,
    merge_kernel,
    merged_like,
    pointwise_merge,
    run_kernels,
    start_kernel,
)
from sim.tile_program import Command, Kernel, Tensor, Transfer

# Calls of the host in a turn: RingComm.send_recv_kv and wait; flash_api.cpp, mha_fwd.
EXCHANGE_CALLS, ATTENTION_CALLS = 8, 5


@dataclass(frozen=True)
class RingKernels:
    """Attention and merging by what a turn's part of the mask is; the first and last kernels.

    In training, the same of `backward`, which begins and ends with those of `turns`.
    """

    attention: dict[Part, list[Kernel]]
    merge: dict[Part, list[Kernel]]
    start: Kernel
    finish: Kernel
    backward: dict[Part, Backward]
    turns: BackwardOfTurns | None


class Ring(SeveralGpus):
    """Ring Attention. `balance`: which tokens a GPU holds where the mask is causal.

    `framework`: whose kernels merge the turns, and what its host does between launches.
    `attention`: which kernel runs a turn.
    """

    name: Literal["ring"] = "ring"
    balance: Literal["contiguous", "striped", "zigzag"] = "contiguous"
    framework: Literal["pytorch", "jax"] = "pytorch"
    attention: Literal["flash2", "flash3"] = "flash2"

    summary = "several GPUs, each its tokens; K and V go round"
    source = "arXiv 2310.01889, 2311.09431; zhuzilin/ring-flash-attention"
    phases = ("prefill", "decode", "training")
    masks = ("full", "causal")

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        super().check(w)
        if self.attention == "flash3":
            self._check_flash3(w)
        if w.phase == "training" and self.compiled_by_triton:
            raise InputError(
                f'schedule ring: implementation = "{self.implementation}": workload.phase = '
                '"training": "cuda" was expected'
            )

    def _check_flash3(self, w: AttentionWorkload) -> None:
        where = 'schedule ring: attention = "flash3": '
        if w.phase != "prefill":
            raise InputError(
                f'{where}workload.phase = "{w.phase}": prefill was expected; attention = "flash2" '
                "decodes and trains"
            )
        own = [key for key in ("tile", "warps", "stages", "machine_code") if getattr(self, key)]
        if own or self.compiled_by_triton:
            raise InputError(
                f"{where}it has its own {', '.join(own) or 'implementation'}: none was expected"
            )
        Flash3().check(w)

    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The kernels of every part of the mask, and of merging."""
        kernels = self._kernels(w, hw)
        attention = dict.fromkeys(k for part in kernels.attention.values() for k in part)
        merging = dict.fromkeys(k for part in kernels.merge.values() for k in part)
        lowered = [*attention, kernels.start, *merging, kernels.finish]
        for one in kernels.backward.values():
            lowered += dict.fromkeys([*one.attention, *one.add_dq, *one.add_dkv])
        if kernels.turns:
            lowered += [*kernels.turns.start(), *kernels.turns.finish()]
        return lowered

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """All GPUs' kernels and transfers, for each token that is decoded."""
        self.check_links(hw)
        kernels = self._kernels(w, hw)
        commands: list[Command] = []
        ready: list[tuple[Command, ...]] = [()] * self.gpus
        for _ in range(w.tokens):
            commands += self._round(w, hw, kernels, ready)
            finished = [Command(kernels.finish, gpu) for gpu in range(self.gpus)]
            commands += finished
            ready = [(command,) for command in finished]
        if kernels.turns:
            commands += self._backward_round(w, hw, kernels, kernels.turns, ready)
        return commands

    def _round(
        self,
        w: AttentionWorkload,
        hw: HardwareProfile,
        kernels: RingKernels,
        ready: list[tuple[Command, ...]],
    ) -> list[Command]:
        """K and V once round; each GPU begins after its `ready`."""
        buffers = self._received("K, V", w, w.dtype_bytes)
        gpus = range(self.gpus)
        calls = (0, 0) if self._is_compiled(w) else (EXCHANGE_CALLS + ATTENTION_CALLS, 1)
        call_s = CALL_LAUNCHES * hw.calibration.launch.latency
        calls_s = (calls[0] * call_s, calls[1] * call_s)
        ran: list[list[list[Command]]] = []  # by turn and GPU
        sent: list[list[Command]] = []
        for s in gpus:
            arrived = [(sent[s - 1][gpu - 1],) if s else ready[gpu] for gpu in gpus]
            before_s = calls_s if s else (0.0, calls_s[1])  # a run begins with its first launch
            ran.append(
                [
                    run_kernels(self._of_turn(w, kernels, g, s), g, arrived[g], before_s)
                    for g in gpus
                ]
            )
            if s < self.gpus - 1:
                # The buffer held what came two turns ago: the first kernel that read it, and the
                # transfer that sent it on, are done.
                free = [(*ran[s - 1][g][:1], sent[s - 1][g]) if s > 1 else ready[g] for g in gpus]
                sent.append(self._hop(buffers[s % 2], arrived, free))
        of_all = [command for of_turn in ran for of_gpu in of_turn for command in of_gpu]
        return of_all + [command for of_turn in sent for command in of_turn]

    def _backward_round(
        self,
        w: AttentionWorkload,
        hw: HardwareProfile,
        kernels: RingKernels,
        turns: BackwardOfTurns,
        ready: list[tuple[Command, ...]],
    ) -> list[Command]:
        """K and V once more round, and dK and dV with them and back to where they belong."""
        of_kv = self._received("K, V of backward", w, w.dtype_bytes)
        of_dkv = self._received("dK, dV", w, STATISTICS_BYTES)
        gpus, start = range(self.gpus), turns.start()
        call_s = 0.0 if self._is_compiled(w) else CALL_LAUNCHES * hw.calibration.launch.latency
        before_s = (2 * EXCHANGE_CALLS + ATTENTION_CALLS) * call_s
        ran: list[list[list[Command]]] = []  # by turn and GPU: attention, and the sums
        sent: list[list[Command]] = []  # K and V
        given: list[list[Command]] = []  # dK and dV
        for s in gpus:
            arrived = [(sent[s - 1][gpu - 1],) if s else ready[gpu] for gpu in gpus]
            came = [(given[s - 1][gpu - 1],) if s else () for gpu in gpus]
            ran.append([])
            for gpu in gpus:
                part = self._part(w, gpu, s)
                own: list[Command] = []
                if part:
                    of_part = kernels.backward[part]
                    own = run_kernels(of_part.attention, gpu, arrived[gpu], (before_s, 0.0))
                    first, then = (of_part.add_dq, of_part.add_dkv) if s else (start, [])
                    own += run_kernels(first, gpu, (), (call_s, call_s))
                    own += run_kernels(then, gpu, came[gpu], (call_s, call_s))
                ran[s].append(own)
            if s < self.gpus - 1:
                free = [(*ran[s - 1][g], sent[s - 1][g]) if s > 1 else ready[g] for g in gpus]
                sent.append(self._hop(of_kv[s % 2], arrived, free))
            made = [tuple(ran[s][g][-1:]) or came[g] for g in gpus]
            free = [(*ran[s - 1][g][-1:], given[s - 1][g]) if s > 1 else ready[g] for g in gpus]
            given.append(self._hop(of_dkv[s % 2], made, free, "dK, dV"))
        of_all = [command for of_turn in ran for of_gpu in of_turn for command in of_gpu]
        last = [run_kernels(turns.finish(), g, (given[-1][g - 1],), (0.0, call_s)) for g in gpus]
        of_all += [command for of_gpu in last for command in of_gpu]
        return of_all + [command for of_turn in (*sent, *given) for command in of_turn]

    def _received(self, what: str, w: AttentionWorkload, element_bytes: int) -> list[Tensor]:
        """Room for two shares of the keys' tokens, of K and of V."""
        rows, matrices = self.share("seq_kv", w.seq_kv), 2 * w.batch * w.kv_heads
        return [
            Tensor(f"received {what} ({number})", matrices, rows, w.head_dim, element_bytes)
            for number in (0, 1)
        ]

    def _hop(
        self,
        buffer: Tensor,
        arrived: list[tuple[Command, ...]],
        free: list[tuple[Command, ...]],
        what: str = "K, V",
    ) -> list[Command]:
        """What all GPUs have to the next, once it has arrived and the buffer there is free."""
        return [
            Command(
                Transfer(what, buffer.bytes, to, buffer=buffer),
                gpu,
                (*arrived[gpu], *free[to]),
            )
            for gpu, to in ((gpu, (gpu + 1) % self.gpus) for gpu in range(self.gpus))
        ]

    def _of_turn(
        self, w: AttentionWorkload, kernels: RingKernels, gpu: int, s: int
    ) -> list[Kernel]:
        """What a GPU runs in a turn."""
        part = self._part(w, gpu, s)
        if part is None:
            return []
        return [*kernels.attention[part], *(kernels.merge[part] if s else [kernels.start])]

    def _is_compiled(self, w: AttentionWorkload) -> bool:
        """Whether all turns are one program, which the host launches without calls between."""
        return self.framework == "jax" or w.phase == "decode"

    def _part(self, w: AttentionWorkload, gpu: int, s: int) -> Part | None:
        """What the mask leaves of a turn of a GPU."""
        if not w.causal or w.phase == "decode":
            return "all"
        if self.balance == "striped":
            return "causal" if s <= gpu else "below diagonal"
        if s == 0:
            return "causal"
        if self.balance == "zigzag":
            return "earlier keys" if s <= gpu else "later queries"
        return "all" if s <= gpu else None

    def _kernels(self, w: AttentionWorkload, hw: HardwareProfile) -> RingKernels:
        """One kernel for each that differs, so that each is replayed once."""
        gpus = range(self.gpus)
        parts = {part: None for s in gpus for gpu in gpus if (part := self._part(w, gpu, s))}
        if w.phase == "decode":
            local = replace(w, seq_kv=self.share("seq_kv", w.seq_kv), causal=False)
            decoding = self.like(FlashDecoding).attention(local, hw)
            attention = dict.fromkeys(parts, decoding.kernels)
            chunks, result, held = 1, decoding.result, None
        else:
            held = self._held(w)
            flash = {part: self._kernel(part, w, hw, held) for part in parts}
            if "below diagonal" in flash and np.array_equal(
                flash["below diagonal"].trips, flash["causal"].trips
            ):
                flash["below diagonal"] = flash["causal"]
            attention = {part: [kernel] for part, kernel in flash.items()}
            chunks, result = held.chunks, held.part
        merged = merged_like(result)
        o = replace(result.o, name="O", lifetime="output", role="result")
        fused = self._is_compiled(w)
        merges: dict[tuple[int, bool], list[Kernel]] = {}  # one for each that differs
        merge: dict[Part, list[Kernel]] = {}
        for part in parts:
            first = chunks - 1 if part == "later queries" else 0
            sliced = part in ("later queries", "below diagonal") and not fused
            merge[part] = merges.setdefault(
                (first, sliced),
                [merge_kernel(result, merged, chunks, first)]
                if fused
                else pointwise_merge(result, merged, chunks, first, sliced=sliced),
            )
        start, finish = start_kernel(result, merged), finish_kernel(merged, o)
        turns, backward = None, {}
        if held and w.phase == "training":
            turns, cta = BackwardOfTurns(held, o, merged.lse), self._backward_cta(w, hw)
            backward = {part: turns.kernels(part, w, cta) for part in parts}
            if "below diagonal" in backward:
                backward["below diagonal"] = backward["causal"]
        return RingKernels(attention, merge, start, finish, backward, turns)

    def _kernel(self, part: Part, w: AttentionWorkload, hw: HardwareProfile, held: Held) -> Kernel:
        """Attention of a GPU's queries on the keys of a turn."""
        if self.attention == "flash3":
            check_arch(self.name, hw, "sm90")
            one = replace(of_part(w, part), seq_q=held.q.rows, seq_kv=held.k.rows)
            return flash3_kernel(part, w, held, Flash3().cta(one, hw), hw.sm.count)
        local = of_part(w, part)
        cta = self.cta(public_cta(local, hw, self.implementation), local, hw)
        return flash2_kernel(part, w, held, cta)

    def _backward_cta(self, w: AttentionWorkload, hw: HardwareProfile) -> BackwardCta:
        public = public_backward_cta(w, hw)
        tile = self.fit_tile(public.tile, public.sram_bytes(w), w, hw)
        return replace(public, tile=tile, warps=self.warps or public.warps)

    def _held(self, w: AttentionWorkload) -> Held:
        """A GPU's Q, K and V, and room for a turn's O; raises InputError where they do not fit."""
        if w.causal and w.seq_q != w.seq_kv:
            raise InputError(
                f"schedule {self.name}: workload.seq_q = {w.seq_q}: causal, it takes as many "
                f"queries as keys ({w.seq_kv})"
            )
        chunks = 2 if w.causal and self.balance == "zigzag" else 1
        queries = self.share("seq_q", w.seq_q, chunks * self.gpus)
        keys = self.share("seq_kv", w.seq_kv, chunks * self.gpus)
        heads, kv_heads = (w.batch * count * chunks for count in (w.heads, w.kv_heads))
        return Held(
            chunks,
            Tensor("Q", heads, queries, w.head_dim, w.dtype_bytes, "input", "query"),
            Tensor("K", kv_heads, keys, w.head_dim, w.dtype_bytes, "input", "key"),
            Tensor("V", kv_heads, keys, w.head_dim, w.dtype_bytes, "input", "value"),
            Result(
                Tensor("O of a step", heads, queries, w.head_dim, w.dtype_bytes, role="partial"),
                Tensor("LSE of a step", heads, queries, 1, STATISTICS_BYTES, role="partial"),
            ),
        )

"""A whole model's pass: the prefill of a prompt, or a token more for each sequence of a batch.

    for each layer:
        QKV, O and MLP matrices of all tokens       closed form
        attention                                   replayed, one layer, with a named schedule
        what GPUs that share it exchange            closed form (exchange.py)
    LM head, of the last token of each sequence, or of all tokens       closed form

Simulated: one layer's attention, kernel by kernel, from an empty L2; all layers are as that one.

A closed form: the matrices take max(weight bytes / HBM rate, FLOPs / tensor rate), both rates as
the profile sustains them (`calibration.hbm.read`, `calibration.tensor.native` at the clock
that the power limit leaves large matmuls, `sim.engine.power`): a roofline.
Every weight but the embedding's counts as a matrix's (in GPT-2 one in a hundred is none: biases,
norms, positions): multiplied once a token, 2 FLOPs each (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1), and read once a pass, as it is stored. Of `experts`, tokens are routed to some by
chance, each alike: T tokens leave the share (1 - routed / experts)^T unread.

Stored of fp8 are multiplied as such where the device can; others are widened to 16 bits on their
way, which takes no time here.

**Several GPUs.** `tensor`: each has its share of the heads and matrices. `pipeline`: a pass goes
through one GPU after the other, and takes as long as on one. `gpus` share it evenly.

Left out: norms, activations between the matrices (in HBM: a few per cent of the weights' bytes in
decoding; hidden by the FLOPs in prefill), sampling, gaps between kernels, host time. So a time is a
lower bound of a real server's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sim.engine.power import large_matmul_flops_per_s
from sim.inputs.hardware import HardwareProfile
from sim.inputs.shapes import ModelShape
from sim.inputs.workload import DTYPE_BYTES, AttentionWorkload, Dtype, Phase
from sim.machine import machine_of
from sim.runs.job import Progress, run_scenario
from sim.runs.record import Record
from sim.runs.scenario import Limits, Point, Scenario
from sim.schedules.base import Schedule
from sim.whole_model.exchange import exchange_s
from sim.whole_model.setting import GROUP, GROUP_BITS, Setting, Stored

Logits = Literal["last", "all"]


@dataclass(frozen=True)
class ModelPass:
    """One pass of a model: `workload` is one layer's attention in it, on one GPU.

    `logits` are made of the last token of each sequence, or of all tokens of the pass.
    """

    setting: Setting
    workload: AttentionWorkload
    logits: Logits = "last"

    @property
    def schedule(self) -> Schedule:
        """Of its attention."""
        return self.setting.schedule_of(self.workload.phase)

    @property
    def tokens(self) -> int:
        """Tokens that go through it."""
        return self.workload.batch * self.workload.seq_q

    @property
    def dense_s(self) -> float:
        """Seconds of all matrices, by the closed form."""
        asked, w = self.setting, self.workload
        ways = asked.shares[0].ways
        matrices = Matrices(asked.model, asked.hardware, w.dtype, asked.weights, ways)
        return matrices.time_s(self.tokens, self.tokens if self.logits == "all" else w.batch)

    @property
    def exchange_s(self) -> float:
        """Seconds of what GPUs exchange between layers."""
        return exchange_s(self.setting, self.tokens)


@dataclass(frozen=True)
class PassTime:
    """What a pass takes: times of all layers, and the HBM bytes of their attention on all GPUs.

    `attention_error` is what fast-forward may have made of its time, relatively.
    """

    attention_s: float
    dense_s: float
    exchange_s: float
    attention_hbm_bytes: int
    attention_error: float

    @property
    def time_s(self) -> float:
        """Seconds of the whole pass."""
        return self.attention_s + self.dense_s + self.exchange_s

    @property
    def attention_share(self) -> float:
        """Attention's share of the time."""
        return self.attention_s / self.time_s


def model_pass(setting: Setting, phase: Phase, tokens: int, logits: Logits = "last") -> ModelPass:
    """The prefill of prompts of so many tokens, or a token more after as many but one.

    `setting.batch` says of how many sequences.
    """
    model, ways = setting.model, setting.shares[0].ways
    window = model.window
    workload = AttentionWorkload(
        batch=setting.batch,
        heads=model.heads // ways,
        kv_heads=max(1, model.kv_heads // ways),
        seq_q=1 if phase == "decode" else tokens,
        seq_kv=tokens,
        head_dim=model.head_dim,
        dtype=setting.dtype,
        causal=True,
        window=window if window is not None and window < tokens else None,
        phase=phase,
        kv_dtype=setting.kv_dtype if phase == "decode" else None,
        latent_dim=model.latent_dim,
        rope_dim=model.rope_dim,
    )
    return ModelPass(setting, workload, logits)


@dataclass(frozen=True)
class Matrices:
    """A GPU's share of a model's matrices, by the closed form of the module's docstring.

    `dtype` is that of the activations; of `weights` only the embedding and the LM head have it.
    """

    shape: ModelShape
    hardware: HardwareProfile
    dtype: Dtype
    weights: Stored = "bf16"
    ways: int = 1

    @cached_property
    def _read_bytes_per_s(self) -> float:
        return machine_of(self.hardware).hbm_read_bytes_per_s

    @cached_property
    def _flops_per_s(self) -> float:
        return large_matmul_flops_per_s(self.hardware, self.dtype)

    @cached_property
    def _layers_flops_per_s(self) -> float:
        native = self.weights == "fp8" and self.hardware.tensor_flops_per_s("fp8") is not None
        return large_matmul_flops_per_s(self.hardware, "fp8") if native else self._flops_per_s

    def time_s(self, tokens: int, projected: int) -> float:
        """Seconds of all of them on `tokens` tokens, of which `projected` make logits."""
        shape = self.shape
        head = shape.vocab * shape.hidden
        tables = head if shape.tied_embeddings else 2 * head
        used = shape.parameters_used(tokens) - tables
        head_bytes = head * DTYPE_BYTES[self.dtype]
        used_bytes = used * DTYPE_BYTES[self.dtype] * GROUP_BITS[self.weights] / (16 * GROUP)
        used_flops = 2 * (shape.active_parameters - tables) * tokens
        layers_s = max(used_bytes / self._read_bytes_per_s, used_flops / self._layers_flops_per_s)
        head_flops = 2 * head * projected
        head_s = max(head_bytes / self._read_bytes_per_s, head_flops / self._flops_per_s)
        return (layers_s + head_s) / self.ways


def replay(
    passes: Sequence[ModelPass], where: str, limits: Limits, progress: Progress
) -> Iterator[tuple[Record, PassTime | None]]:
    """Each pass's time beside the record of its replay; None where a layer does not fit in HBM.

    The replays are one `[[schedule]]` scenario; `where` names the file in its messages. Raises
    InputError.
    """
    points = tuple(Point({}, one.workload, one.setting.hardware, (one.schedule,)) for one in passes)
    scenario = Scenario("whole_model", "", points, limits, where)
    outcomes = run_scenario(scenario, progress=progress)
    for one, outcome in zip(passes, outcomes, strict=True):
        record, run = outcome.record, outcome.run
        if run is None:
            yield record, None
            continue
        layers = one.setting.model.layers
        time = PassTime(
            attention_s=(run.time_s - run.kernels[0].start_s) * layers,
            dense_s=one.dense_s,
            exchange_s=one.exchange_s,
            attention_hbm_bytes=(record.hbm_bytes or 0) * layers * one.setting.shares[0].ways,
            attention_error=(record.fast_forward or {}).get("time_error", 0.0),
        )
        yield record, time

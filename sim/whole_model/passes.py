"""A whole model's pass: the prefill of a prompt, or a token more for each sequence of a batch.

    for each layer:
        QKV, O and MLP matrices of all tokens       closed form
        attention                                   replayed, one layer, with a named schedule
    LM head, of the last token of each sequence     closed form

Simulated: one layer's attention, kernel by kernel, from an empty L2; all layers are as that one.

A closed form: the matrices take max(weight bytes / HBM rate, FLOPs / tensor rate), both rates as
the profile sustains them (`calibration.hbm.read`, `calibration.tensor.native` at the clock
that the power limit leaves large matmuls, `sim.engine.power`): a roofline.
Every weight but the embedding's counts as a matrix's (in GPT-2 one in a hundred is none: biases,
norms, positions): multiplied once a token, 2 FLOPs each (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1), and read once a pass, in the 16 bits that the activations have. Of experts, T tokens
touch the share 1 - (1 - active / all)^T of the weights, as if each weight were visited on its own
by that chance: right for one token and for many, an upper bound between them (some weights every
token uses).

Left out: norms, activations between the matrices (in HBM: a few per cent of the weights' bytes in
decoding; hidden by the FLOPs in prefill), sampling, gaps between kernels, host time. So a time is a
lower bound of a real server's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from sim.engine.power import large_matmul_flops_per_s
from sim.inputs.hardware import HardwareProfile
from sim.inputs.shapes import ModelShape
from sim.inputs.workload import DTYPE_BYTES, AttentionWorkload, Dtype, Phase, WorkloadTable
from sim.machine import machine_of
from sim.runs.job import Progress, run_scenario
from sim.runs.record import Record
from sim.runs.scenario import Limits, Point, Scenario
from sim.schedules.base import Schedule
from sim.whole_model.setting import Setting


@dataclass(frozen=True)
class ModelPass:
    """One pass of a model on a device: `workload` is one layer's attention in it."""

    shape: ModelShape
    hardware: HardwareProfile
    schedule: Schedule
    workload: AttentionWorkload

    @property
    def dense_s(self) -> float:
        """Seconds of all matrices, by the closed form."""
        w = self.workload
        matrices = Matrices(self.shape, self.hardware, w.dtype)
        return matrices.time_s(w.batch * w.seq_q, w.batch)


@dataclass(frozen=True)
class PassTime:
    """What a pass takes: times of all layers, and the HBM bytes of their attention.

    `attention_error` is what fast-forward may have made of its time, relatively.
    """

    attention_s: float
    dense_s: float
    attention_hbm_bytes: int
    attention_error: float

    @property
    def time_s(self) -> float:
        """Seconds of the whole pass."""
        return self.attention_s + self.dense_s

    @property
    def attention_share(self) -> float:
        """Attention's share of the time."""
        return self.attention_s / self.time_s


def prefill(shape: ModelShape, hw: HardwareProfile, schedule: Schedule, tokens: int) -> ModelPass:
    """The prefill of one prompt of so many tokens."""
    return ModelPass(shape, hw, schedule, _workload(shape, hw, "prefill", 1, tokens))


def decode_pass(
    shape: ModelShape, hw: HardwareProfile, schedule: Schedule, batch: int, seq_kv: int
) -> ModelPass:
    """One token for each of `batch` sequences, the new one being the last of `seq_kv` tokens."""
    return ModelPass(shape, hw, schedule, _workload(shape, hw, "decode", batch, seq_kv))


def _workload(
    shape: ModelShape, hw: HardwareProfile, phase: Phase, batch: int, tokens: int
) -> AttentionWorkload:
    dtype = Setting(shape, hw).dtype
    return WorkloadTable(
        model=shape.name, phase=phase, batch=batch, seq_len=tokens, dtype=dtype
    ).workload()


@dataclass(frozen=True)
class Matrices:
    """The matrices of a model on a device, by the closed form of the module's docstring."""

    shape: ModelShape
    hardware: HardwareProfile
    dtype: Dtype

    @cached_property
    def _read_s_per_weight(self) -> float:
        return DTYPE_BYTES[self.dtype] / machine_of(self.hardware).hbm_read_bytes_per_s

    @cached_property
    def _flops_per_s(self) -> float:
        return large_matmul_flops_per_s(self.hardware, self.dtype)

    def time_s(self, tokens: int, sequences: int) -> float:
        """Seconds of all of them on `tokens` tokens, of `sequences` sequences."""
        shape = self.shape
        head = shape.vocab * shape.hidden
        tables = head if shape.tied_embeddings else 2 * head
        active, weights = shape.active_parameters - tables, shape.parameters - tables
        touched = weights * (1 - (1 - active / weights) ** tokens)
        layers_s = self._matmul_s(touched, active * tokens)
        return layers_s + self._matmul_s(head, head * sequences)

    def _matmul_s(self, weights: float, multiplied: float) -> float:
        """Seconds of reading so many weights and of so many multiplications and additions."""
        return max(weights * self._read_s_per_weight, 2 * multiplied / self._flops_per_s)


def replay(
    passes: Sequence[ModelPass], where: str, limits: Limits, progress: Progress
) -> Iterator[tuple[Record, PassTime | None]]:
    """Each pass's time beside the record of its replay; None where a layer does not fit in HBM.

    The replays are one `[[schedule]]` scenario; `where` names the file in its messages. Raises
    InputError.
    """
    points = tuple(Point({}, one.workload, one.hardware, (one.schedule,)) for one in passes)
    scenario = Scenario("whole_model", "", points, limits, where)
    outcomes = run_scenario(scenario, progress=progress)
    for one, outcome in zip(passes, outcomes, strict=True):
        record, run = outcome.record, outcome.run
        if run is None:
            yield record, None
            continue
        layers = one.shape.layers
        time = PassTime(
            attention_s=(run.time_s - run.kernels[0].start_s) * layers,
            dense_s=one.dense_s,
            attention_hbm_bytes=(record.hbm_bytes or 0) * layers,
            attention_error=(record.fast_forward or {}).get("time_error", 0.0),
        )
        yield record, time

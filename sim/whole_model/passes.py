"""A whole model's pass: the prefill of prompts, a token more for each sequence, a training step.

    for each layer:
        QKV, O and MLP matrices of all tokens       closed form
        attention                                   replayed, one layer, with a named schedule
        what GPUs that share it exchange            closed form (exchange.py)
    LM head, of the last token of each sequence, or of all tokens       closed form

Simulated: one layer's attention, kernel by kernel, from an empty L2; all layers are as that one.
Where some see only a sliding window (Gemma, gpt-oss), one of each kind.

A closed form: the matrices take max(weight bytes / HBM rate, FLOPs / tensor rate), both rates as
the profile sustains them (`calibration.hbm.read`, `calibration.tensor.native` at the clock
that the power limit leaves large matmuls, `sim.engine.power`): a roofline.
Every weight but the embedding's counts as a matrix's (in GPT-2 one in a hundred is none: biases,
norms, positions): multiplied once a token, 2 FLOPs each (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1), and read once a pass, as it is stored. Of `experts`, tokens are routed to some by
chance, each alike: T tokens leave the share (1 - routed / experts)^T unread.

Weights of fp8 are multiplied as such where the device can; others are widened to 16 bits on their
way, which takes no time here.

**Several GPUs.** `tensor`: each has its share of the heads and matrices. `pipeline`: a pass goes
through one GPU after the other, and takes as long as on one. `gpus` share it evenly.

**Training** goes forward and, with twice the FLOPs and bytes of matrices, backward (gradients by
inputs and by weights); with checkpointing each layer forward once more. All tokens have logits.
Then Adam in mixed precision reads a gradient of 16 bits and three fp32 states of each parameter,
and writes the states and the parameter in 16 bits (ZeRO, arXiv 1910.02054, section 3.1).

Left out: norms, activations between the matrices (in HBM: a few per cent of the weights' bytes in
decoding; hidden by the FLOPs in prefill), sampling, gaps between kernels, host time. So a time is a
lower bound of a real server's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from sim.device.run import DeviceRun
from sim.engine.power import large_matmul_flops_per_s
from sim.inputs.hardware import HardwareProfile
from sim.inputs.shapes import ModelShape
from sim.inputs.workload import DTYPE_BYTES, AttentionWorkload, Dtype, Phase
from sim.machine import machine_of
from sim.runs.cases import Case
from sim.runs.job import Progress, run_cases
from sim.runs.record import Record
from sim.runs.scenario import Limits, Point
from sim.schedules.base import Schedule
from sim.whole_model.exchange import exchange_s
from sim.whole_model.setting import ELEMENT_BYTES, GROUP, Setting, Weights, group_bits
from sim.whole_model.training import OPTIMISER_BYTES

Logits = Literal["last", "all"]
BACKWARD = 2  # times the FLOPs and bytes of the matrices forward
UPDATE_BYTES = ELEMENT_BYTES + 2 * OPTIMISER_BYTES + ELEMENT_BYTES  # of a parameter


@dataclass(frozen=True)
class ModelPass:
    """One pass of a model: `workload` is one layer's attention in it, on one GPU.

    `logits` are made of the last token of each sequence, or of all tokens of the pass, which
    training does. With `checkpointing` it goes forward again before it goes backward.
    """

    setting: Setting
    workload: AttentionWorkload
    logits: Logits = "last"
    checkpointing: bool = False

    @property
    def schedule(self) -> Schedule:
        """Of its attention."""
        return self.setting.schedule_of(self.workload.phase)

    @property
    def tokens(self) -> int:
        """Tokens that go through it."""
        return self.workload.batch * self.workload.seq_q

    @property
    def is_training(self) -> bool:
        """Whether it goes backward too."""
        return self.workload.phase == "training"

    @property
    def matrices(self) -> "Matrices":
        """Of the model, as each GPU has them."""
        asked = self.setting
        ways = asked.shares[0].ways
        return Matrices(asked.model, asked.hardware, self.workload.dtype, asked.weights, ways)

    @property
    def dense_s(self) -> float:
        """Seconds of all matrices, by the closed form."""
        every = self.logits == "all" or self.is_training
        head_s = self.matrices.head_s(self.tokens if every else self.workload.batch)
        layers_s = self.matrices.layers_s(self.tokens)
        if not self.is_training:
            return layers_s + head_s
        return (1 + BACKWARD + self.checkpointing) * layers_s + (1 + BACKWARD) * head_s

    @property
    def exchange_s(self) -> float:
        """Seconds of what GPUs exchange between layers; gradients as much as activations."""
        passes = 2 + self.checkpointing if self.is_training else 1
        return passes * exchange_s(self.setting, self.tokens)

    @property
    def update_s(self) -> float:
        """Seconds of the optimiser's step."""
        return self.matrices.update_s if self.is_training else 0.0

    @property
    def layers(self) -> list[tuple[AttentionWorkload, int]]:
        """The attention of each kind of layer, and how many there are."""
        model, w = self.setting.model, self.workload
        window = model.local_window
        if window is None or window >= w.seq_kv:
            return [(w, model.layers)]
        local = replace(w, window=window)
        return [(w, model.layers - model.local_layers), (local, model.local_layers)]

    def layer_s(self, run: DeviceRun) -> float:
        """Seconds of a layer's attention that ran so, without its first launch."""
        start_s = run.kernels[0].start_s
        seconds = run.time_s - start_s
        if self.checkpointing:
            backward = (one.start_s for one in run.kernels if one.run.kernel.backward)
            seconds += next(backward) - start_s
        return seconds


@dataclass(frozen=True)
class PassTime:
    """What a pass takes: times of all layers, and the HBM bytes of their attention on all GPUs.

    `attention_error` is what fast-forward may have made of its time, relatively.
    """

    attention_s: float
    dense_s: float
    exchange_s: float
    update_s: float
    attention_hbm_bytes: int
    attention_error: float

    @property
    def time_s(self) -> float:
        """Seconds of the whole pass."""
        return self.attention_s + self.dense_s + self.exchange_s + self.update_s

    @property
    def attention_share(self) -> float:
        """Attention's share of the time."""
        return self.attention_s / self.time_s


def model_pass(
    setting: Setting,
    phase: Phase,
    tokens: int,
    logits: Logits = "last",
    checkpointing: bool = False,
) -> ModelPass:
    """The prefill of prompts of so many tokens, a token after as many but one, a training step.

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
        dropout=setting.dropout and phase == "training",
        kv_dtype=setting.kv_dtype if phase == "decode" else None,
        latent_dim=model.latent_dim,
        rope_dim=model.rope_dim,
    )
    return ModelPass(setting, workload, logits, checkpointing)


@dataclass(frozen=True)
class Matrices:
    """A GPU's share of a model's matrices, by the closed form of the module's docstring.

    `dtype` is that of the activations; of `weights` only the embedding and the LM head have it.
    """

    shape: ModelShape
    hardware: HardwareProfile
    dtype: Dtype
    weights: Weights = "bf16"
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

    @property
    def _head(self) -> int:
        """Weights of the LM head."""
        return self.shape.vocab * self.shape.hidden

    @property
    def _tables(self) -> int:
        """Weights of the embedding and the LM head."""
        return self._head if self.shape.tied_embeddings else 2 * self._head

    def time_s(self, tokens: int, projected: int) -> float:
        """Seconds of all of them on `tokens` tokens, of which `projected` make logits."""
        return self.layers_s(tokens) + self.head_s(projected)

    def layers_s(self, tokens: int) -> float:
        """Seconds of the layers' on so many tokens."""
        others = self.shape.parameters - self._tables - self.shape.routed_parameters
        bits = group_bits(self.weights, self.shape.routed_parameters_used(tokens), others)
        used_bytes = DTYPE_BYTES[self.dtype] * bits / (16 * GROUP)
        flops = 2 * (self.shape.active_parameters - self._tables) * tokens
        return self._slower_s(used_bytes, flops, self._layers_flops_per_s)

    def head_s(self, projected: int) -> float:
        """Seconds of the LM head on so many tokens."""
        head_bytes = self._head * DTYPE_BYTES[self.dtype]
        return self._slower_s(head_bytes, 2 * self._head * projected, self._flops_per_s)

    @property
    def update_s(self) -> float:
        """Seconds of a step of Adam on the GPU's share of the parameters."""
        parameters = self.shape.parameters / self.ways
        return parameters * UPDATE_BYTES / self._read_bytes_per_s

    def _slower_s(self, read_bytes: float, flops: float, flops_per_s: float) -> float:
        """Seconds of a GPU's share of so many bytes and FLOPs."""
        return max(read_bytes / self._read_bytes_per_s, flops / flops_per_s) / self.ways


def replay(
    passes: Sequence[ModelPass], where: str, limits: Limits, progress: Progress
) -> Iterator[tuple[Record, PassTime | None]]:
    """Each pass's time beside the record of its replay; None where a layer has none, for a reason.

    Raises InputError, naming the file `where`, if no pass can be.
    """
    cases = [
        Case(Point({}, workload, one.setting.hardware, (one.schedule,)), one.schedule)
        for one in passes
        for workload, _ in one.layers
    ]
    outcomes = run_cases(cases, where, limits, progress=progress)
    for one in passes:
        ran = [next(outcomes) for _ in one.layers]
        layers = [
            (outcome.record, one.layer_s(outcome.run) * count, count)
            for outcome, (_, count) in zip(ran, one.layers, strict=True)
            if outcome.run is not None
        ]
        if len(layers) < len(ran):
            yield next(outcome.record for outcome in ran if outcome.run is None), None
            continue
        attention_s = sum(seconds for _, seconds, _ in layers)
        hbm_bytes = sum((record.hbm_bytes or 0) * count for record, _, count in layers)
        errors_s = sum(
            (record.fast_forward or {}).get("time_error", 0.0) * seconds
            for record, seconds, _ in layers
        )
        yield (
            layers[0][0],
            PassTime(
                attention_s=attention_s,
                dense_s=one.dense_s,
                exchange_s=one.exchange_s,
                update_s=one.update_s,
                attention_hbm_bytes=hbm_bytes * one.setting.shares[0].ways,
                attention_error=errors_s / attention_s,
            ),
        )

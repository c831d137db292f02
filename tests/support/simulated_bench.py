"""A bench that measures by simulating: a device whose true calibration is known."""

from collections.abc import Iterator, Sequence

import numpy as np

from sim.device.run import run_on_device
from sim.inputs.hardware import HardwareProfile
from validate.judging import counted_hit_rate
from validate.measurement import Counters, Device, Measurement, Micro, Shape
from validate.predict import predict


class SimulatedBench:
    """Answers as the GPU's bench does; times are the simulator's, with `noise`."""

    def __init__(self, truth: HardwareProfile, micro: Sequence[Micro] = (), noise: float = 0.0):
        self.truth, self.microbenchmarks, self.noise = truth, list(micro), noise
        self.rng = np.random.default_rng(0)
        self.measured: list[Shape] = []

    def describe(self) -> tuple[Device, dict[str, str]]:
        return Device(name="simulated", profile=self.truth.name), {"attnsim": "of a test"}

    def micro(self) -> Iterator[Micro]:
        yield from self.microbenchmarks

    def measure(self, shape: Shape) -> Measurement:
        self.measured.append(shape)
        prediction = predict(shape, self.truth)
        cold, warm = (
            [t * float(np.exp(self.rng.normal(0, self.noise))) for _ in range(3)]
            for t in (prediction.cold_s, prediction.warm_s)
        )
        facts = {name: getattr(shape, name) for name in Shape.model_fields}
        return Measurement(**facts, cold_s=cold, warm_s=warm)

    def count(self, points: Sequence[Measurement]) -> list[list[Counters]]:
        return [self._counters(point) for point in points]

    def _counters(self, point: Measurement) -> list[Counters]:
        w = point.workload.workload()
        commands = point.parsed_schedule("a test").program(w, self.truth)
        run = run_on_device(commands, self.truth, w.dtype, "replay", lambda _: None)
        return [
            Counters(
                kernel=k.run.kernel.name,
                hbm_read_bytes=k.run.hbm_read_bytes,
                hbm_write_bytes=k.run.hbm_write_bytes,
                l2_read_bytes=k.run.l2_read_bytes,
                l2_write_bytes=k.run.l2_write_bytes,
                l2_hit_rate=counted_hit_rate(
                    k.run.l2_read_bytes, k.run.l2_write_bytes, k.run.l2_hit_bytes
                ),
            )
            for k in run.kernels
        ]

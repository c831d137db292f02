"""What GPUs that share a model send one another in a pass: closed forms.

    tensor      twice a layer all sum their partial results of the residual stream: by a ring, in
                which 2 (P - 1) times a GPU passes 1 / P of it on (arXiv 1909.08053, section 3;
                NVIDIA/nccl-tests, doc/PERFORMANCE.md), or in one shot, in which each sends all of
                it to every other of its node, whichever is faster, as serving frameworks choose
                (vllm-project/vllm, csrc/custom_all_reduce.cuh)
    pipeline    each stage but the last sends the residual stream to the next

The ring waits for its slowest link. Nothing is overlapped with what comes before or after it.
"""

from sim.inputs.hardware import HardwareProfile
from sim.machine import Link, peer_link
from sim.runs.job import naming
from sim.whole_model.setting import ELEMENT_BYTES, Setting

ALL_REDUCES = 2  # a layer: after attention's projection and after the MLP


def check_links(setting: Setting) -> None:
    """Raises InputError where the device lacks a link that so many GPUs need."""
    if setting.gpus > 1:
        with naming(f"gpus = {setting.gpus}"):
            ring(setting.hardware, setting.gpus)


def exchange_s(setting: Setting, tokens: int) -> float:
    """Seconds of a pass of so many tokens that all layers spend so.

    Of context parallelism none: its schedules exchange keys and values themselves.
    """
    gpus, stream_bytes = setting.gpus, tokens * setting.model.hidden * ELEMENT_BYTES
    if gpus == 1 or setting.parallel == "context":
        return 0.0
    if setting.parallel == "tensor":
        sum_s = all_reduce_s(setting.hardware, gpus, stream_bytes)
        return setting.model.layers * ALL_REDUCES * sum_s
    return sum(sent_s(link, stream_bytes) for link in ring(setting.hardware, gpus)[:-1])


def all_reduce_s(hw: HardwareProfile, gpus: int, count: float) -> float:
    """Seconds until all GPUs have the sum of what each has so many bytes of."""
    links = ring(hw, gpus)
    by_ring_s = 2 * (gpus - 1) * max(sent_s(link, count / gpus) for link in links)
    if any(link.kind != "peer" for link in links):
        return by_ring_s
    return min(by_ring_s, sent_s(links[0], (gpus - 1) * count))


def ring(hw: HardwareProfile, gpus: int) -> list[Link]:
    """The link from each GPU to the next, the last's to the first; raises InputError."""
    return [peer_link(hw, gpu, (gpu + 1) % gpus) for gpu in range(gpus)]


def sent_s(link: Link, count: float) -> float:
    """Seconds until so many bytes have arrived."""
    return count / link.bytes_per_s + link.latency_s

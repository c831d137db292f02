"""Links (SimPy) between GPUs and to the host's memory.

A GPU has a port out and a port in for each kind of link; each is a FIFO server. A transfer holds
the sender's port out, then also the receiver's port in, for bytes / bandwidth, and arrives a
latency after that. The host takes and gives as fast as it is asked to.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from sim.inputs.hardware import HardwareProfile
from sim.machine import LinkKind, link_of
from sim.tile_program import Command, Transfer


@dataclass(frozen=True)
class Sent:
    """A transfer of GPU `gpu`, which held its ports from `start_s` to `free_s`; then it arrived."""

    start_s: float
    free_s: float
    end_s: float
    transfer: Transfer
    gpu: int
    kind: LinkKind


def check_links(commands: list[Command], hw: HardwareProfile) -> None:
    """Raises InputError where a transfer of the commands needs a link that the profile lacks."""
    for command in commands:
        if isinstance(command.work, Transfer):
            link_of(hw, command.gpu, command.work)


class Links:
    """The ports that transfers go through."""

    def __init__(self, env: simpy.Environment, hw: HardwareProfile) -> None:
        self.env, self.hw = env, hw
        self.ports: dict[tuple[LinkKind, str, int], simpy.Resource] = {}

    def port(self, kind: LinkKind, direction: str, gpu: int) -> simpy.Resource:
        """A port of a GPU, one transfer at a time."""
        return self.ports.setdefault((kind, direction, gpu), simpy.Resource(self.env))

    def send(self, gpu: int, transfer: Transfer) -> Generator[simpy.Event, Any, Sent]:
        """Make the transfer; raises InputError where the profile has no such link."""
        link = link_of(self.hw, gpu, transfer)
        ports = [self.port(link.kind, "out", gpu)]
        if not transfer.from_host and transfer.to != "host":
            ports.append(self.port(link.kind, "in", transfer.to))
        held = []
        for port in ports:
            held.append(port.request())
            yield held[-1]
        start_s = self.env.now
        yield self.env.timeout(transfer.bytes / link.bytes_per_s)
        free_s = self.env.now
        for port, request in zip(ports, held, strict=True):
            port.release(request)
        yield self.env.timeout(link.latency_s)
        return Sent(start_s, free_s, self.env.now, transfer, gpu, link.kind)

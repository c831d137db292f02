"""Links (SimPy) between GPUs and to the host's memory.

A GPU has a port out and a port in for each kind of link; each is a FIFO server. A transfer holds
the sender's port out, then also the receiver's port in, for bytes / bandwidth, and arrives a
latency after that. The host takes and gives as fast as it is asked to.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import simpy

from sim.files import InputError
from sim.hardware import HardwareProfile
from sim.tile_program import Transfer

Kind = Literal["peer", "network", "to host", "from host"]


@dataclass(frozen=True)
class Link:
    """What joins two ends: its kind, sustained bytes a second a direction, and latency."""

    kind: Kind
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Sent:
    """A transfer of GPU `gpu`, which held its ports from `start_s` to `free_s`; then it arrived."""

    start_s: float
    free_s: float
    end_s: float
    transfer: Transfer
    gpu: int
    kind: Kind


def link_of(hw: HardwareProfile, gpu: int, transfer: Transfer) -> Link:
    """The link that a transfer of GPU `gpu` takes; raises InputError where there is none."""
    if transfer.from_host:
        return host_link(hw, "from host")
    if transfer.to == "host":
        return host_link(hw, "to host")
    return peer_link(hw, gpu, transfer.to)


def host_link(hw: HardwareProfile, kind: Kind) -> Link:
    """The link to the host's memory; raises InputError without one."""
    if hw.links is None or hw.links.host is None:
        raise InputError(f"{hw.name} has no links.host: the link to the host's memory")
    calibration = hw.calibration.links
    return Link(kind, hw.links.host * calibration.sustained, calibration.latency)


def peer_link(hw: HardwareProfile, gpu: int, to: int) -> Link:
    """The link from one GPU to another: links.peer within a node, links.network beyond.

    A node has `links.node_gpus`. Raises InputError where the profile has no such link.
    """
    links, calibration = hw.links, hw.calibration.links
    if links is None or links.peer is None:
        raise InputError(f"{hw.name} has no links.peer: the link to other GPUs")
    if links.node_gpus is None or gpu // links.node_gpus == to // links.node_gpus:
        return Link("peer", links.peer * calibration.sustained, calibration.latency)
    if links.network is None:
        raise InputError(
            f"{hw.name} has no links.network: the link beyond the {links.node_gpus} GPUs of a node "
            "(links.node_gpus)"
        )
    return Link("network", links.network * calibration.sustained, calibration.network_latency)


class Links:
    """The ports that transfers go through."""

    def __init__(self, env: simpy.Environment, hw: HardwareProfile) -> None:
        self.env, self.hw = env, hw
        self.ports: dict[tuple[Kind, str, int], simpy.Resource] = {}

    def port(self, kind: Kind, direction: str, gpu: int) -> simpy.Resource:
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

"""A program, which is a list of commands: on how many GPUs it runs, and which kernels."""

from sim.tile_program import Command, Kernel, Transfer


def gpus_of(commands: list[Command]) -> int:
    """How many GPUs the commands run on or send to."""
    receivers = [command.work.to for command in commands if isinstance(command.work, Transfer)]
    return 1 + max(
        *(command.gpu for command in commands), *(to for to in receivers if to != "host"), 0
    )


def kernels_of(commands: list[Command]) -> list[Kernel]:
    """Every kernel of the commands, once each, in order."""
    return list(
        dict.fromkeys(command.work for command in commands if isinstance(command.work, Kernel))
    )


def replays_of(commands: list[Command]) -> list[Kernel]:
    """The kernels that must be replayed: of several GPUs, one that repeats only once."""
    if gpus_of(commands) > 1:
        return kernels_of(commands)
    return [command.work for command in commands if isinstance(command.work, Kernel)]

"""A program, which is a list of commands: on how many GPUs it runs, and which are replayed."""

from sim.engine.fast_forward.choice import Choice
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


def launches_of(commands: list[Command]) -> list[Kernel]:
    """Every kernel as often as it is launched; of several GPUs once each."""
    if gpus_of(commands) > 1:
        return kernels_of(commands)
    return [command.work for command in commands if isinstance(command.work, Kernel)]


def told_by(commands: list[Command], choice: Choice) -> dict[Command, tuple[Command, ...]]:
    """The commands whose kernel is not replayed, and which earlier ones tell what it takes.

    What starts from an empty L2 is told by the first kernel like it: what is replayed in part, and
    all on several GPUs. Of one GPU's others each finds in L2 what the ones before it left: where
    all are too many to replay, one is told by the second like it that followed a like one. The
    first, as far as it differs from the second, says how far that may be off.
    """
    told: dict[Command, tuple[Command, ...]] = {}
    several, firsts = gpus_of(commands) > 1, dict[Kernel, Command]()
    on_one_l2: list[tuple[Command, Kernel]] = []
    for command in commands:
        kernel = command.work
        if not isinstance(kernel, Kernel):
            continue
        if not several and kernel not in choice.in_part:
            on_one_l2.append((command, kernel))
        elif (first := firsts.setdefault(kernel.first_like, command)) is not command:
            told[command] = (first,)
    if sum(choice.cost[kernel] for _, kernel in on_one_l2) <= choice.most:
        return told
    alike: dict[tuple[Kernel | None, Kernel], list[Command]] = {}
    before = None
    for command, kernel in on_one_l2:
        known = alike.setdefault((before, kernel.first_like), [])
        before = kernel.first_like
        if len(known) < 2:
            known.append(command)
        else:
            told[command] = (known[1], known[0])
    return told


def replays_of(commands: list[Command], choice: Choice) -> list[Kernel]:
    """The kernels that are replayed, in order; a kernel as often as it is."""
    told = told_by(commands, choice)
    return [
        command.work
        for command in commands
        if isinstance(command.work, Kernel) and command not in told
    ]

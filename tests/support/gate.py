"""A gate before each point of a sweep: its workers stop there until a test lets them through.

    ATTNSIM_GATE=FOLDER python tests/support/gate.py sweep ...

is `attnsim sweep ...` whose workers, each time that they begin a point, write their process id into
FOLDER/begun and take a byte from the pipe FOLDER/gate, or wait until there is one. So a test says
how many points are finished, and what is under way when it stops the sweep. A point goes back to
the main process as soon as it is finished. Dask's workers are told to load this module.
"""

import os
from pathlib import Path

FOLDER = "ATTNSIM_GATE"


class Gate:
    """The test's side: a gate in a new folder, closed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        os.mkfifo(folder / "gate")
        self._begun = folder / "begun"
        self._begun.touch()
        self._pipe = os.open(folder / "gate", os.O_RDWR)  # O_WRONLY would wait for a worker
        self.environment = {FOLDER: str(folder)}

    def let(self, points: int) -> None:
        """Let so many points more through."""
        os.write(self._pipe, bytes(points))

    @property
    def begun(self) -> list[int]:
        """The workers' process ids, one for each point, in the order in which they began them."""
        return [int(line) for line in self._begun.read_text().split()]

    def close(self) -> None:
        """Let no point through any more: those that wait fail."""
        os.close(self._pipe)


def stop_at_gate(folder: Path) -> None:
    """The worker's side: from now on each point of this process waits."""
    from sim.runs import work

    run = work.run_case

    def behind_gate(*asked):
        with open(folder / "begun", "a") as begun:
            begun.write(f"{os.getpid()}\n")
        pipe = os.open(folder / "gate", os.O_RDONLY | os.O_NONBLOCK)  # else waits for the test
        os.set_blocking(pipe, True)
        let = os.read(pipe, 1)
        os.close(pipe)
        if not let:
            raise EOFError("the test is over")
        return run(*asked)

    work.run_case, work.CHUNK_S = behind_gate, -1.0


if __name__ == "__main__":
    from sim.cli.app import main

    main()
elif FOLDER in os.environ:  # a worker: of processes it is "__mp_main__", of Dask an import
    stop_at_gate(Path(os.environ[FOLDER]))

"""What attention leaves: O and its log-sum-exp, and the kernels that make them."""

from dataclasses import dataclass

from sim.tile_program import Kernel, Tensor


@dataclass(frozen=True)
class Result:
    """O and its log-sum-exp: matrices of `o.rows` x head_dim, in groups that go together."""

    o: Tensor
    lse: Tensor

    @property
    def bytes(self) -> int:
        """Bytes of both."""
        return self.o.bytes + self.lse.bytes


@dataclass(frozen=True)
class Attention:
    """Kernels that compute attention, in order, and where the last of them leaves it."""

    kernels: list[Kernel]
    result: Result

"""The moments of a pass: what lives in HBM at each, and what for."""

from dataclasses import dataclass
from typing import Literal

Use = Literal["prefill", "decode", "training", "training with checkpointing"]
USES: tuple[Use, ...] = ("prefill", "decode", "training", "training with checkpointing")
Part = Literal[
    "parameters", "gradients", "optimiser", "KV cache", "activations", "attention", "logits",
    "framework reserve",
]  # fmt: skip
LOGIT_BYTES = 2 + 4  # as the matmul makes them (in training, their gradient), and in fp32


@dataclass(frozen=True)
class Memory:
    """Bytes in the fullest GPU's HBM at one moment, by what they are for."""

    moment: str
    parts: dict[Part, int]

    @property
    def bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

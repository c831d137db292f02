"""PyTorch's own attention, which campaigns measure beside the kernels."""

import pytest
import torch

from sim.inputs.workload import WorkloadTable
from tests.support.interpreted import DEVICE
from validate.torch_attention import torch_attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_eager_and_fused_attention_agree_on_the_same_inputs(causal, kv_heads):
    w = WorkloadTable(
        batch=2, heads=4, kv_heads=kv_heads, head_dim=64, seq_len=130, causal=causal
    ).workload()
    eager = torch_attention("torch_eager", w, DEVICE)()
    fused = torch_attention("sdpa_flash", w, DEVICE)()
    assert eager.shape == (2, 4, 130, 64)
    torch.testing.assert_close(eager, fused, atol=2e-2, rtol=2e-2)

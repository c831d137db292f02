"""Trees of drafted tokens against a cache: the mask's bytes, what it costs, who has one."""

import numpy as np
import pytest

from sim import simulate
from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.schedules import make_schedule
from tests.support.formulas import ceil, run, workload
from tests.support.same_runs import assert_engines_agree

FLASHINFER = {"name": "paged", "implementation": "flashinfer"}
H100 = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
DRAFTS = {"heads": 8, "kv_heads": 2, "head_dim": 128, "phase": "decode", "seq_q": 16}


def kernels(table=FLASHINFER, hw=H100, splits=None, **keys):
    w = workload(**(DRAFTS | {"causal": True} | keys))
    return w, kernels_of(
        make_schedule(table | ({"splits": splits} if splits else {}), "a test").program(w, hw)
    )


@pytest.mark.parametrize("seq_kv", [4096, 4000, 131])
def test_each_kv_head_reads_a_bit_a_query_and_key(seq_kv):
    """16 queries of 4 heads are the 64 rows of one tile."""
    chain, tree = (kernels(batch=3, seq_kv=seq_kv, tree=t, splits=1) for t in (False, True))
    reads = [run(own[:1], H100, w)[0].hbm_read_bytes for w, own in (chain, tree)]
    assert chain[1][0].trips.tolist() == tree[1][0].trips.tolist()
    assert reads[1] - reads[0] == 3 * 2 * 16 * ceil(seq_kv, 8)


def test_no_key_is_left_out_for_a_tree():
    """Of 256 drafted tokens a chain's first tiles of rows see less of the last keys."""
    (_, chain), (_, tree) = (
        kernels(seq_q=256, seq_kv=512, tree=t, splits=1) for t in (False, True)
    )
    assert np.all(tree[0].trips[1] == 512 // 64)
    assert chain[0].trips[1].sum() < tree[0].trips[1].sum()


@pytest.mark.parametrize("lengths", [{"batch": 2, "seq_kv": 700}, {"seq_kv": [90, 700, 333]}])
def test_both_engines_agree_on_trees(lengths):
    hw = load_profile("rtx-4090", {"sm": {"count": 3}, "l2": {"capacity": "100 KiB"}}, "a test")
    for heads in (8, 12):  # whose rows a tile holds whole, and not
        w, own = kernels(hw=hw, heads=heads, kv_heads=2, seq_q=7, tree=True, **lengths)
        assert_engines_agree(own, hw, w.dtype)


def test_a_tree_costs_a_few_tens_of_percent_more_than_a_chain():
    """Every trip looks its bits up, for which compute-bound verification pays."""
    chain, tree = (
        simulate(
            workload={"model": "llama-3-8b", "phase": "decode", "batch": 8, "seq_q": 32}
            | {"seq_kv": 8192, "tree": t},
            hardware="h100-sxm",
            schedule=FLASHINFER,
        )[0].time_s
        for t in (False, True)
    )
    assert 1.05 < tree / chain < 1.5


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (
            {"name": "paged"},
            'implementation = "cuda": workload.tree = true: its kernel has no mask',
        ),
        ({"name": "flash3"}, "workload.tree = true: it has no mask of a tree; paged takes one"),
    ],
)
def test_who_has_no_mask_of_a_tree_says_who_has(table, complaint):
    with pytest.raises(InputError, match=complaint):
        kernels(table, tree=True, seq_kv=4096)


@pytest.mark.parametrize("keys", [{"seq_q": 1}, {"phase": "prefill"}, {"causal": False}])
def test_a_tree_is_of_several_drafted_tokens(keys):
    with pytest.raises(ValueError, match="drafted tokens, each of which follows others"):
        workload(**(DRAFTS | {"seq_kv": 4096, "tree": True} | keys))

"""What must live in a GPU's HBM for a model to run at a context, and the longest that fits.

All figures are of the fullest GPU at its fullest moment. In inference a forward pass goes through
three moments, whose tensors take each other's place; the largest counts:

    attention   the residual stream and its norm, the new keys and values, and the attention itself
    MLP         the residual stream and its norm, the inside of the MLP and its output
    logits      the last token's logits in 16 bits and fp32 (of each sequence)

Beside them stay the parameters, the KV cache of all layers and the framework's reserve.

**Attention** is what the schedule's own steps for one layer allocate on the device
(`sim.device.run.check_memory`), less the layer's part of the KV cache. A schedule that cannot
read the cache as it lies there (quantised, or latents outside `mla`) reads a copy of one layer in
the activations' dtype, as LMDeploy's prefill does (InternLM/lmdeploy, flatten_kv_cache).

**Prefill** goes through one prompt after the other in chunks, as in vLLM; the last chunk, which
sees all keys, counts. A chunk of 0 is the whole prompt of all sequences at once, as in eager code.
**A sliding window** caps the cache at its tokens (Mistral 7B, arXiv 2310.06825, rolling buffer).

**Training** keeps of each layer, a token, in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198,
section 4.1; for GPT it comes to their s b h (34 + 5 a s / h)):

    both norms' inputs and outputs               4 hidden
    Q, K, V and the projection's input           2 heads head_dim + 2 kv_heads head_dim
    the MLP's inside                             2 mlp; if gated 4 (gate, SiLU(gate), up, product)
    with dropout, its two masks                  2 hidden of one byte
    what attention keeps beyond Q, K, V and O    the tensors that both passes of the schedule touch

or with checkpointing only the layer's input and, of the layer whose backward pass runs, all of that
(the paper's full recomputation: 2 s b h). Beside them are parameters, gradients and the states of
Adam in mixed precision, 16 bytes a parameter in all (ZeRO, arXiv 1910.02054, section 3.1), and the
logits of all tokens.

**Several GPUs.** `tensor`: heads, matrices and vocabulary are shared out (arXiv 1909.08053);
fewer KV heads than GPUs are copied, latents too; the residual stream is whole on each, but in
training shared out by tokens (sequence parallelism, arXiv 2205.05198, section 4.2.2: all divided).
`pipeline`: each has some of the layers; in training stage i of p keeps the activations of p - i
micro-batches (1F1B, section 4.2.3 there). `context`: each has its share of the tokens, K and V go
round (`ring`) and decoding merges partial results (`tree_decoding`); parameters are whole on each,
but in training shared out as in ZeRO-3, of which one layer is gathered at a time.

Taken as equal: all layers (the mean of their parameters, so dense first layers of DeepSeek too).
Not counted: fragmentation of the allocator, CUDA graphs, data parallelism.
"""

from collections.abc import Callable

from sim.whole_model.inference import inference
from sim.whole_model.setting import Memory, Setting, Use
from sim.whole_model.training import training

# Between contexts so many tokens apart the memory grows: nearer ones may be split in more or fewer
# partial results (`flash_decoding`), which are far less than so many tokens' keys and values.
STEP = 256
MOST_TOKENS = 2**24  # beyond, a context counts as without limit


def memory(setting: Setting, use: Use, context: int) -> Memory:
    """What lives in HBM at a context of so many tokens, on the fullest GPU at its fullest moment.

    Raises InputError where the schedule does not take the use.
    """
    of_use = training if use.startswith("training") else inference
    found = [memory for share in setting.shares for memory in of_use(setting, share, use, context)]
    return max(found, key=lambda memory: memory.bytes)


def longest_context(setting: Setting, use: Use) -> int:
    """Tokens of the longest context that fits, a multiple of STEP; 0 if none does.

    MOST_TOKENS stands for no limit. Raises InputError as `memory` does.
    """
    capacity_bytes = setting.hardware.hbm.capacity
    steps = longest(
        lambda n: memory(setting, use, n * STEP).bytes <= capacity_bytes, MOST_TOKENS // STEP
    )
    return steps * STEP


def longest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, by bisection; 0 if none does.

    Whatever is smaller than one that fits must fit too.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low

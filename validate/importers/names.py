"""What sources call kernels, dtypes and devices, and what `validate` knows them by.

A name that is not here stays what it is: whether it can be predicted is decided where all figures
are (`validate.operations`, `validate.devices`), which says why not.
"""

DTYPES = {"bfloat16": "bf16", "float16": "fp16"}

# Folders that stand for a device. What a100 and h100 are: vidur's README, "A100 80GB DGX" and
# "H100 DGX"; what RTXPRO6000 is: LLMServingSim's meta.yaml, "Blackwell Server Edition".
DEVICES = {
    "a100": "A100-SXM4-80GB",
    "a6000": "RTX A6000",
    "h100": "H100 80GB HBM3",
    "rtx4090": "RTX 4090",
    "rtxpro6000": "RTX PRO 6000 Blackwell Server Edition",
    "rtx_pro_6000": "RTX PRO 6000 Blackwell Server Edition",
}

# Kernels, by source and what of its is said.
AICONFIGURATOR = "{framework} {kernel}"
AICONFIGURATOR_MLA = "{framework} MLA {kernel}"
INFERSIM = {
    "mha/decode": "FlashInfer paged decode",
    "mha/prefill": "FlashAttention-3 (sgl_kernel varlen)",
    "mla/decode": "FlashInfer MLA decode",
    "mla/prefill": "FlashAttention-3 MLA (sgl_kernel varlen)",
}
PAGED = {"flashinfer": "flashinfer paged {phase}", "flash_attention": "FlashAttention-2 {phase}"}
LLMSERVINGSIM = "vllm flash_attn (FA2 varlen paged)"
LLMSERVINGSIM_V0 = "FlashAttention-2 varlen"


def dtype(theirs: str) -> str:
    """A dtype's name here."""
    return DTYPES.get(theirs.lower(), theirs.lower())


def device(theirs: str) -> str:
    """A device's name as its vendor has it, without the vendor."""
    plain = theirs.removeprefix("NVIDIA ")
    return DEVICES.get(plain.lower(), plain if " " in plain or "-" in plain else plain.upper())

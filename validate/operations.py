"""Which schedule predicts the kernel that a row of a table measured.

`OPERATIONS` is a table by the kernel's name, the pass and the device's architecture; what else a
row says is read by `validate.measured`.
Where a kernel runs that no schedule has, the table says the nearest one, or why there is none:

    XQA's decoding over one copy of the cache, and TensorRT-LLM's   `paged`, in FlashAttention-2's
    where XQA is not used (a CTA a query head, on CUDA cores)       split-KV kernels

Where pages are not stated they have 64 tokens.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules import SCHEDULES
from validate.beside import Kind
from validate.figures import Figure, Pass
from validate.framework_kernels import trtllm_decode
from validate.predict import NotPredictedError

PREFILL: tuple[Pass, ...] = ("fwd",)
DECODE: tuple[Pass, ...] = ("decode",)
AMPERE = ("sm75", "sm80", "sm86", "sm89", "sm120")  # whose best matmul is a warp's mma.sync
HOPPER = ("sm90",)
BLACKWELL = ("sm100",)

FLASH2 = {"name": "flash2"}
FLASH2_32 = {"name": "flash2", "tile": {"q": 32, "kv": 16}}
FLASH2_64 = {"name": "flash2", "tile": {"q": 64, "kv": 64}}
FLASH3_SM8X = {"name": "flash2", "implementation": "fa3"}
FLASH3_SM8X_DECODE = {"name": "flash_decoding", "implementation": "fa3"}
MEM_EFFICIENT = {"name": "flash2", "implementation": "mem-efficient"}
TRITON = {"name": "flash2", "implementation": "triton"}
SGLANG = {"name": "flash2", "implementation": "sglang"}
FMHA_V2 = {"name": "flash2", "implementation": "trtllm"}  # TensorRT-LLM's prefill
FMHA_V2_HOPPER = {"name": "flash3", "implementation": "trtllm"}
FLASH3 = {"name": "flash3"}
FLASH3_VARLEN = {"name": "flash3", "call": "varlen"}
FLASH3_PAGED = {"name": "flash3", "call": "paged"}
FLASH3_VLLM = FLASH3_PAGED | {"implementation": "vllm"}
FLASH3_SGLANG = FLASH3_PAGED | {"implementation": "sglang"}
FLASH4 = {"name": "flash4"}
TRTLLM_GEN = FLASH4 | {"implementation": "trtllm-gen"}
CUTLASS = FLASH4 | {"implementation": "cutlass"}
SPLIT_KV = {"name": "flash_decoding"}
# fla's benchmark: up to 16 random blocks, a window of 64, nothing compressed.
FLA_NSA = {"name": "nsa", "implementation": "fla", "fewest": 1, "keep_window": 64}
NOT_COMPRESSED = "(?!.*(compress|choose)).*"
SGLANG_SPLIT_KV = {"name": "flash_decoding", "implementation": "sglang"}
PAGED = {"name": "paged", "page_size": 64}
# FlashAttention-2's own call; other kernels that `paged` stands for pack heads behind windows too.
KVCACHE = PAGED | {"call": "kvcache"}
LIKE_PAGED = KVCACHE | {"pack_gqa": True}
FLASHINFER = PAGED | {"implementation": "flashinfer"}
TRTLLM_GEN_DECODE = PAGED | {"implementation": "trtllm-gen"}
MLA = {"name": "mla"}
FA3_MLA = MLA | {"implementation": "fa3"}
FLASHINFER_MLA = MLA | {"implementation": "flashinfer"}
TRTLLM_MLA = MLA | {"implementation": "trtllm"}
SGLANG_MLA = MLA | {"implementation": "sglang"}
# vllm/v1/attention/backends/mla/triton_mla.py
VLLM_MLA = MLA | {"implementation": "triton", "splits": 4}
# Own kernels, whose tile is not known: of a matmul of 64 columns in three slices.
NAIVE = {"name": "naive", "mask": False, "depth": 64, "stages": 3}
SDPA_MATH = {"name": "naive", "framework": "sdpa"}
SCALED_NAIVE = NAIVE | {"scale": True}
# Own kernels. yashpatil582/fused-attention-cuda: src/stage1_naive.cu, where 256 threads have an
# element each of S or O, one row after the other, and read its operands a sector (8 floats) at a
# time; stage2_tiled.cu. MattJBorowski1991/QuantizedMHA, mha_kernels/unfused.cu (the L4's): 16 x 16,
# three sweeps over a row. tfan2437/flash-attention-lab, csrc/prefill/naive.cu: 16 x 16 too, but 8
# such CTAs of an SM share what L1 holds (there is none here): half as many bytes come from L2, as
# of 32 x 32 (by the hit rate of the H100's P V).
NAIVE_SWEEPS = NAIVE | {"sweeps": 3}
NAIVE_256 = NAIVE | {"depth": 8, "stages": 1}
NAIVE_SCORES = NAIVE_256 | {"tile": {"q": 1, "kv": 256}}
NAIVE_64 = NAIVE_SWEEPS | {"tile": {"q": 64, "kv": 64}, "depth": 16, "stages": 1}
NAIVE_16 = NAIVE | {"tile": {"q": 16, "kv": 16}, "depth": 16, "stages": 1}
NAIVE_32 = NAIVE | {"tile": {"q": 32, "kv": 32}, "depth": 32, "stages": 1}
EAGER = {"name": "naive", "framework": "transformers"}


def unfused(w: AttentionWorkload, _: HardwareProfile) -> Mapping[str, Any]:
    """yashpatil582/fused-attention-cuda, bench/bench.py: scales S, masked_fill, softmax."""
    return {"name": "naive", "scale": True, "mask": "fill" if w.causal else False}


def naive_output(w: AttentionWorkload, _: HardwareProfile) -> Mapping[str, Any]:
    """The kernel of stage1_naive.cu that multiplies P and V: 256 elements of O a CTA."""
    return NAIVE_256 | {"tile": {"q": 256 // w.head_dim, "kv": w.head_dim}}


# Options of a schedule that go by the workload and the device.
OptionsOf = Callable[[AttentionWorkload, HardwareProfile], Mapping[str, Any]]


@dataclass(frozen=True)
class Operation:
    """Kernels of a name, and what predicts them; `why` says why nothing does.

    `launches` is a pattern of those of the schedule's kernels that were measured, all unless given.
    `in_cache_dtype` multiplies in the cache's dtype, `head_dim` stands in for the row's. A prefill
    `from_cache` reads K and V as they lie there. Of an `own_loop` the schedule has the tensors and
    their order, not the instructions: bytes and hit rates are judged, times are not. All sequences'
    page tables have room for `cache_tokens`, if stated. `floor_us` is of a call whose host part
    takes longer than usual, `host_us` of one that is timed without a graph: the GPU works beside
    the host, and the longer part counts. `beside` is what else its call does, `fp8_beside` that of
    fp8; where a row says that K and V are written to the cache, at least that. Of K and V a
    share was `zeros`, which draw next to nothing.
    """

    kernel: str
    family: str
    passes: tuple[Pass, ...]
    schedule: Mapping[str, Any] | OptionsOf | None
    extra: str = ""
    arch: tuple[str, ...] = ()
    launches: str | None = None
    in_cache_dtype: bool = False
    head_dim: int | None = None
    from_cache: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the workload
    own_loop: bool = False
    cache_tokens: int | None = None
    floor_us: float | None = None
    host_us: float = 0.0
    beside: Kind = ""
    fp8_beside: Kind = ""
    zeros: float = 0.0
    why: str = ""

    def fits(self, figure: Figure, hw: HardwareProfile) -> bool:
        """Whether the figure is of such a kernel."""
        return (
            figure.pass_ in self.passes
            and (not self.arch or hw.arch in self.arch)
            and re.fullmatch(self.kernel, figure.kernel, re.IGNORECASE) is not None
            and re.search(self.extra, figure.extra, re.IGNORECASE) is not None
        )


def _refused(kernel: str, family: str, why: str, *passes: Pass) -> Operation:
    return Operation(kernel, family, passes or ("fwd", "bwd", "decode"), None, why=why)


# The first that fits counts.
OPERATIONS = (
    # --- multi-head latent attention ---------------------------------------------------------
    # vLLM's are timed call by call without a graph (aiconfigurator, collector/vllm/collect_mla.py),
    # projections by W_UK and W_UV within: what is longer, the host's part or the GPU's. On `fit`
    # rows the host's is 168 to 171 us on an H100 (167 to 212 with FlashMLA), 313 to 352 on an L40S,
    # whatever is in them; a time not far above that is mostly the host's.
    Operation(
        r"vllm MLA vllm_triton_mla",
        "MLA decode, Triton",
        DECODE,
        VLLM_MLA,
        floor_us=450,
        host_us=340,
        beside="MLA absorbed",
    ),
    Operation(r"sglang MLA triton", "MLA decode, Triton", DECODE, SGLANG_MLA, beside="MLA written"),
    Operation(
        r"vllm MLA vllm_flash_attn_mla",
        "MLA decode, FA3",
        DECODE,
        FA3_MLA,
        floor_us=220,
        host_us=169,
        beside="MLA absorbed",
    ),
    Operation(
        r"vllm MLA .*",
        "MLA decode, FlashMLA",
        DECODE,
        MLA,
        in_cache_dtype=True,
        floor_us=270,
        host_us=190,
        beside="MLA absorbed",
    ),
    Operation(
        r"sglang MLA flash_attention", "MLA decode, FA3", DECODE, FA3_MLA, beside="MLA written"
    ),
    Operation(
        r"trtllm MLA .*",
        "MLA decode, TensorRT-LLM",
        DECODE,
        TRTLLM_MLA,
        arch=AMPERE + HOPPER,
        in_cache_dtype=True,
        beside="MLA turned",
    ),
    Operation(
        r"trtllm MLA .*",
        "MLA decode, trtllm-gen",
        DECODE,
        TRTLLM_MLA,
        in_cache_dtype=True,
        beside="MLA turned",
    ),
    Operation(
        r"sglang MLA .*",
        "MLA decode, trtllm-gen",
        DECODE,
        TRTLLM_MLA,
        in_cache_dtype=True,
        beside="MLA joined",
    ),
    Operation(r"flashinfer .*MLA.*", "MLA decode, FlashInfer", DECODE, FLASHINFER_MLA),
    # vLLM fills V up with zeros to K's 192 but for FlashAttention-3, and calls it call by call here
    # too (vllm/v1/attention/backends/mla/common.py, _pad_v). V, and K but for its turned columns,
    # are latents times weights that nothing fills (collector/vllm/collect_mla.py, mock_kv_b_proj;
    # vllm/model_executor/layers/linear.py, torch.empty on the host: new pages, zeros).
    Operation(
        r"vllm MLA vllm_triton_mla",
        "MLA prefill, FA2",
        PREFILL,
        FLASH2,
        head_dim=192,
        floor_us=450,
        host_us=340,
        beside="MLA filled",
        zeros=1 - 64 / (192 + 192),
    ),
    Operation(
        r"vllm MLA .*",
        "MLA prefill, FA3",
        PREFILL,
        FLASH3_VARLEN | {"implementation": "vllm"},
        arch=HOPPER,
        changes={"value_dim": 128},
        floor_us=220,
        host_us=169,
        beside="MLA expanded",
        zeros=1 - 64 / (192 + 128),
    ),
    # SGLang's collector runs what its default is for each device: absorbed, K of 576 elements, V of
    # 512 of them, one for all heads, but on Blackwell (aiconfigurator, collector/sglang/
    # collect_mla.py, whose K and V have one head there too).
    Operation(
        r"sglang MLA flash_attention",
        "MLA prefill, FA3 absorbed",
        PREFILL,
        FA3_MLA,
        beside="MLA written",
    ),
    Operation(
        r"sglang MLA triton",
        "MLA prefill, Triton",
        PREFILL,
        SGLANG,
        head_dim=576,
        changes={"kv_heads": 1, "value_dim": 512},
        beside="MLA written",
    ),
    Operation(
        r"sglang MLA trtllm_mla",
        "MLA prefill, trtllm-gen",
        PREFILL,
        TRTLLM_GEN,
        in_cache_dtype=True,
        changes={"kv_heads": 1, "value_dim": 128},
        beside="MLA joined",
    ),
    Operation(
        r"trtllm MLA .*",
        "MLA prefill, TensorRT-LLM",
        PREFILL,
        FMHA_V2,
        arch=AMPERE,
        changes={"value_dim": 128},
        beside="MLA turned",
    ),
    Operation(
        r"trtllm MLA .*",
        "MLA prefill, TensorRT-LLM",
        PREFILL,
        FMHA_V2_HOPPER,
        arch=HOPPER,
        in_cache_dtype=True,
        changes={"value_dim": 128},
        beside="MLA turned",
    ),
    Operation(
        r"trtllm MLA .*",
        "MLA prefill, trtllm-gen",
        PREFILL,
        TRTLLM_GEN,
        in_cache_dtype=True,
        changes={"value_dim": 128},
        beside="MLA turned",
    ),
    # --- serving frameworks and FlashInfer: prefill --------------------------------------------
    # vLLM gives FA2 the block table in prefill too: the split-KV kernel, unsplit, runs
    # (vllm/v1/attention/backends/flash_attn.py; flash_api.cpp, mha_varlen_fwd).
    Operation(r"vllm vllm_flash_attn(_fa2)?", "FA2 prefill", PREFILL, PAGED),
    Operation(r"sglang flash_attention", "FA2 prefill", PREFILL, FLASH3_SM8X),
    Operation(r"vllm flash_attn \(FA2.*\)", "FA2 prefill", PREFILL, PAGED),
    Operation(
        r"vllm vllm_flash_attn_fa3",
        "FA3 prefill",
        PREFILL,
        FLASH3_VLLM,
        in_cache_dtype=True,
    ),
    Operation(
        r"sglang fa3",
        "FA3 prefill",
        PREFILL,
        FLASH3_SGLANG,
        in_cache_dtype=True,
        beside="cache write and lengths",
    ),
    Operation(r"sglang triton", "Triton prefill", PREFILL, SGLANG),
    # vLLM 0.24.0 has queries of 8 bits wherever the cache has, else no trtllm-gen (utils/
    # flashinfer.py, use_trtllm_attention).
    Operation(
        r"vllm vllm_flashinfer_trtllmprefill",
        "trtllm-gen prefill",
        PREFILL,
        TRTLLM_GEN,
        in_cache_dtype=True,
        beside="cache write by heads",
    ),
    Operation(
        r"sglang trtllm_mha", "trtllm-gen prefill", PREFILL, TRTLLM_GEN, fp8_beside="fp8 queries"
    ),
    # CUTLASS's kernel: sglang/srt/layers/attention/flashinfer_backend.py (fmha_backend).
    Operation(r"sglang.*flashinfer.*", "CUTLASS prefill", PREFILL, CUTLASS, arch=BLACKWELL),
    Operation(r"vllm.*flashinfer.*", "FlashInfer prefill", PREFILL, FLASHINFER, from_cache=True),
    # Of whole prompts SGLang gives it K and V as they come (flashinfer_backend.py, forward_extend).
    Operation(r"sglang.*flashinfer.*", "FlashInfer prefill", PREFILL, FLASHINFER),
    Operation(r"flashinfer paged prefill", "FlashInfer prefill", PREFILL, FLASHINFER),
    Operation(r"flashinfer .*Prefill.* fa2", "FlashInfer prefill", PREFILL, FLASH2),
    Operation(
        r"trtllm torch_flow",
        "TensorRT-LLM prefill",
        PREFILL,
        FMHA_V2,
        arch=AMPERE,
        beside="packed QKV in place",
    ),
    Operation(
        r"trtllm torch_flow",
        "TensorRT-LLM prefill",
        PREFILL,
        FMHA_V2_HOPPER,
        arch=HOPPER,
        in_cache_dtype=True,
        beside="packed QKV",
    ),
    Operation(
        r"trtllm torch_flow",
        "trtllm-gen prefill",
        PREFILL,
        TRTLLM_GEN,
        arch=BLACKWELL,
        beside="packed QKV",
    ),
    # --- serving frameworks and FlashInfer: decoding -------------------------------------------
    Operation(
        r"vllm vllm_flash_attn(_fa2)?", "FA2 paged decode", DECODE, PAGED, beside="packed heads"
    ),
    Operation(
        r"sglang flash_attention",
        "FA2 paged decode",
        DECODE,
        FLASH3_SM8X_DECODE,
        beside="cache write and lengths",
    ),
    Operation(
        r"vllm flash_attn \(FA2.*\)", "FA2 paged decode", DECODE, PAGED, beside="packed heads"
    ),
    Operation(r"vllm vllm_flash_attn_fa3", "FA3 decode", DECODE, FLASH3_VLLM, in_cache_dtype=True),
    Operation(
        r"sglang fa3",
        "FA3 decode",
        DECODE,
        FLASH3_SGLANG,
        in_cache_dtype=True,
        beside="cache write, lengths ahead",
    ),
    Operation(r"sglang triton", "Triton decode", DECODE, SGLANG_SPLIT_KV),
    Operation(
        r"vllm vllm_flashinfer_trtllmdecode",
        "trtllm-gen decode",
        DECODE,
        TRTLLM_GEN_DECODE,
        arch=BLACKWELL,
        in_cache_dtype=True,
        beside="cache write by heads",
    ),
    Operation(
        r"flashinfer .*trtllm.*",
        "trtllm-gen decode",
        DECODE,
        TRTLLM_GEN_DECODE,
        arch=BLACKWELL,
        in_cache_dtype=True,
    ),
    Operation(
        r"sglang trtllm_mha",
        "trtllm-gen decode",
        DECODE,
        TRTLLM_GEN_DECODE,
        arch=BLACKWELL,
        in_cache_dtype=True,
        fp8_beside="fp8 queries",
    ),
    Operation(
        r"trtllm torch_flow",
        "trtllm-gen decode",
        DECODE,
        TRTLLM_GEN_DECODE,
        arch=BLACKWELL,
        in_cache_dtype=True,
        beside="packed QKV",
    ),
    Operation(r"trtllm torch_flow", "XQA decode", DECODE, trtllm_decode, beside="packed QKV"),
    Operation(r"xqa .*", "XQA decode", DECODE, LIKE_PAGED),
    # SGLang's pages have one token (aiconfigurator, collector/sglang/collect_attn.py).
    Operation(r"sglang flashinfer", "FlashInfer decode", DECODE, FLASHINFER | {"page_size": 1}),
    # vLLM plans decoding for a captured graph (vllm/v1/attention/backends/flashinfer.py,
    # enable_cuda_graph), which its collector's configuration leaves on.
    Operation(
        r"vllm vllm_flashinfer_fidecode",
        "FlashInfer decode",
        DECODE,
        FLASHINFER | {"captured": True},
    ),
    Operation(r"(?!.*cudnn).*flashinfer.*", "FlashInfer decode", DECODE, FLASHINFER),
    # --- FlashAttention and PyTorch ------------------------------------------------------------
    _refused(r".*softmax removed", "FA2 without softmax", "no schedule leaves softmax out"),
    Operation(
        r".*flash_fwd_splitkv_kernel.*",
        "FA2 split-KV: its kernel",
        DECODE,
        SPLIT_KV,
        launches="flash_decoding",
    ),
    Operation(
        r"FlashAttention-2.* combine", "FA2 split-KV: combine", DECODE, SPLIT_KV, launches="combine"
    ),
    # JakeFlasher/benchmark_flash_attention, scripts/download_lib.sh: release 2.6.3.
    Operation(
        r"FlashAttention-2 C\+\+ mha.*", "FA2 prefill", PREFILL, FLASH2 | {"release": "2.7.3"}
    ),
    Operation(r"FlashAttention-2.*|flash_attn_2", "FA2 prefill", PREFILL, FLASH2),
    Operation(
        r"FlashAttention-2.*|flash_attn_2",
        "FA2 forward and backward",
        ("bwd",),
        FLASH2,
        extra=r"fwd\+bwd in the timed call",
        changes={"phase": "training"},
    ),
    # JakeFlasher/benchmark_flash_attention, flash_attention_benchmark_kvcache.cu (max_tokens).
    Operation(
        r"FlashAttention-2 C\+\+ mha_fwd_kvcache",
        "FA2 paged decode",
        DECODE,
        KVCACHE,
        cache_tokens=2**20,
    ),
    # flash_attn_varlen_func without a page table cuts no cache: one sequence of 65,536 keys takes
    # 1.7 ms on an H100 (LLMServingSim, perf_models), 40 GB/s.
    Operation(r"FlashAttention-2 varlen", "decode, a CTA a head", DECODE, FLASH2),
    Operation(r"FlashAttention-2.*", "FA2 paged decode", DECODE, KVCACHE, extra=r"\bpage \d"),
    Operation(r"FlashAttention-2.*", "FA2 split-KV decode", DECODE, SPLIT_KV),
    Operation(r"FlashAttention-3.*varlen.*", "FA3 prefill", PREFILL, FLASH3_VARLEN),
    Operation(r"FlashAttention-3.*", "FA3 prefill", PREFILL, FLASH3),
    Operation(r"FlashAttention-4.*", "FA4 prefill", PREFILL, FLASH4),
    Operation(r"SDPA flash", "FA2 prefill", PREFILL, FLASH2),
    Operation(r"SDPA flash", "FA2 split-KV decode", DECODE, SPLIT_KV),
    Operation(r"SDPA efficient.*", "memory-efficient attention", PREFILL, MEM_EFFICIENT),
    Operation(r"SDPA efficient.*", "decode, a CTA a head", DECODE, FLASH2),
    Operation(r"SDPA math", "eager", PREFILL, SDPA_MATH),
    # Of 16 bits before what is timed begins (yashpatil582/fused-attention-cuda, bench/bench.py).
    Operation(
        r"SDPA math fp32 \(upcast\)",
        "eager",
        PREFILL,
        SDPA_MATH,
        changes={"dtype": "fp32", "kv_dtype": "fp32"},
    ),
    Operation(r"torch unfused.*", "eager", PREFILL, unfused),
    Operation(r"(transformers |HF )?eager.*", "eager", ("fwd", "decode"), EAGER),
    # --- authors' own kernels ------------------------------------------------------------------
    Operation(r"(naive|tiled) 3 kernels.*", "naive, own kernels", PREFILL, NAIVE, own_loop=True),
    Operation(r"naive 4 kernels.*", "naive, own kernels", PREFILL, SCALED_NAIVE, own_loop=True),
    *(
        Operation(
            rf"{kernel}.*", f"naive: {name}", PREFILL, schedule, launches=launches, own_loop=True
        )
        for kernel, name, launches, schedule in (
            (r"naive QK\^T", "Q K^T", r"S = Q K\^T", NAIVE_16),
            (r"naive unfused kernel qk", "Q K^T", r"S = Q K\^T", NAIVE_SCORES),
            (r"tiled unfused kernel qk", "Q K^T", r"S = Q K\^T", NAIVE_64),
            (r"(naive|(tiled|naive) unfused kernel) softmax", "softmax", r"P = .*", NAIVE_SWEEPS),
            (r"naive PV", "P V", "O = P V", NAIVE_16),
            (r"naive gemm PV", "P V", "O = P V", NAIVE_32),
            (r"naive unfused kernel pv", "P V", "O = P V", naive_output),
            (r"tiled unfused kernel pv", "P V", "O = P V", NAIVE_64),
        )
    ),
    Operation(
        r"splitkv decode .*",
        "split-KV, own kernels",
        DECODE,
        SPLIT_KV,
        launches="flash_decoding",
        own_loop=True,
    ),
    # As many splits as its decode kernel is said to have, at both of its shapes.
    Operation(
        r"splitkv merge",
        "split-KV, own: merge",
        DECODE,
        SPLIT_KV | {"splits": 64},
        launches="combine",
        own_loop=True,
    ),
    Operation(r"splitkv \(CUDA cores\)", "split-KV, own kernels", DECODE, SPLIT_KV, own_loop=True),
    Operation(r"decode_inplace .*", "decode, a CTA a head", DECODE, FLASH2, own_loop=True),
    Operation(r"(Triton fused .*|Triton tutorial .*)", "Triton prefill", PREFILL, TRITON),
    # tfan2437/flash-attention-lab, csrc/prefill: 32 x 8 (here keys are 16 at least) and 64 x 64.
    Operation(r"fp32_fused.*", "fused, own kernels", PREFILL, FLASH2_32, own_loop=True),
    Operation(r"fp32_regtile.*", "fused, own kernels", PREFILL, FLASH2_64, own_loop=True),
    Operation(
        r"(FA2-order fused|fused online softmax|fused flash|custom WMMA flash|"
        r"mma \(|mma_pipelined).*",
        "fused, own kernels",
        PREFILL,
        FLASH2,
        own_loop=True,
    ),
    Operation(
        r"nsa_triton",
        "NSA prefill",
        PREFILL,
        FLA_NSA,
        launches=NOT_COMPRESSED,
    ),
    Operation(
        r"nsa_triton",
        "NSA forward and backward",
        ("bwd",),
        FLA_NSA,
        extra=r"fwd\+bwd in the timed call",
        changes={"phase": "training"},
        launches=NOT_COMPRESSED,
    ),
    _refused(r".*cudnn.*", "cuDNN", "cuDNN's kernel is not public: no schedule stands for it"),
    _refused(
        r"(TLX|CuTile|tvm\.tl|Gluon|Flex |Torch SDPA|FlashMLA|rocm|standard|NSA module|Self-).*",
        "other kernels",
        "no schedule stands for its kernel",
    ),
    # --- a table of one's own may name a schedule ----------------------------------------------
    *(Operation(name, name, ("fwd", "decode"), {"name": name}) for name in sorted(SCHEDULES)),
)


def operation_of(figure: Figure, hw: HardwareProfile) -> Operation:
    """The table's row for a figure; raises NotPredictedError where nothing predicts it."""
    operation = next((one for one in OPERATIONS if one.fits(figure, hw)), None)
    if operation is None:
        raise NotPredictedError("no schedule stands for its kernel")
    if operation.schedule is None:
        raise NotPredictedError(operation.why)
    return operation

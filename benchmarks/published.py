"""What the schedules predict beside what was published: the tables of docs/schedules.md.

Each row is a published figure, its source, and the simulation of the same case. It takes some
ten minutes. Rows without a published figure are there for comparison.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from re import search
from typing import Any

from sim import simulate
from sim.inputs.hardware import load_profile
from sim.inputs.models import MODELS
from sim.inputs.workload import WorkloadTable
from sim.runs.record import Record
from sim.runs.scenario import Limits
from sim.schedules import make_schedule
from sim.schedules.infinite_hip import InfiniteHip
from sim.whole_model.passes import ModelPass, model_pass, replay
from sim.whole_model.setting import Setting

HIP = "arXiv 2406.09827, appendix, k = 512"
INFINITE_HIP = "arXiv 2502.08910, Table 3"
NSA = "XunhaoLai/native-sparse-attention-triton, README"
MINFERENCE = "microsoft/MInference, experiments/README.md"
FLA_NSA = "fla-org/native-sparse-attention, README"
FLA_OPTIONS = {"implementation": "fla", "fewest": 1, "keep_window": 64}
# minference/configs/Llama_3_8B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json: of 1,024 heads.
SEARCHED_HEADS = (
    (473, {"vertical": 1000, "slash": 6096}),
    (278, {"vertical": 30, "slash": 800}),
    (153, {"vertical": 100, "slash": 800}),
    (89, {"vertical": 3500, "slash": 100}),
    (31, {"vertical": 500, "slash": 700}),
)
FLASH_MLA = "deepseek-ai/FlashMLA, README (H800)"
RING = "zhuzilin/ring-flash-attention, README"
LLAMA = {"heads": 32, "kv_heads": 8, "head_dim": 128, "causal": True}
PORT = "cuda"  # hip as one search kernel on tensor cores
Row = tuple[str, float | None, float, str, str]  # case, published, predicted, unit, source


def ran(hardware: Any, schedule: str, workload: dict[str, Any], **options: Any) -> Record:
    """One schedule on one workload."""
    (record,) = simulate(
        workload=workload, hardware=hardware, schedule={"name": schedule, **options}
    )
    return record


def time_s(hardware: Any, schedule: str, workload: dict[str, Any], **options: Any) -> float:
    """Simulated seconds."""
    return ran(hardware, schedule, workload, **options).time_s or 0.0


def kernels_s(
    hardware: Any, schedule: str, workload: dict[str, Any], **options: Any
) -> dict[str, float]:
    """Seconds of each kernel, of all its launches."""
    sums: dict[str, float] = {}
    for kernel in ran(hardware, schedule, workload, **options).kernels:
        sums[kernel.name] = sums.get(kernel.name, 0.0) + kernel.time_s
    return sums


def hip_prefill() -> Iterator[Row]:
    """HiP's kernels against FlashAttention-2, a whole prompt."""
    for gpu, tokens, flash, hip in (
        ("rtx-4090", 32768, 56.0, 19.3),
        ("rtx-4090", 131072, 855.0, 103.0),
        ("h100-sxm", 32768, 24.05, 19.8),
        ("h100-sxm", 131072, 431.0, 108.0),
    ):
        of, w = partial(time_s, gpu), {**LLAMA, "seq_len": tokens}
        case = f"prefill, {gpu}, {tokens:,} tokens"
        yield f"{case}, flash2", flash, 1e3 * of("flash2", w), "ms", HIP
        yield f"{case}, hip", hip, 1e3 * of("hip", w), "ms", HIP
        port = of("hip", w, implementation=PORT)
        yield f"{case}, hip as a port to tensor cores", hip, 1e3 * port, "ms", HIP


def hip_chunk_and_decode() -> Iterator[Row]:
    """A chunk of 32k queries, and a token decoded with a search each; the table names no GPU."""
    for keys, flash, hip, flash_token, hip_token in (
        (32768, 54.6, 68.5, 213.0, 330.0),
        (131072, 379.0, 109.0, 643.0, 376.0),
        (2**20, 3490.0, 147.0, 4645.0, 450.0),
    ):
        of = partial(time_s, "rtx-4090")
        w = {**LLAMA, "seq_q": 32768, "seq_kv": keys}
        case = f"chunk of 32k, {keys:,} keys"
        yield f"{case}, flash2", flash, 1e3 * of("flash2", w), "ms", INFINITE_HIP
        yield f"{case}, hip", hip, 1e3 * of("hip", w, keep=1024), "ms", INFINITE_HIP
        w = {**LLAMA, "seq_kv": keys, "phase": "decode"}
        case = f"decode, {keys:,} keys"
        flash_s = of("flash_decoding", w)
        yield f"{case}, flash_decoding", flash_token, 1e6 * flash_s, "µs", INFINITE_HIP
        searched_s = of("hip", w, keep=1024)
        yield f"{case}, hip", hip_token, 1e6 * searched_s, "µs", INFINITE_HIP


def decoding() -> Iterator[Row]:
    """Paged, latent and page-pruned decoding."""
    w = {"heads": 32, "head_dim": 128, "seq_kv": 32768, "causal": True, "phase": "decode"}
    of = partial(time_s, "rtx-4090")
    for keys, budget, published in (
        (8192, 4096, 1.69),
        (16384, 4096, 2.92),
        (32768, 4096, 4.86),
        (32768, 2048, 7.03),
    ):
        w |= {"seq_kv": keys}
        dense_s = of("paged", w, implementation="flashinfer", page_size=16)
        ratio = dense_s / of("quest", w, budget=budget)
        case = f"quest over FlashInfer, RTX 4090, {keys:,} tokens, budget {budget:,}"
        yield case, published, ratio, "times", "arXiv 2406.10774, figure 9"
    for heads, published, unit in ((16, 3000.0, "GB/s"), (128, 660.0, "TFLOP/s")):
        w = {"model": "deepseek-v3", "heads": heads, "kv_heads": heads, "batch": 128}
        w |= {"seq_kv": 8192, "phase": "decode", "dtype": "bf16"}
        took_s = kernels_s("h100-sxm", "mla", w)["mla"]
        moved = 2 * 128 * (8192 * 576 + heads * (576 + 512))
        flops = 2 * 128 * heads * 8192 * (576 + 512)
        rate = moved / took_s / 1e9 if unit == "GB/s" else flops / took_s / 1e12
        yield f"mla, {heads} heads, batch 128, 8k", published, rate, unit, FLASH_MLA


def pruned_prefill() -> Iterator[Row]:
    """NSA's kernels: two repositories'."""
    w = {"heads": 64, "kv_heads": 4, "head_dim": 128, "seq_len": 65536, "causal": True}
    attention = ("selected attention", "compressed attention")
    for gpu, flash, selected, compressed, chosen in (
        ("h100-sxm", 187.0, 24.5, 16.1, 36.9),
        ("a100-sxm-80gb", 321.0, 31.0, 36.0, 76.3),
    ):
        bf16, case = {**w, "dtype": "bf16"}, f"64k, {gpu}"
        yield f"{case}, flash2", flash, 1e3 * time_s(gpu, "flash2", bf16), "ms", NSA
        parts = kernels_s(gpu, "nsa", bf16, drawn="anywhere")
        others = ("window attention", "gate", "compress K", "compress V")
        in_calls = {name: [name, f"clear O of {name}"] for name in attention}
        taken = (*others, *chain.from_iterable(in_calls.values()))
        choice = [name for name in parts if name not in taken]
        for what, names, published in (
            (attention[0], in_calls[attention[0]], selected),
            (attention[1], in_calls[attention[1]], compressed),
            ("choice of blocks", choice, chosen),
        ):
            ours = 1e3 * sum(parts[name] for name in names)
            yield f"{case}, nsa: {what}", published, ours, "ms", NSA
    for tokens, forward, both in ((2048, 2.322, 11.12), (8192, 9.954, 49.58)):
        bf16 = {**w, "dtype": "bf16", "batch": 4, "seq_len": tokens, "phase": "training"}
        parts = kernels_s("h100-sxm", "nsa", bf16, **FLA_OPTIONS)
        case = f"{tokens:,} tokens, H100?, nsa, fla"
        yield f"{case}, and backward", both, 1e3 * _without_choice(parts), "ms", FLA_NSA
        bf16 = {**bf16, "phase": "prefill"}
        for fused in (True, False):
            parts = kernels_s("h100-sxm", "nsa", bf16, **FLA_OPTIONS, fused_window=fused)
            what = f"forward, fused_window = {str(fused).lower()}"
            yield f"{case}, {what}", forward, 1e3 * _without_choice(parts), "ms", FLA_NSA


def _without_choice(parts: dict[str, float]) -> float:
    """Seconds of NSA's kernels but those that compress, and that choose blocks."""
    return sum(took for name, took in parts.items() if not search("compress|choose", name))


def minference() -> Iterator[Row]:
    """What MInference saves of a prefill with the heads' lines of its search for Llama-3 8B."""
    for tokens, flash, own, sglang in (
        (50_000, 8.529, 7.545, 6.196),
        (100_000, 24.88, 13.99, 10.82),
        (200_000, 79.39, 26.81, 20.62),
        (300_000, 169.6, 41.09, 31.02),
        (500_000, 456.8, 66.28, 51.96),
    ):
        w = {"heads": 1, "head_dim": 128, "seq_len": tokens, "causal": True, "dtype": "bf16"}
        of = partial(time_s, "a100-sxm-80gb")
        dense = 1024 * of("flash2", w)
        for implementation, measured in (("minference", own), ("sglang", sglang)):
            pruned = sum(
                heads * of("minference", w, **lines, implementation=implementation)
                for heads, lines in SEARCHED_HEADS
            )
            case = f"minference saves, A100, {tokens:,} tokens, {implementation}"
            yield case, flash - measured, dense - pruned, "s", MINFERENCE


def rings() -> Iterator[Row]:
    """Eight GPUs, 8k tokens each. With 5 heads: the README of May 2024."""
    few = {**LLAMA, "heads": 5, "kv_heads": 5}
    for gpu, hardware, model, published in (
        ("H800", "h800-sxm", LLAMA, (1.69, 26.0, 15.9, 18.2)),
        ("A100", "a100-sxm-80gb", LLAMA, (2.68, 41.7, 26.2, 30.8)),
        ("H800, 5 heads", "h800-sxm", few, (0.413, 4.81, 3.53, 3.85)),
        ("A100, 5 heads", "a100-sxm-80gb", few, (0.647, 8.04, 5.59, 6.10)),
    ):
        w = {**model, "seq_len": 65536, "dtype": "bf16"}
        one = time_s(hardware, "flash2", {**w, "seq_len": 8192})
        yield f"{gpu}, 8k on one GPU", published[0], 1e3 * one, "ms", RING
        for balance, ms in zip(("contiguous", "zigzag", "striped"), published[1:], strict=True):
            ours = time_s(hardware, "ring", w, gpus=8, balance=balance)
            yield f"{gpu}, ring, {balance}", ms, 1e3 * ours, "ms", RING
    w = {**LLAMA, "seq_kv": 10**6 // 8 * 8, "phase": "decode", "dtype": "bf16"}
    for name in ("ring", "tree_decoding"):
        ours = time_s("h100-sxm", name, w, gpus=8)
        yield f"{name}, a token after a million on 8 H100s", None, 1e3 * ours, "ms", ""


def hiding() -> Iterator[Row]:
    """Fewest tokens a GPU, in steps of 128, at which a ring of 4 exposes no transfer."""
    stated = {"sustained": 1.0, "latency": "1 us", "network_latency": "1 us"}
    slow = {"profile": "a100-sxm-80gb", "links": {"network": "12.5 GB/s", "node_gpus": 1}}
    network = {"profile": "h100-sxm", "links": {"node_gpus": 1}}
    for case, hardware, kv_heads, published in (
        ("A100, NVLink", "a100-sxm-80gb", 32, 1000.0),
        ("A100, 12.5 GB/s", {**slow, "calibration": {"links": stated}}, 32, 24500.0),
        ("H100, network, 32 KV heads", network, 32, None),
        ("H100, network, 8 KV heads", network, 8, None),
    ):
        low, high = 1, 256
        while low < high:
            middle = (low + high) // 2
            w = {"heads": 32, "kv_heads": kv_heads, "head_dim": 128, "dtype": "bf16"}
            w |= {"seq_len": 4 * 128 * middle, "causal": False}
            hidden = ran(hardware, "ring", w, gpus=4, framework="jax").link_wait_s <= 0
            low, high = (low, middle) if hidden else (middle + 1, high)
        source = "arXiv 2310.01889, Table 2" if published else ""
        yield f"a ring hides its transfers, {case}", published, 128.0 * low, "tokens", source


def infinite_hip_hits() -> Iterator[Row]:
    """Pages found in the GPU's cache at 256k tokens, by which stages were refreshed."""
    table = {"model": "llama-3-8b", "seq_kv": 2**18, "phase": "decode", "tokens": 96}
    w = WorkloadTable.model_validate(table).workload()
    touched: dict[int, int] = {}
    missed: dict[int, int] = {}
    for token in InfiniteHip(refresh=(32, 16, 8)).replay(w):
        if token.stages:
            first = min(token.stages)
            touched[first] = touched.get(first, 0) + token.pages.touched
            missed[first] = missed.get(first, 0) + token.pages.misses
    source = "arXiv 2502.08910 (`reuse` was fitted to these)"
    for first, case, published in ((0, "all", 59.0), (1, "two", 69.0), (2, "the last", 89.0)):
        hits = 100 * (1 - missed[first] / touched[first])
        yield f"infinite_hip, pages hit, {case} refreshed", published, hits, "%", source


def whole_models() -> Iterator[Row]:
    """A token of one request, and a million tokens' prefill."""
    for gpu, tokens, published, source in (
        ("h100-sxm", 1088, 6.48, "vLLM 0.21, yobitelcomm bench"),
        ("a100-sxm-40gb", 1088, 13.3, "75 tokens/s, johnmusgrave.com"),
    ):
        schedule = make_schedule({"name": "flash_decoding"}, "published")
        setting = Setting(MODELS["llama-3-8b"], load_profile(gpu), schedule)
        one = model_pass(setting, "decode", tokens)
        ours = 1e3 * pass_s(one)
        yield f"Llama-3.1 8B, {gpu}, a token of one request", published, ours, "ms", source
    schedule = make_schedule({"name": "flash3"}, "published")
    setting = Setting(MODELS["llama-3.1-405b"], load_profile("h100-sxm"), schedule)
    one = model_pass(setting, "prefill", 1_000_000)
    source = "arXiv 2411.01783"
    yield "Llama-3 405B, 1M tokens, 128 H100s", 77.0, pass_s(one) / 128, "s", source


def pass_s(one: ModelPass) -> float:
    """Seconds of a model's pass, weights and all, as if on one GPU that held it."""
    ((_, time),) = replay([one], "published", Limits(memory="16 GiB"), lambda *_: None)
    return time.time_s if time else 0.0


def blackwell() -> Iterator[Row]:
    """FlashAttention-4's best rate."""
    w = {"heads": 16, "head_dim": 128, "seq_len": 32768, "dtype": "bf16", "causal": False}
    rate = 4 * 16 * 32768**2 * 128 / kernels_s("b200", "flash4", w)["flash4"] / 1e12
    yield "flash4, B200, 32k, full mask", 1613.0, rate, "TFLOP/s", "arXiv 2603.05451"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    as_json = parser.parse_args().json
    tables = (
        hip_prefill,
        hip_chunk_and_decode,
        decoding,
        pruned_prefill,
        minference,
        rings,
        hiding,
        infinite_hip_hits,
        whole_models,
        blackwell,
    )
    for table in tables:
        for case, published, predicted, unit, source in table():
            if as_json:
                row = {"case": case, "published": published, "predicted": predicted}
                print(json.dumps({**row, "unit": unit, "source": source}), flush=True)
                continue
            beside = f"published {published:,.4g}" if published is not None else ""
            print(f"{case:52} {predicted:>9,.4g} {unit:8} {beside:18} {source}", flush=True)


if __name__ == "__main__":
    main()

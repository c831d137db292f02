"""What was asked, in words: the device, and the workload as people state it."""

from collections.abc import Mapping
from typing import Any

from sim.inputs.lengths import name_of
from sim.inputs.models import model_of, with_models_found
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText


def where(records: list[Record]) -> str:
    """On which device and at which workload, as far as it is the same of all records."""
    devices = dict.fromkeys(record.hardware for record in records)
    device = f" on {next(iter(devices))}" if len(devices) == 1 else ""
    shared = workload_in_words([record.workload for record in records])
    return f"{device} ({shared})" if shared else device


def layers_in_words(text: ScenarioText) -> list[str]:
    """A line a model whose layers differ: which of them were simulated; none where a window says.

    What `text` says has been run.
    """
    workload = with_models_found(text.data.get("workload", {}), text.folder)
    swept = text.data.get("sweep", {}).get("workload.model", [workload.get("model")])
    told = isinstance(swept, list) and "window" not in workload
    names = [name for name in swept if told and isinstance(name, str)]
    return [
        f"{model.name}: one of its {model.layers - model.local_layers} layers that see all tokens; "
        f"{model.local_layers} see {model.local_window:,} (workload.window); [[model]] has both"
        for model in map(model_of, names)
        if model.local_layers
    ]


def workload_in_words(workloads: list[dict[str, Any]]) -> str:
    """What workloads have in common: "batch 4, 32 heads of 128, 8 KV heads, ..."."""
    first, *others = workloads
    w = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
    parts = [f"batch {w['batch']:,}"] if w.get("batch", 1) > 1 else []
    parts += [*_phase(w), *_heads(w), *_length(w)]
    parts += [f"{w['tokens']:,} tokens more"] if w.get("tokens", 1) > 1 else []
    windows = any(workload.get("window") for workload in workloads)
    parts += ["causal"] if w.get("causal") and not windows else []
    sides = "" if w.get("causal", True) else " to both sides"
    parts += [f"window {w['window']:,}{sides}"] if w.get("window") else []
    parts += [f"{w['latent_dim']} + {w['rope_dim']} cached"] if w.get("latent_dim") else []
    parts += [str(w["dtype"])] if "dtype" in w else []
    parts += [f"{w['kv_dtype']} cache"] if w.get("kv_dtype") else []
    return ", ".join(parts)


def _phase(w: Mapping[str, Any]) -> list[str]:
    return [str(w["phase"])] if w.get("phase") not in (None, "prefill") else []


def _heads(w: Mapping[str, Any]) -> list[str]:
    if "heads" not in w:
        return []
    of = f" of {w['head_dim']}" if "head_dim" in w else ""
    kv_heads = w.get("kv_heads", w["heads"])
    shared = [_counted(kv_heads, "KV head")] if kv_heads != w["heads"] else []
    return [_counted(w["heads"], "head") + of, *shared]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number > 1 else ''}"


def _length(w: Mapping[str, Any]) -> list[str]:
    queries, keys = w.get("seq_q"), w.get("seq_kv")
    if keys is None:
        return []
    told = name_of(keys) if isinstance(keys, list) else f"{keys:,}"
    if queries == keys:
        return [f"{told} tokens"]
    if queries is None or isinstance(queries, list) or queries == 1:
        return [f"{told} keys"]
    return [f"{queries:,} queries on {told} keys"]

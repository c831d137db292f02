"""Are the answers of two versions of attnsim equal to the last bit?

    OLD/.venv/bin/python tests/support/same_answers.py write before.json
    NEW/.venv/bin/python tests/support/same_answers.py write after.json
    python tests/support/same_answers.py compare before.json after.json

`write` asks the attnsim of the Python that runs it: every shipped scenario, `simulate()` on 200
drawn questions over all schedules and phases and on 60 more that are fast-forwarded, and `validate
compare published` for every device with published figures. It uses nothing but the public
interface, so that the same script asks both versions. Versions that a record names are left out.
"""

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

DRAWN, FAST_FORWARDED = 200, 60
DEVICES = ("h100-sxm", "a100-sxm-80gb", "rtx-4090", "b200", "t4", "rtx-3090", "h200-sxm", "l4")
ARCHS = {"flash3": ("h100-sxm", "h200-sxm"), "flash4": ("b200",)}
SEVERAL_GPUS = ("ring", "ulysses", "tree_decoding", "tensor_parallel")
FLASH = ("flash2", "block_sparse", "flash_decoding", "decode", "streaming_llm")
# Options that are drawn beside a schedule's own defaults, each as often as it stands here.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "naive": [{"scale": True}, {"framework": "pytorch"}, {"rope": "pass"}, {"mask": False}],
    "flash2": [{"rope": "fused"}, {"rope": "pass"}, {"tile": {"q": 64, "kv": 32}}, {"warps": 8}],
    "block_sparse": [{"keep_window": 256, "sinks": 4}, {"random_blocks": 3, "keep_window": 64}],
    "flash_decoding": [{"splits": 5}, {"stages": 2}],
    "paged": [{"page_size": 64}, {"page_size": 256, "splits": 3}],
    "ring": [{"balance": "striped"}, {"balance": "zigzag"}, {"balance": "contiguous"}],
    "hip": [{"refresh": 3, "reuse": 0.5}, {"keep": 256}],
    "nsa": [{"top": 4}],
    "mamba2": [{"state": 64, "chunk": 128}],
}


def drawn_question(number: int, names: list[str], classes: dict[str, Any]) -> dict[str, Any]:
    """A question as `simulate` takes it, the same in every version."""
    draw = random.Random(number)
    name = names[number % len(names)]
    phases = classes[name].phases
    phase = phases[number // len(names) % len(phases)]
    mask = draw.choice(classes[name].masks)
    gpus = draw.choice((2, 4)) if name in SEVERAL_GPUS else 1
    kv_heads = gpus * draw.choice((1, 2, 3))
    seq_kv = 64 * gpus * draw.randint(2, 24) + (0 if gpus > 1 else draw.choice((0, 0, 7)))
    w: dict[str, Any] = {
        "batch": draw.choice((1, 1, 2)),
        "heads": kv_heads * draw.choice((1, 2, 4)),
        "kv_heads": kv_heads,
        "head_dim": draw.choice((64, 64, 96, 128)),
        "seq_kv": seq_kv,
        "seq_q": 1 if phase == "decode" else seq_kv,
        "dtype": draw.choice(("fp16", "bf16", "fp16", "fp32")) if name not in ARCHS else "bf16",
        "causal": mask != "full",
        "phase": phase,
    }
    if mask == "window":
        w["window"] = draw.randint(16, seq_kv - 1)
    if name in ("minference", "nsa", "infinite_hip") and w["dtype"] == "fp32":
        w["dtype"] = "bf16"
    if name == "mla":
        w |= {"latent_dim": 512, "rope_dim": 64}
    if phase == "decode":
        w["tokens"] = draw.choice((1, 1, 2))
    if "kv_dtype" in classes[name].takes:
        w["kv_dtype"] = draw.choice(("fp16", "fp8", "int8", "int4"))
    schedule: dict[str, Any] = {"name": name} | draw.choice([{}, *OPTIONS.get(name, [])])
    if name == "nsa" and phase == "training":
        schedule["implementation"] = "fla"
    w["dropout"] = "dropout" in classes[name].takes and draw.random() < 0.3
    if name in SEVERAL_GPUS:
        schedule["gpus"] = gpus
    if name in FLASH and draw.random() < 0.3 and phase != "training" and not w["dropout"]:
        schedule["implementation"] = "triton"
    hardware: dict[str, Any] = {"profile": draw.choice(ARCHS.get(name, DEVICES))}
    if draw.random() < 0.3:
        hardware["l2"] = {"capacity": draw.choice(("0 B", "1 MiB", "100 MiB"))}
    if draw.random() < 0.3:
        hardware["sm"] = {"count": draw.choice((4, 16, 200))}
    return {"workload": w, "hardware": hardware, "schedule": [schedule]}


def answer_of(question: dict[str, Any]) -> Any:
    """The records of a question, or the line that says why there are none."""
    from dataclasses import asdict

    from sim import InputError, simulate

    try:
        return [asdict(record) for record in simulate(**question)]
    except InputError as error:
        return str(error)
    except Exception as error:  # a crash is an answer too: both versions are to have it
        return f"{type(error).__name__}: {error}"


def printed(*arguments: str) -> Any:
    """What the command line prints as JSON, or on standard error."""
    attnsim = str(Path(sys.executable).parent / "attnsim")
    done = subprocess.run([attnsim, *arguments], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip()


def told(key: str, answers: dict[str, Any], answer: Any) -> None:
    """Keep an answer, and say so."""
    answers[key] = without_versions(json.loads(json.dumps(answer)))
    print(key, file=sys.stderr, flush=True)


def without_versions(answer: Any) -> Any:
    """The answer without the versions that it names."""
    if isinstance(answer, dict):
        return {k: without_versions(v) for k, v in answer.items() if k != "versions"}
    return [without_versions(part) for part in answer] if isinstance(answer, list) else answer


def write(path: Path) -> None:
    """Ask everything, and keep the answers in a file."""
    from sim.schedules import SCHEDULES
    from validate.published import published_profiles

    answers: dict[str, Any] = {}
    classes: dict[str, Any] = dict(SCHEDULES)
    for number in range(DRAWN):
        question = drawn_question(number, list(classes), classes)
        told(f"drawn {number} {question['schedule'][0]['name']}", answers, answer_of(question))
    for number in range(DRAWN, DRAWN + FAST_FORWARDED):
        question = drawn_question(number, list(classes), classes)
        question["limits"] = {"replayed_steps": 2000}
        question["hardware"]["sm"] = {"count": 4}
        question["workload"] |= {"heads": 16, "kv_heads": 4, "batch": 2}
        key = f"fast-forwarded {number} {question['schedule'][0]['name']}"
        told(key, answers, answer_of(question))
    files = (f.name for f in resources.files("scenarios").iterdir())
    scenarios = sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))
    asked: dict[str, tuple[str, ...]] = {
        f"scenario {name}": ("explore", "search", name, "--set", "search.trials=40", "--json")
        if name.startswith("search_")
        else ("run", name, "--json")
        for name in scenarios
    }
    asked |= {
        f"compare {name}": (
            *("validate", "compare", f"published/{name}", "--profile", name),
            *("--split", "all", "--json"),
        )
        for name in published_profiles()
    }
    asked["sensitivity"] = ("explore", "sensitivity", "flash_vs_naive", "--json")
    with ThreadPoolExecutor(2) as pool:
        running = {key: pool.submit(printed, *arguments) for key, arguments in asked.items()}
        for key, answer in running.items():
            told(key, answers, answer.result())
    path.write_text(json.dumps(answers, indent=0))


def differences(before: Any, after: Any, at: str = "") -> list[str]:
    """Where two answers differ, and how."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        found = [differences(before.get(k), after.get(k), f"{at}.{k}") for k in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        found = [
            differences(a, b, f"{at}[{n}]")
            for n, (a, b) in enumerate(zip(before, after, strict=True))
        ]
    else:
        return [] if before == after else [f"{at}: {str(before)[:200]} -> {str(after)[:200]}"]
    return [line for lines in found for line in lines]


def compare(before: Path, after: Path) -> int:
    """Print what differs; the exit status says whether anything does."""
    was, now = json.loads(before.read_text()), json.loads(after.read_text())
    unequal = 0
    for key in dict.fromkeys([*was, *now]):
        lines = differences(was.get(key), now.get(key))
        unequal += bool(lines)
        if lines:
            print(f"{key}: {len(lines)} figures, such as", *lines[:3], sep="\n    ")
    refused = sum(isinstance(answer, str) for answer in was.values())
    print(f"{len(was)} answers, {refused} of them refusals; {unequal} differ")
    return 1 if unequal else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", path]:
            write(Path(path))
        case ["compare", before, after]:
            sys.exit(compare(Path(before), Path(after)))
        case _:
            sys.exit(__doc__)

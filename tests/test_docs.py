"""What the documents show is run as it stands there, and what they point to exists."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from sim import simulate, sweep
from sim.cli.commands import app
from sim.runs.scenario import read_scenario
from tests.support.commands import printed_by
from tests.support.cubins import without_interpreter
from tests.support.packages import importable, install

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
OWN_SCHEDULE, YOUR_KERNEL = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("own_schedule", "your_kernel")
)


def block(language: str, holding: str, page: str = OWN_SCHEDULE) -> str:
    """A tutorial's block of code in that language that holds a text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (found,) = [text for of, text in blocks if of == language and holding in text]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the tutorial's files, where its commands run."""
    (tmp_path / "two_pass.py").write_text(block("python", "class TwoPass"))
    (tmp_path / "question.toml").write_text(block("toml", "[workload]"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# A schedule of one's own


def test_its_question_prints_its_table(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    printed = [
        line.split() for line in printed_by("run", "question.toml", "--allow-code").splitlines()
    ]
    for line in block("", "held back by").splitlines():
        assert line.split() in printed or not line.strip("─ "), line


def test_its_check_passes(folder):
    exec(block("python", "BLOCKS"), {})


@pytest.mark.parametrize("causal", [{"causal": True}, {"causal": True, "window": 300}])
@pytest.mark.parametrize("shape", [{"heads": 8, "kv_heads": 2, "batch": 3}, {"heads": 1}])
def test_it_takes_masks_shared_heads_and_sequences(folder, causal, shape):
    workload = {"head_dim": 64, "seq_len": 600, **causal, **shape}
    tables = {"workload": workload, "hardware": "t4", "schedule": "two_pass.py:TwoPass"}
    (replay,) = simulate(**tables, allow_code=True)
    (reference,) = simulate(**tables, allow_code=True, engine="reference")
    assert replay.hbm_bytes == reference.hbm_bytes
    assert replay.time_s == pytest.approx(reference.time_s, rel=1e-9)


def test_its_other_commands_run(folder):
    tile = "schedule.two_pass.py:TwoPass.tile={ q = 64, kv = 64 }"
    arguments = ("--trace", "trace.json", "--report", "page.html", "--set", tile)
    printed_by("run", "question.toml", "--allow-code", *arguments)
    assert (folder / "trace.json").exists()
    assert "two passes" in (folder / "page.html").read_text(encoding="utf-8")


def test_its_sweep_runs(folder):
    question = tomllib.loads(block("toml", "[workload]") + block("toml", "[sweep]"))
    question["workload"]["heads"] = 2
    frame = sweep(**question, allow_code=True, workers=1)
    assert len(frame) == 4 * 3 * 3
    assert set(frame.status) == {"ok"}
    assert set(frame["schedule.two_pass.py:TwoPass.stages"].dropna()) == {1, 2, 3}


def test_its_entry_point_is_found(tmp_path):
    tables = tomllib.loads(block("toml", "[project.entry-points"))
    (entry,) = tables["project"]["entry-points"]["attnsim.schedules"].items()
    files = {"my_attention/two_pass.py": block("python", "class TwoPass")}
    install(tmp_path, "my_attention", files, " = ".join(entry))
    workload = {"heads": 1, "head_dim": 64, "seq_len": 256}
    with importable(tmp_path):
        (record,) = simulate(workload=workload, hardware="t4", schedule=entry[0])
        assert entry[0] in printed_by("schedules")
    assert record.status == "ok"


# A kernel of one's own


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A folder with what the tutorial's kernel compiles to, and its files."""
    made = tmp_path_factory.mktemp("your_kernel")
    (made / "my_kernel.py").write_text(block("python", "my_attention", YOUR_KERNEL))
    (made / "question.toml").write_text(block("toml", "[workload]", YOUR_KERNEL))
    (made / "next.toml").write_text(block("toml", "extends", YOUR_KERNEL))
    command = [sys.executable, "my_kernel.py"]
    subprocess.run(command, cwd=made, env=without_interpreter(), check=True, capture_output=True)
    return made


def test_your_kernel_is_made_of_what_the_page_shows(kernels, monkeypatch):
    monkeypatch.chdir(kernels)
    printed = printed_by("kernel", "my_kernel.cubin", "--profile", "h100-sxm")
    shown = block("", "A warp's trip", YOUR_KERNEL)
    assert [line.split() for line in printed.splitlines() if line.split()] == [
        line.split() for line in shown.splitlines() if line.split()
    ]


def test_your_kernel_runs_on_the_pages_devices(kernels, monkeypatch):
    monkeypatch.chdir(kernels)
    shown = block("", "held back by", YOUR_KERNEL)
    for device in ((), ("--set", "hardware.profile=next.toml")):
        printed = printed_by("run", "question.toml", *device)
        for line in shown.splitlines():
            if line.split()[:1] in (["mine"], ["flash3"], ["mine:"]):
                words = " ".join(line.split()[:1]) if "MB" in line else line.partition("; sha")[0]
                assert words in printed
    older = printed_by(
        "run", "question.toml", "--set", "schedule.flash2.machine_code=my_kernel_sm80.cubin",
        "--set", "schedule.flash2.tile={ q = 128, kv = 64 }",
    )  # fmt: skip
    (said,) = re.findall(r"below the table that `([^`]*)`", YOUR_KERNEL)
    assert said in older


def test_your_kernels_other_tile_is_refused_as_the_page_shows(kernels, monkeypatch):
    monkeypatch.chdir(kernels)
    printed = printed_by(
        "run", "question.toml", "--set", "schedule.flash2.tile={ q = 128, kv = 64 }"
    )
    assert block("", "would fit", YOUR_KERNEL) in printed


def test_your_kernel_runs_from_python(kernels, monkeypatch, capsys):
    monkeypatch.chdir(kernels)
    exec(block("python", "compiled_from", YOUR_KERNEL), {})
    assert "my_attention" in capsys.readouterr().out


# A chip that does not exist, and a paper's figure


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def test_the_chips_profile_is_sound_and_can_be_run_on(tmp_path):
    path = tmp_path / "stacked.toml"
    path.write_text(block("toml", "extends", page("new_chip")))
    assert "sound" in printed_by("profiles", "check", path)
    printed_by("run", "flash_vs_naive", "--set", f"hardware.profile={path}")


def test_the_papers_figure_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(block("python", "plots.traffic", page("paper_figure")), {})
    assert (tmp_path / "traffic.pdf").read_bytes().startswith(b"%PDF")


def test_the_table_of_measurements_is_judged_row_by_row(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(block("csv", "flash_decoding", page("measurements")))
    assert "3 figures, 3 judged by 3 predictions" in printed_by("validate", "compare", path)


def test_the_million_tokens_page_asks_what_fits():
    asked = [words for words in shown("docs/million_tokens.md") if words[0] == "fit"]
    assert len(asked) == 2
    for words in asked:
        assert "the longest context that fits" in printed_by(*words).lower()


def test_a_first_question_is_the_readmes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for language, holding in (("toml", "[[schedule]]"), ("python", "simulate")):
        assert block(language, holding, page("first_question")) == block(language, holding, readme)


# Commands that are shown


def shown(page):
    """The words of each command of attnsim that a page shows, without what stands for a path."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4}attnsim (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)])
def test_a_command_that_a_page_shows_is_one(page):
    for words in shown(page):
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands"):  # a list, or an option that would be acted on
            known = {option for parameter in command.params for option in parameter.opts}
            assert set(words) <= known, (page, words)
            continue
        command.make_context("attnsim", list(words))
        name = words[0] if words and command.name in ("run", "sweep", "search") else "-"
        if not name.startswith("-") and not name.endswith(".toml") and not name.isupper():
            assert read_scenario(name), (page, name)


# What the documents point to


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    folders = r"(?:sim|validate|tests|docs|benchmarks|scenarios|hw_profiles)/"
    named = re.findall(rf"`({folders}[\w./-]*)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    for key, value in (
        ("title", project["name"]),
        ("version", project["version"]),
        ("license", project["license"]),
        ("type", "software"),
    ):
        assert f"{key}: {value}" in lines

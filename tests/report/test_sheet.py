"""Figures for papers: they have the size that was asked, and everything on them can be read."""

import itertools
import struct

import pytest
from matplotlib.text import Text

import sim
from sim import plots
from sim.inputs.files import InputError
from sim.report.figure import SMALLEST_TEXT, WIDTH, new_figure
from sim.report.sheet import PNG_DOTS_PER_INCH, Sheet, save_figure
from tests.support.commands import assert_one_line, called, scenario

COLUMN = (3.3, 2.4)  # inches
OF_SCHEDULES = ("traffic", "time", "roofline", "utilisation", "memory")


@pytest.fixture(scope="module")
def records():
    """Two devices and three lengths, of which long device names and a refused schedule."""
    tables = {"workload": {"heads": 4, "head_dim": 64, "seq_len": 512}, "hardware": "h100-sxm"}
    names = ["rtx-pro-6000-blackwell", "a100-sxm-80gb", "v100-sxm-32gb", "rtx-5060-ti"]
    sweep = {"hardware.profile": names, "workload.seq_len": [256, 512]}
    return sim.simulate(schedules=["naive", "flash2", "hip"], sweep=sweep, **tables)


@pytest.mark.parametrize(
    ("text", "size"),
    [("3.3x2.4in", (3.3, 2.4)), ("3.3 x 2.4", (3.3, 2.4)), ("8.4x6.35cm", (8.4 / 2.54, 2.5)),
     ("84x60mm", (84 / 25.4, 60 / 25.4))],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text, size):
    assert Sheet.of("pdf", text).size == pytest.approx(size)


@pytest.mark.parametrize("text", ["3.3", "3.3x2.4ft", "0x2in", "-3x2in", "1000x2in", "3,3x2,4in"])
def test_what_is_no_size_is_one_line(text):
    with pytest.raises(InputError, match=f"--size {text}: WIDTHxHEIGHT .* 3.3x2.4in"):
        Sheet.of(None, text)


@pytest.mark.parametrize("format", ["png", "svg", "pdf"])
def test_a_file_has_the_format_and_size_and_the_same_bytes_again(format, records, tmp_path):
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        save_figure(plots.memory(records), folder, "memory", Sheet(format, COLUMN))
        files.append((folder / f"memory.{format}").read_bytes())
    assert files[0] == files[1]
    width, height = (round(side * 72, 1) for side in COLUMN)
    if format == "png":
        dots = struct.unpack(">II", files[0][16:24])
        assert dots == tuple(round(side * PNG_DOTS_PER_INCH) for side in COLUMN)
    elif format == "svg":
        assert f'width="{width}pt" height="{height}pt"'.encode() in files[0]
    else:
        assert f"/MediaBox [ 0 0 {width} {height} ]".encode() in files[0]


@pytest.fixture
def drawn(monkeypatch):
    """The texts that are drawn: ticks beyond an axis have some that are not."""
    texts: dict[Text, None] = {}
    draw = Text.draw

    def noted(text, *to):
        if text.get_text() and text.get_visible():
            texts[text] = None
        draw(text, *to)

    monkeypatch.setattr(Text, "draw", noted)
    return texts


@pytest.mark.parametrize("name", OF_SCHEDULES)
def test_in_a_column_everything_is_on_the_page_and_nothing_on_something_else(
    name, records, drawn, tmp_path
):
    figure = getattr(plots, name)(records, "A title that is far too long for a column")
    save_figure(figure, tmp_path, name, Sheet("png", COLUMN))
    drawn.clear()
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in drawn}
    assert len(boxes) > 8
    for text, box in boxes.items():
        assert figure.bbox.padded(1).count_contains([box.min, box.max]) == 2, text
    upright = [text for text in boxes if text.get_rotation() in (0, 90)]
    for text, other in itertools.combinations(upright, 2):
        assert not boxes[text].overlaps(boxes[other]), (text, other)
    assert min(text.get_fontsize() for text in drawn) >= SMALLEST_TEXT
    assert not any("too long" in text.get_text() for text in drawn)  # a caption has it
    assert not any("$" in text.get_text() for text in drawn)  # which is no formula here


def test_names_that_run_into_each_other_are_turned_without_a_size_too(records, tmp_path):
    figure, (ax,) = new_figure("A title")
    names = [str(record.point) for record in records]
    ax.set_xticks(range(len(names)), names)
    save_figure(figure, tmp_path, "names")
    assert all(label.get_rotation() for label in ax.get_xticklabels())
    assert figure.get_size_inches()[0] == WIDTH


def test_a_legend_of_several_lines_stands_above_its_panels_name(tmp_path):
    figure, (ax,) = new_figure("A title")
    for name in ("time", "time, down and up apart", "HBM bytes"):
        ax.plot([0, 1], label=name)
    ax.set_yticks([0], ["calibration.sm.mma_issue_cycles"])
    ax.set_title("naive: 467 µs", loc="left")
    ax.legend()
    save_figure(figure, tmp_path, "panel", Sheet("png", COLUMN))
    figure.draw_without_rendering()
    (name,) = [t for t in ax.findobj(Text) if t.get_text().startswith("naive")]
    assert not name.get_window_extent().overlaps(ax.get_legend().get_window_extent())


def test_a_legend_of_a_roofline_names_what_ran(records):
    assert {record.schedule for record in records} == {"naive", "flash2", "hip"}
    legend = plots.roofline(records).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["naive", "flash2"]


def test_a_run_saves_its_figures_so(tmp_path):
    path = scenario(tmp_path)
    done = called("run", path, "--out", "o", "--format", "svg", "--size", "8x6cm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "o").iterdir()}
    assert {"time.svg", "roofline.svg", "results.json"} < names
    assert not [name for name in names if name.endswith(".png")]
    assert 'width="226.77' in (tmp_path / "o/time.svg").read_text()


@pytest.mark.parametrize("command", [["run"], ["explore", "sensitivity"]])
def test_without_a_folder_there_are_no_figures_to_format(command, tmp_path):
    done = called(*command, scenario(tmp_path), "--format", "pdf", cwd=tmp_path)
    assert_one_line(done, "--format and --size are of figures, which --out FOLDER saves")

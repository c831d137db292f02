"""What people write is understood, or a line says what to write."""

from dataclasses import replace

import pytest

from sim.inputs.files import LONGEST_MESSAGE, LONGEST_SHOWN, InputError, read_toml, shown
from sim.inputs.hardware import load_profile
from sim.inputs.units import parse_quantity
from sim.runs.cases import cases_of
from sim.runs.scenario import ScenarioText, make_scenario
from sim.schedules import make_schedule
from tests.support.limits import seconds_of_at_most


def made(folder=None, /, **changes):
    """A scenario with these tables laid over its own, as of a file in that folder."""
    tables = {
        "workload": {"heads": 8, "head_dim": 128, "seq_len": 4096},
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": "flash2"}],
    }
    for key, value in changes.items():
        if key in ("workload", "hardware"):
            tables[key] |= value
        elif key == "schedule":
            tables["schedule"][0] |= value
        else:
            tables[key] = value
    return make_scenario(tables, "a test", "a.toml", folder)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("RTX 4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("A100SXM80GB", "a100-sxm-80gb"),
        ("rtx_4090", "rtx-4090"),
        ("H200", "h200-sxm"),
        ("V100", "v100-sxm-32gb"),
        ("a100 40gb", "a100-sxm-40gb"),
        ("L4", "l4"),
        ("RTX PRO 6000", "rtx-pro-6000-blackwell"),
    ],
)
def test_a_profile_is_found_by_its_words(written, meant):
    assert load_profile(written) == load_profile(meant)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("a100", "there are a100-sxm-40gb, a100-sxm-80gb"),
        ("H100", "there are h100-pcie, h100-sxm"),
        ("h10", "there are h100-pcie, h100-sxm"),
        ("3090ti", "did you mean 'rtx-3090'?"),
        ("NVIDIA A100-SXM4-80GB", "did you mean 'a100-sxm-80gb'?"),
        ("NVIDIA H100 80GB HBM3", "there are h100-pcie, h100-sxm"),
        ("NVIDIA GeForce RTX 4090", "did you mean 'rtx-4090'?"),
        ("rtx-4091", "did you mean 'rtx-4090'?"),
        ("TPU", "known: a100-sxm-40gb"),
        ("", "known: a100-sxm-40gb"),
    ],
)
def test_variants_and_the_nearest_name_are_told(written, says):
    with pytest.raises(InputError, match="no such profile") as error:
        load_profile(written)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("written", "bytes_meant"),
    [("50MB", 50e6), ("48 MiB", 48 * 2**20), ("12,288 B", 12288.0), (".5 kB", 500.0)],
)
def test_a_quantity_is_a_number_and_a_unit(written, bytes_meant):
    assert parse_quantity(written, "byte", "a size", "1 B") == bytes_meant


@pytest.mark.parametrize("written", ["9**9**9 B", "2 * 3 B", "1,5 MB", "B", "1e3", "3 B B!", ""])
def test_whatever_else_is_refused_without_being_worked_out(written):
    with pytest.raises(ValueError, match="a size was expected, such as 1 B"):
        parse_quantity(written, "byte", "a size", "1 B")


def test_flops_a_second_have_a_short_name():
    assert parse_quantity("500 TFLOPS", "flop/second", "a rate", "") == 5e14


def test_a_profile_may_be_a_number():
    assert made(hardware={"profile": 4090}).points[0].hardware.name == "rtx-4090"


def test_models_that_begin_so_are_told():
    with pytest.raises(InputError, match=r"there are llama-3-8b, llama-3-70b, llama-3\.1"):
        made(workload={"model": "llama3"})


def test_swept_keys_need_no_quotation_marks():
    unquoted = made(
        sweep={"workload": {"seq_len": [64, 128]}, "hardware": {"l2": {"capacity": ["9 MB"]}}}
    )
    quoted = made(sweep={"workload.seq_len": [64, 128], "hardware.l2.capacity": ["9 MB"]})
    assert [p.values for p in unquoted.points] == [p.values for p in quoted.points]


def test_counts_may_be_grouped():
    workload = made(workload={"seq_len": "12,288", "batch": "1,000"}).points[0].workload
    assert (workload.seq_kv, workload.batch) == (12288, 1000)


@pytest.mark.parametrize("written", ["64x128", "64 x 128", "64X128", "64×128"])
def test_a_tile_may_be_written_as_it_is_shown(written):
    tile = made(schedule={"tile": written}).points[0].schedules[0].tile
    assert (tile.q, tile.kv) == (64, 128)


WRONG = {
    "a length that means two things": (
        {"workload": {"seq_len": "128k"}},
        'workload.seq_len = "128k": 131072 or 128000? a whole number above zero',
    ),
    "a count that means two things": (
        {"workload": {"batch": "2k"}},
        'workload.batch = "2k": 2048 or 2000? a whole number was expected',
    ),
    "text for a number": (
        {"workload": {"heads": "many"}},
        'workload.heads = "many": a whole number was expected',
    ),
    "no table": (
        {"schedule": {"tile": 64}},
        "schedule.flash2.tile = 64: a table was expected: { q = ..., kv = ... }",
    ),
    "a table's keys alone": (
        {"schedule": {"tile": "{q, k}"}},
        'schedule.flash2.tile = "{q, k}": a table was expected: { q = ..., kv = ... }',
    ),
    "a kilobyte that means two things": (
        {"hardware": {"sram": {"capacity": "256KB"}}},
        'hardware.sram.capacity = "256KB": kB (1,000 B) or KiB (1,024 B)? a number of bytes was',
    ),
    "another key": (
        {"schedule": {"tile": {"q": 64, "k": 128}}},
        "schedule.flash2.tile.k: unknown key; did you mean 'kv'?",
    ),
    "no multiple": (
        {"schedule": {"tile": {"q": 65, "kv": 64}}},
        "schedule.flash2.tile.q = 65: it must be a multiple of 16",
    ),
    "a choice": (
        {"workload": {"dtype": "fp61"}},
        "workload.dtype = \"fp61\": 'fp32', 'fp16', 'bf16'",
    ),
    "a key outside its table": (
        {"l2": {"capacity": "50 MB"}},
        "a.toml: l2: unknown key; did you mean 'hardware.l2'?",
    ),
    "a workload's key outside": (
        {"heads": 8},
        "heads: unknown key; did you mean 'workload.heads'?",
    ),
    "a length in powers of two": ({"workload": {"seq_len": "4ki"}}, '"4ki": 4096 or 4000?'),
    "half of one": ({"workload": {"seq_len": "0.5k"}}, '"0.5k": 512 or 500?'),
    "a length that is none": (
        {"workload": {"seq_len": "many"}},
        'workload.seq_len = "many": a whole number above zero',
    ),
    "a profile outside": (
        {"profile": "h100"},
        "a.toml: profile: unknown key; did you mean 'hardware.profile'?",
    ),
    "a schedule's key outside": (
        {"stages": 2},
        "a.toml: stages: unknown key; did you mean 'schedule.flash2.stages'?",
    ),
    "a swept key outside": (
        {"sweep": {"seq_len": [64]}},
        "a.toml: sweep.seq_len: unknown key; did you mean 'workload.seq_len'?",
    ),
    "a swept key that is none": ({"sweep": {"nonsense": [64]}}, "sweep.nonsense: unknown key"),
    "a range's key": (
        {"sweep": {"workload.batch": {"from": 1, "too": 2}}},
        "sweep.workload.batch.too: unknown key; did you mean 'to'?",
    ),
    "a key without a name": ({"workload": {"": 1}}, 'workload."": unknown key; known: '),
    "a list of nothing": ({"workload": {"seq_len": []}}, "workload.seq_len = []: a whole number"),
    "a line break": ({"workload": {"dtype": "fp\n16"}}, 'workload.dtype = "fp\\n16": '),
}


def test_a_file_without_schedules_is_told_in_words_of_the_file():
    tables = {"workload": {}, "hardware": {}, "schedule": []}
    with pytest.raises(InputError, match=r"^a.toml: schedule = \[\]: at least 1 was expected$"):
        make_scenario(tables, "a test", "a.toml")


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_understood_is_told_in_words_of_the_file(wrong):
    changes, says = WRONG[wrong]
    with pytest.raises(InputError) as error:
        made(**changes)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"hardware": "a100"},
            'hardware = "a100": a table was expected: hardware.profile = "a100"',
        ),
        ({"schedule": {"name": "flash2"}}, "[[schedule]], in two brackets, begins each"),
        ({"schedule": [{"tile": "64x64"}]}, "schedule.name: missing; known: bigbird"),
    ],
)
def test_tables_that_are_none_are_told_by_what_to_write(wrong, says):
    tables = {
        "workload": {"heads": 8, "head_dim": 128, "seq_len": 4096},
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": "flash2"}],
    }
    with pytest.raises(InputError, match=r"^a\.toml: ") as error:
        make_scenario(tables | wrong, "a test", "a.toml")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("streaming_llm", "sinks"),
        ("flash2", "registers"),
        ("naive", "depth"),
        ("paged", "page_size"),
        ("nsa", "top"),
        ("dsa", "top"),
        ("ring", "gpus"),
        ("flash_decoding", "splits"),
    ],
)
def test_true_is_no_count_of_a_schedule_and_a_count_in_quotation_marks_is(name, option):
    with pytest.raises(InputError, match="a whole number was expected"):
        make_schedule({"name": name, option: True}, "mine.toml")
    assert getattr(make_schedule({"name": name, option: "128"}, "mine.toml"), option) == 128


@pytest.mark.parametrize(
    "value", ["x" * 10**6, [1] * 10**5, 10**5000], ids=["text", "list", "number"]
)
def test_values_are_shown_cut_to_what_is_readable(value):
    assert len(shown(value)) < LONGEST_SHOWN + 40


def test_a_profile_in_place_of_a_scenario_is_told_as_one():
    text = ScenarioText({"title": "An L2", "l2": {"capacity": "1 MB"}}, "mine", "mine.toml", None)
    for data in (text.data, text.data | {"extends": "h100-sxm"}):
        with pytest.raises(InputError, match="a scenario was expected, and this is a profile"):
            cases_of(replace(text, data=data))
    with pytest.raises(InputError, match="workload: missing"):
        cases_of(replace(text, data={"title": "nothing else"}))


def test_a_profile_that_lacks_its_architecture_is_told_of_extends(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('[l2]\ncapacity = "1 MB"\n')
    with pytest.raises(InputError, match="or extends = the name of a profile"):
        load_profile(str(mine))
    mine.write_text('extend = "h100-sxm"\n')
    with pytest.raises(InputError, match="extend: unknown key; did you mean 'extends'"):
        load_profile(str(mine))
    mine.write_text("[workload]\nheads = 2\n")
    with pytest.raises(InputError, match="a profile of a device was expected, and this is a scen"):
        load_profile(str(mine))


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = tmp_path / "windows.toml"
    path.write_text('title = "a device"\r\n', encoding="utf-8-sig")
    assert read_toml(path) == {"title": "a device"}


@pytest.mark.parametrize(
    ("text"),
    ["a = " + "[" * 10**5, "a." * 5000 + "b = 1", f"a = {'9' * 5000}"],
    ids=["deep", "long", "large"],
)
def test_toml_that_cannot_be_parsed_is_one_line(tmp_path, text):
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(InputError) as error:
        load_profile(str(mine))
    assert "\n" not in str(error.value)


def dotted(names, of="a"):
    return " . ".join([of] * names)


@pytest.mark.parametrize(
    "text",
    [
        f"{dotted(20_000)} = 1",
        f"x = 1\n  {dotted(33)} = 1",
        f"[{dotted(33)}]",
        f"[[{dotted(33)}]]",
        f"x = {{ y = 1, {dotted(33)} = 1 }}",
        f"""{dotted(33, "'a.b'")} = 1""",
        f"""{dotted(33, '"a"')} = 1""",
    ],
)
def test_a_key_of_very_many_names_is_refused_before_it_is_parsed(tmp_path, monkeypatch, text):
    def parsed(text):
        raise AssertionError("tomllib takes the square of the names")

    monkeypatch.setattr("sim.inputs.files.tomllib.loads", parsed)
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(InputError, match="deeper than 32 levels"):
        read_toml(mine)


def test_dots_in_texts_and_numbers_are_no_key(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(f"{dotted(31)} = 1\nb = '{dotted(50)}'\nc = [1.5, 2.5] # {dotted(50)}\n")
    assert read_toml(mine)["b"] == dotted(50)


LONG = "f" * 6000  # more than a file's name may have


@pytest.mark.parametrize(
    "changes",
    [
        {"workload": {"seq_len": LONG}},
        {"hardware": {"profile": f"{LONG}/mine.toml"}},
        {"hardware": {"profile": "a\0b/mine.toml"}},
        {"schedule": {"name": f"{LONG}.py:Mine"}},
    ],
    ids=["lengths", "profile", "no name", "schedule"],
)
def test_names_that_no_file_can_have_are_one_line(tmp_path, changes):
    with pytest.raises(InputError) as error:
        made(tmp_path, **changes)
    assert str(error.value).isprintable()


def test_a_message_has_no_commands_for_the_terminal():
    assert str(InputError("a \x1b[2J\x07 b\r\n\x9bc")) == r"a \x1b[2J\x07 b\r\n\x9bc"


def test_a_long_message_has_its_beginning_and_its_end():
    message = str(InputError(f"mine.toml: {LONG}: no such file"))
    assert message.startswith("mine.toml: fff")
    assert message.endswith("fff: no such file")
    assert len(message) <= LONGEST_MESSAGE


@pytest.mark.parametrize("text", [r'title = "\u001b[2J"', r'a = [{ "\u0007" = 1 }]'])
def test_nor_does_a_file(tmp_path, text):
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(InputError, match="a text has the control character 0x"):
        load_profile(str(mine))


@pytest.mark.parametrize("unit", ["m" * 10**5 + "B", "B/" * 10**5 + "B", "B " * 10**5])
def test_a_long_unit_is_refused_without_being_taken_apart(unit):
    with seconds_of_at_most(2), pytest.raises(ValueError, match="a size was expected"):
        parse_quantity(f"1 {unit}", "byte", "a size", "1 B")


@pytest.mark.parametrize(
    ("options", "device", "says"),
    [
        ({"tile": "256x256", "stages": 3}, "h100-sxm", "it fits with stages = 1"),
        ({"tile": "256x256"}, "a100-sxm-80gb", "512 x 64 (q x kv); no other stages help"),
        (
            {"tile": "128x128", "stages": 4, "implementation": "triton"},
            "a100-sxm-80gb",
            "it fits with stages = 1 or 2 or 3",
        ),
        ({"tile": "256x64", "warps": 16}, "h100-sxm", "it fits with warps = 4 or 8"),
    ],
)
def test_a_tile_is_refused_with_the_stages_and_warps_that_would_fit(options, device, says):
    point = made(schedule=options, hardware={"profile": device}).points[0]
    with pytest.raises(InputError) as error:
        point.schedules[0].program(point.workload, point.hardware)
    assert says in str(error.value)

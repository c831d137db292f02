"""The shipped profiles: sourced, one calibration a family, and figures that fit each other."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sim.inputs.files import InputError, find_toml, read_toml, shipped_names
from sim.inputs.hardware import ARCHITECTURES, load_profile
from sim.machine import machine_of

ALL = shipped_names("hw_profiles")
# Devices that are a datasheet on the calibration of another, and which that is.
DATASHEETS = {
    "a30": "a100-sxm-80gb",
    "a40": "rtx-3090",
    "a800-sxm-80gb": "a100-sxm-80gb",
    "b300": "b200",
    "gb10": "rtx-5090",
    "gb200": "b200",
    "gb300": "b200",
    "gh200": "h200-sxm",
    "h20": "h200-sxm",
    "h200-sxm": "h100-sxm",
    "h800-sxm": "h100-sxm",
    "l20": "l40s",
    "mi325x": "mi300x",
    "rtx-5060-ti": "rtx-5090",
    "rtx-a5000": "rtx-3090",
    "rtx-a6000": "rtx-3090",
    "rtx-pro-6000-blackwell": "rtx-5090",
}
# What fp16 matmuls with fp32 accumulate do in a clock on an SM, where it is not as on the parent.
# An H20 and an L20 are cut; GeForce parts have half the rate of the professional cards' SMs.
FLOP_PER_CLOCK = {
    "h20": 1024, "l20": 512, "a40": 1024, "rtx-a6000": 1024, "rtx-a5000": 1024,
    "rtx-pro-6000-blackwell": 1024, "gb10": 1024,
}  # fmt: skip


def contents(name: str) -> dict[str, Any]:
    """A profile's own file, without what it extends."""
    return read_toml(find_toml(name, "hw_profiles", "profile"))


def sections(tables: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables at any depth that hold figures."""
    inner = [table for table in tables.values() if isinstance(table, dict)]
    own = [t for t in inner if any(not isinstance(value, dict) for value in t.values())]
    return own + [section for table in inner for section in sections(table)]


def calibrated(tables: dict[str, Any]) -> set[tuple[str, str]]:
    """The calibration figures that a file states, as (section, key)."""
    calibration = tables.get("calibration", {})
    return {(name, key) for name, table in calibration.items() for key in table} - {
        (name, "source") for name in calibration
    }


@pytest.mark.parametrize("name", ALL)
def test_every_section_of_a_profile_says_where_its_own_figures_come_from(name):
    load_profile(name)
    stated = sections(contents(name))
    assert stated
    assert all(len(section.get("source", "")) > 20 for section in stated)


@pytest.mark.parametrize(("name", "parent"), DATASHEETS.items())
def test_a_datasheet_has_the_calibration_of_its_parent_and_none_of_its_own(name, parent):
    assert contents(name)["extends"] == parent
    assert "calibration" not in contents(name)
    hw, kin = load_profile(name), load_profile(parent)
    assert (hw.calibration, hw.arch) == (kin.calibration, kin.arch)


@pytest.mark.parametrize("name", ALL)
def test_tensor_rate_is_a_power_of_two_of_flops_a_clock_an_sm(name):
    hw = load_profile(name)
    assert hw.tensor.fp16 == 2 ** round(math.log2(hw.tensor.fp16))
    assert hw.tensor_flops_per_s("fp16") == hw.tensor.fp16 * hw.sm.count * hw.sm.clock


# Dense TFLOP/s with fp32 accumulate, as the vendors print them.
PUBLISHED = {
    "v100-sxm-32gb": 125, "t4": 65, "a100-sxm-80gb": 312, "a30": 165, "a40": 149.7,
    "rtx-3090": 71, "rtx-a6000": 154.8, "l4": 121, "l40s": 362, "rtx-4090": 165.2,
    "h100-sxm": 989.4, "h100-pcie": 756, "h20": 148, "b200": 2250, "gb200": 2500,
    "rtx-5090": 209.5, "mi300x": 1307,
}  # fmt: skip
# GeForce cards whose clock was measured: the boost clock of which the vendor states the rate.
BOOST_MHZ = {"rtx-3090": 1695, "rtx-4090": 2520, "rtx-5090": 2407}


@pytest.mark.parametrize(("name", "tflops"), PUBLISHED.items())
def test_sms_clock_and_their_rate_give_what_the_vendor_publishes(name, tflops):
    hw = load_profile(name)
    rate = hw.tensor_flops_per_s("fp16")
    if name in BOOST_MHZ:
        assert hw.sm.clock > BOOST_MHZ[name] * 1e6
        rate *= BOOST_MHZ[name] * 1e6 / hw.sm.clock
    assert rate == pytest.approx(tflops * 1e12, rel=0.004)


@pytest.mark.parametrize(("name", "parent"), DATASHEETS.items())
def test_an_sm_does_as_much_a_clock_as_its_parents_where_it_is_not_cut(name, parent):
    expected = FLOP_PER_CLOCK.get(name, load_profile(parent).tensor.fp16)
    assert load_profile(name).tensor.fp16 == expected


@pytest.mark.parametrize("name", ALL)
def test_bf16_has_the_rate_of_fp16_and_fp8_twice_that(name):
    tensor = load_profile(name).tensor
    assert tensor.bf16 in (None, tensor.fp16)
    assert tensor.fp8 in (None, 2 * tensor.fp16)


@pytest.mark.parametrize("name", ALL)
def test_l2_is_faster_than_hbm_and_no_faster_than_80_bytes_a_clock_an_sm(name):
    hw = load_profile(name)
    assert 2 * hw.hbm.bandwidth < hw.l2.bandwidth < 80 * hw.sm.count * hw.sm.clock
    assert hw.l2.capacity < hw.hbm.capacity


@pytest.mark.parametrize("arch", shipped_names(ARCHITECTURES))
def test_every_section_of_an_architecture_says_where_its_figures_come_from(arch):
    tables = read_toml(find_toml(arch, ARCHITECTURES, "architecture"))
    stated = sections(tables)
    assert len(stated) == (9 if "energy" in tables else 8)
    assert all(len(section.get("source", "")) > 20 for section in stated)


@pytest.mark.parametrize("name", ALL)
def test_no_calibration_figure_is_written_in_two_files(name):
    calibration = contents(name).get("calibration", {})
    arch = load_profile(name).arch
    base = read_toml(find_toml(arch, ARCHITECTURES, "architecture"))["calibration"]
    for section, key in calibrated(contents(name)):
        assert calibration[section][key] != base[section][key]


def test_few_devices_override_their_architecture_and_transfer_devices_nothing():
    own = {name: calibrated(contents(name)) for name in ALL}
    assert {name for name, figures in own.items() if figures} == {
        "a100-sxm-40gb",
        "h100-pcie",
        "rtx-4090",
    }
    for name, arch in (("h200-sxm", "sm90"), ("l4", "sm89"), ("t4", "sm75")):
        base = read_toml(find_toml(arch, ARCHITECTURES, "architecture"))["calibration"]
        calibration = load_profile(name).calibration
        assert load_profile(name).arch == arch
        assert calibration.sm.mma_issue_cycles == base["sm"]["mma_issue_cycles"]
        assert calibration.tensor.native == base["tensor"]["native"]


DATASHEET = """
title = "A datasheet"
arch = "sm90"
[hbm]
capacity = "100 GiB"
bandwidth = "5 TB/s"
source = "hypothetical"
[l2]
capacity = "60 MiB"
bandwidth = "10 TB/s"
source = "hypothetical"
[sm]
count = 100
clock = "2 GHz"
source = "hypothetical"
[tensor]
fp16 = "819.2 TFLOP/s"
source = "hypothetical"
"""


def test_a_hypothetical_device_is_a_datasheet(tmp_path):
    (tmp_path / "mine.toml").write_text(DATASHEET)
    mine, h100 = load_profile(str(tmp_path / "mine.toml")), load_profile("h100-sxm")
    assert (mine.calibration, mine.sram) == (h100.calibration, h100.sram)
    assert (mine.sm.count, mine.sm.registers) == (100, h100.sm.registers)
    assert mine.sm.source.startswith("hypothetical The rest: Registers")


def test_a_total_is_of_the_sms_and_the_clock_that_hold_where_it_is_stated(tmp_path):
    (tmp_path / "mine.toml").write_text(DATASHEET)
    (tmp_path / "half.toml").write_text(
        'title = "h"\nextends = "mine.toml"\n[sm]\ncount = 50\nsource = "half of it"\n'
    )
    (tmp_path / "other.toml").write_text(
        (tmp_path / "half.toml").read_text()
        + '[tensor]\nfp16 = "819.2 TFLOP/s"\nsource = "stated anew"\n'
    )
    mine, half, other = (str(tmp_path / f"{n}.toml") for n in ("mine", "half", "other"))
    assert load_profile(mine).tensor.fp16 == pytest.approx(4096)
    assert load_profile(half).tensor.fp16 == pytest.approx(4096)
    assert load_profile(other).tensor.fp16 == pytest.approx(8192)
    set_too = load_profile(mine, {"sm": {"count": 25}, "tensor": {"fp16": "819.2 TFLOP/s"}}, "set")
    assert set_too.tensor.fp16 == pytest.approx(16384)


@pytest.mark.parametrize("key", ["sm.count", "sm.clock"])
def test_half_the_sms_or_half_the_clock_are_half_the_tensor_rate_in_every_way_to_ask(tmp_path, key):
    """Of a profile that states an SM's rate and of one that states a total."""
    (tmp_path / "mine.toml").write_text(DATASHEET)
    for name in ("h100-sxm", str(tmp_path / "mine.toml")):
        hw = load_profile(name)
        value = hw.figure(key) / 2
        section, figure = key.split(".")
        written = int(value) if figure == "count" else f"{value / 1e6} MHz"
        (tmp_path / "half.toml").write_text(
            f'title = "h"\nextends = "{name}"\n[{section}]\n{figure} = {written!r}\nsource = "h"\n'
        )
        halves = [
            load_profile(name, {section: {figure: written}}, "--set"),
            load_profile(str(tmp_path / "half.toml")),
            hw.with_figures({key: value}),
        ]
        rate = hw.tensor_flops_per_s("fp16")
        assert [half.tensor_flops_per_s("fp16") for half in halves] == pytest.approx([rate / 2] * 3)


def test_a_tensor_rate_without_a_known_unit_is_one_clear_line(tmp_path):
    with pytest.raises(InputError) as error:
        load_profile("h100-sxm", {"tensor": {"fp16": "4096 GB"}}, "a test")
    assert "hardware.tensor.fp16" in str(error.value)
    assert '"4096 FLOP/clock"' in str(error.value)
    assert '"989 TFLOP/s"' in str(error.value)


def test_a_device_overrides_its_architecture_and_a_child_its_parent(tmp_path):
    latency = '[calibration.hbm]\nlatency = "{} ns"\nsource = "measured on it"\n'
    (tmp_path / "mine.toml").write_text(DATASHEET + latency.format(300))
    child = 'title = "c"\nextends = "mine.toml"\n'
    (tmp_path / "child.toml").write_text(child)
    (tmp_path / "other.toml").write_text(child + latency.format(200))
    found = [load_profile(str(tmp_path / f"{n}.toml")) for n in ("mine", "child", "other")]
    assert [hw.calibration.hbm.latency for hw in found] == pytest.approx([3e-7, 3e-7, 2e-7])
    assert {hw.calibration.hbm.read for hw in found} == {
        load_profile("h100-sxm").calibration.hbm.read
    }


def test_an_sram_below_its_reserve_is_told_with_both(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text('title = "tiny"\nextends = "h100-sxm"\n[sram]\ncapacity = "1 KiB"\n')
    says = "sram.capacity = 1,024 B must exceed sram.reserved_per_cta = 1,024 B"
    with pytest.raises(InputError, match=says):
        load_profile(str(path))


def test_codes_in_line_take_their_share_of_the_bus_and_of_writes_more():
    plain = load_profile("l40s", {"hbm": {"inline_ecc": False}}, "here")
    coded = load_profile("l40s")
    assert coded.hbm.inline_ecc
    assert coded.hbm.bandwidth == plain.hbm.bandwidth
    with_codes, without = machine_of(coded), machine_of(plain)
    read = with_codes.hbm_read_bytes_per_s / without.hbm_read_bytes_per_s
    assert read == pytest.approx(16 / 17)
    assert with_codes.hbm_write_bytes_per_s < read * without.hbm_write_bytes_per_s


def test_a_t4_copies_as_fast_as_measured():
    """router-gao/cuda-demo, cuda-samples/02-cuda-bandwidth.md: 239.6 GB/s, both ways together."""
    assert 2 / machine_of(load_profile("t4")).hbm_s(1, 1) == pytest.approx(239.6e9, rel=0.01)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "arch: missing; known: gfx942, sm100"),
        ('arch = "sm91"', 'arch = "sm91": no such architecture; did you mean \'sm9'),
        ("arch = 90", "arch = 90: no such architecture; did you mean 'sm90'?"),
    ],
)
def test_an_architecture_that_is_not_known_is_one_clear_line(tmp_path, line, says):
    (tmp_path / "mine.toml").write_text(DATASHEET.replace('arch = "sm90"', line))
    with pytest.raises(InputError) as error:
        load_profile(str(tmp_path / "mine.toml"))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_listing_has_them_all(tmp_path):
    attnsim = Path(sys.executable).with_name("attnsim")
    done = subprocess.run(
        [str(attnsim), "profiles"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert set(ALL) <= listed
    assert len(ALL) == 31

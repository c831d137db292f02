"""Lists of lengths as people give them: in tables, in files, in sweeps, and what is refused."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from sim import InputError, simulate
from sim.inputs.lengths import in_words, name_of, with_files_read
from sim.inputs.workload import WorkloadTable
from sim.report.answer import answer
from sim.report.frame import frame_of
from sim.report.known_errors import measured_errors
from sim.report.records import print_records
from sim.runs.difference import compare
from sim.runs.results_file import load, save
from sim.runs.scenario import load_scenario

SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 64, "dtype": "bf16"}


def workload(**table):
    return WorkloadTable.model_validate(SHAPE | table).workload()


def test_a_list_has_a_length_for_each_sequence_and_says_how_many_there_are():
    w = workload(phase="decode", seq_kv=[1024, 8192, 300])
    assert (w.batch, w.seq_q, w.seq_kv) == (3, 1, 8192)
    assert w.lengths == ((1, 1024), (1, 8192), (1, 300))
    assert [one.seq_kv for one in w.sequences] == [1024, 8192, 300]
    assert workload(seq_len=[64, 128], batch=2).lengths == ((64, 64), (128, 128))
    assert workload(seq_q=[1, 7], seq_kv=16).lengths == ((1, 16), (7, 16))
    assert workload(phase="decode", seq_kv=np.array([5, 6])).keys == (5, 6)


def test_a_list_of_equal_lengths_is_a_batch():
    assert workload(seq_len=[512] * 3) == workload(seq_len=512, batch=3)


def test_useful_flops_are_those_of_the_sequences():
    w = workload(seq_len=[100, 300], causal=True)
    assert w.useful_flops == sum(one.useful_flops for one in w.sequences)
    assert w.useful_flops == 4 * 64 * 4 * (100 * 101 // 2 + 300 * 301 // 2)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"seq_len": [1, 0]}, "not 0"),
        ({"seq_len": []}, "a list of them, one a sequence"),
        ({"seq_len": [4, True]}, "not true"),
        ({"seq_len": 1.5}, "not 1.5"),
        ({"seq_q": [1, 2], "seq_kv": [3, 4, 5]}, "seq_q of 2, seq_kv of 3 do not agree"),
        ({"seq_len": [3, 4, 5], "batch": 2}, "seq_len of 3, batch of 2 do not agree"),
        ({"seq_q": [1, 9], "seq_kv": [3, 4], "causal": True}, "seq_q = 9 not above seq_kv = 4"),
        ({"seq_q": [1, 9], "seq_kv": 4, "phase": "decode"}, "seq_q = 9 not above seq_kv = 4"),
        ({"seq_len": [3, 4], "phase": "training"}, 'phase = "prefill" or "decode"'),
    ],
)
def test_lists_that_cannot_be_are_refused(table, says):
    with pytest.raises(ValueError, match=says):
        workload(**table)


def test_a_file_has_a_length_a_line_and_may_stand_beside_the_scenario(tmp_path):
    (tmp_path / "lengths.csv").write_text("tokens\n1024\n\n 300 \n")
    table = {"seq_kv": "lengths.csv", "phase": "decode"}
    assert with_files_read(table, "a test", tmp_path)["seq_kv"] == [1024, 300]
    (tmp_path / "question.toml").write_text(
        '[workload]\nheads = 4\nhead_dim = 64\nphase = "decode"\nseq_kv = "lengths.csv"\n'
        '[hardware]\nprofile = "h100-sxm"\n[[schedule]]\nname = "decode"\n'
    )
    (point,) = load_scenario(str(tmp_path / "question.toml")).points
    assert point.workload.keys == (1024, 300)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1\n-4\n", 'line 2: "-4"'),
        ("a\n2\n0\n", 'line 3: "0"'),
        ("-4\n1\n", 'line 1: "-4"'),
        ("1,024\n300\n", 'line 1: "1,024"'),
        ('"1024"\n300\n', "line 1: "),
        ("", "no lengths"),
        ("n\n", "no len"),
    ],
)
def test_a_file_of_anything_else_is_refused_by_its_line(tmp_path, text, says):
    path = tmp_path / "lengths.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        with_files_read({"seq_len": str(path)}, "a test")
    with pytest.raises(InputError, match=r'"none\.csv": cannot be read'):
        with_files_read({"seq_len": "none.csv"}, "a test")


def test_a_byte_order_mark_hides_no_length(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("1024\n300\n", encoding="utf-8-sig")
    assert with_files_read({"seq_len": str(path)}, "a test")["seq_len"] == [1024, 300]


def test_lists_are_told_in_a_few_words():
    assert in_words(1, [1024, 8192]) == "2 sequences of 1,024 to 8,192 keys, 9,216 together"
    assert in_words([1, 3], 64) == "2 sequences of 1 to 3 queries, 4 together"
    assert in_words(1, 64) is None
    assert name_of([1024, 8192]) == "[1024, 8192]"
    assert name_of([1] * 20) != name_of([2] * 20)
    assert name_of([64] * 20).startswith("20 of 64 (")


def answers(**sweep):
    """Flash decoding of two batches."""
    return simulate(
        workload=SHAPE | {"phase": "decode", "seq_kv": [64, 4000]},
        hardware="h100-sxm",
        schedule=["flash_decoding"],
        **sweep,
    )


def test_an_axis_of_lists_is_swept_recorded_exported_and_compared(tmp_path, capsys):
    records = answers(sweep={"workload.seq_kv": [[64, 4000], [2032, 2032]]})
    assert [record.point["workload.seq_kv"] for record in records] == ["[64, 4000]", "[2032, 2032]"]
    assert [record.workload["seq_kv"] for record in records] == [[64, 4000], 2032]
    save(records, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == records
    assert frame_of(records)["workload.seq_kv"].tolist() == ["[64, 4000]", "2032"]
    assert answer(records)
    save([replace(r, time_s=2 * (r.time_s or 0)) for r in records], tmp_path / "slower.json")
    comparison = compare(tmp_path / "results.json", tmp_path / "slower.json")
    assert [one.time_s.ratio for one in comparison.differences] == [2, 2]
    print_records("two batches", records)
    assert "2 sequences of 64 to 4,000 keys, 4,064 together" in capsys.readouterr().out


def test_a_record_of_lists_is_json_in_the_words_of_a_scenario():
    (record,) = answers()
    told = json.loads(json.dumps(asdict(record)))
    assert told["workload"]["seq_kv"] == [64, 4000]
    assert "lengths" not in told["workload"]
    again = {key: value for key, value in told["workload"].items() if value is not None}
    (other,) = simulate(workload=again, hardware="h100-sxm", schedule=["flash_decoding"])
    assert other == record
    assert measured_errors({"name": "flash_decoding"}, "h100-sxm", record.workload) is not None

"""Importers: small files as public sets have them become figures that can be predicted."""

import csv
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from sim.inputs.files import InputError
from tests.support.commands import assert_one_line, called
from tests.support.full_disk import files_of_at_most
from validate.figures import must_be_fit, read_figures
from validate.importers.run import SOURCES, WRITTEN, save_imported
from validate.measured import measured_of

PHASES = {
    "time_stats.attn_prefill.median": "0.0",
    "time_stats.attn_decode.median": "0.0",
    "n_embd": "2048",
    "n_q_head": "32",
    "n_kv_head": "4",
    "num_tensor_parallel_workers": "2",
    "block_size": "16",
    "attention_backend": "AttentionBackend.FLASHINFER",
}
DECODES = {"batch_size": "8", "prefill_chunk_size": "0", "kv_cache_size": "4096"}
DECODES |= {"is_prefill": "False", "time_stats.attn_decode.median": "0.25"}
FILLS = {"batch_size": "1", "prefill_chunk_size": "512", "kv_cache_size": "1024"}
FILLS |= {"is_prefill": "True", "time_stats.attn_prefill.median": "0.125"}
CONTEXT = {
    "framework": "VLLM",
    "version": "0.24.0",
    "device": "NVIDIA H100 80GB HBM3",
    "op_name": "context_attention",
    "kernel_source": "vllm_flash_attn_fa3",
    "batch_size": 2,
    "isl": 4096,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "beam_width": 1,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "fp8",
    "step": 0,
    "window_size": 128,
    "latency": 0.5,
}
LATENT = {
    **{key: CONTEXT[key] for key in CONTEXT if not re.search("head|attn_dtype|beam", key)},
    "kernel_source": "vllm_flashmla",
    "mla_dtype": "bfloat16",
    "num_heads": 16,
    "tp_size": 8,
    "isl": 1,
    "step": 2047,
}  # fmt: skip


def write_csv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def write_parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def imported(source, folder):
    """The figures that come of a clone, read back from the table, and what was left out."""
    out = folder / "imported.csv"
    done = save_imported(SOURCES[source], folder, out)
    figures = read_figures([out])
    assert len(figures) == done.rows
    return figures, done.left


def shape(figure):
    return (
        figure.pass_, figure.batch, figure.heads, figure.kv_heads, figure.seq_q, figure.seq_kv,
        figure.head_dim,
    )  # fmt: skip


# --- each source -----------------------------------------------------------------------------


def test_attention_of_a_framework_is_read_from_parquet(tmp_path):
    folder = tmp_path / "systems/data/h100_sxm/attention/vllm/0.24.0"
    write_parquet(folder / "context_attention_perf.parquet", CONTEXT)
    decode = CONTEXT | {"isl": 1, "step": 2047, "window_size": 0, "num_key_value_heads": 0}
    write_parquet(folder / "generation_attention_perf.parquet", decode, decode | {"beam_width": 4})
    write_parquet(folder / "encoder_attention_perf.parquet", CONTEXT)  # is not read
    (prefill, decoding), left = imported("aiconfigurator", tmp_path)
    assert shape(prefill) == ("fwd", 2, 32, 8, 4096, 4096, 128)
    assert shape(decoding) == ("decode", 2, 32, 32, 1, 2048, 128)
    assert (prefill.gpu, prefill.kernel) == ("H100 80GB HBM3", "vllm vllm_flash_attn_fa3")
    assert (prefill.dtype, prefill.kv_dtype, prefill.value) == ("bf16", "fp8", 500)
    assert prefill.source.startswith("ai-dynamo/aiconfigurator systems/data/h100_sxm/")
    assert left == {"decodes by beams": 1}
    windowed, whole = measured_of(prefill).case, measured_of(decoding).case
    assert (windowed.workload.window, whole.workload.window) == (128, None)
    assert windowed.warm
    assert len(measured_of(prefill).beside.writes) == 1


def test_latent_attention_is_absorbed_in_decoding_alone(tmp_path):
    folder = tmp_path / "data/h100_sxm/mla/vllm/0.14.0"
    write_parquet(folder / "generation_mla_perf.parquet", LATENT)
    write_csv(folder / "context_mla_perf.txt", LATENT | {"isl": 512, "step": 0})
    (prefill, decoding), _ = imported("aiconfigurator", tmp_path)
    assert shape(prefill) == ("fwd", 2, 16, 16, 512, 512, 192)
    assert shape(decoding) == ("decode", 2, 16, 1, 1, 2048, 576)
    assert decoding.kernel == "vllm MLA vllm_flashmla"
    assert measured_of(decoding).case.workload.latent_dim == 512


def test_what_infersim_measured_stands_in_the_files_names(tmp_path):
    bench = tmp_path / "bench_data"
    row = "bf16,fp8,16,4096,88.5,0.04\n"
    header = "dtype,kv_dtype,batch_size,kv_len,latency_us,mfu\n"
    write_text(bench / "mha/decode/h20/32-8-128.csv", header + row)
    write_text(bench / "mha/decode/h20/64-2-128.csv", row + row)  # as one of theirs: no header
    write_text(
        bench / "mha/prefill/h20/16-1-256.csv", "dtype,seq_len,latency_us,mfu\nbf16,1024,90,1\n"
    )
    write_text(bench / "mla/decode/h800/128-512-64.csv", header + row)
    write_text(bench / "gemm/h20/data.csv", "m,k,n\n1,2,3\n")  # is not read
    figures, _ = imported("infersim", tmp_path)
    assert [shape(one) for one in figures] == [
        ("decode", 16, 32, 8, 1, 4096, 128),
        ("decode", 16, 64, 2, 1, 4096, 128),
        ("decode", 16, 64, 2, 1, 4096, 128),
        ("fwd", 1, 16, 1, 1024, 1024, 256),
        ("decode", 16, 128, 1, 1, 4096, 576),
    ]
    assert [one.gpu for one in figures] == ["H20"] * 4 + ["H800"]
    assert [one.causal for one in figures] == [False] * 3 + [True, False]
    assert {measured_of(one).floor_us for one in figures} == {40.0}


def test_heads_of_vidurs_columns_are_shared_out_over_workers(tmp_path):
    file = tmp_path / "data/profiling/compute/a100/org/model/attention.csv"
    write_csv(file, PHASES | DECODES, PHASES | FILLS, PHASES | DECODES | {"kv_cache_size": "0"})
    (decoding, prefill), left = imported("vidur", tmp_path)
    assert shape(decoding) == ("decode", 8, 16, 2, 1, 4096, 64)
    assert shape(prefill) == ("fwd", 1, 16, 2, 512, 1536, 64)
    assert (decoding.value, prefill.value) == (250, 125)
    assert {decoding.dtype, prefill.dtype} == {"fp16"}
    assert left == {"an empty cache, or no query": 1}
    assert not measured_of(decoding).has_gaps
    assert measured_of(decoding).case.warm
    assert measured_of(decoding).case.hardware.name == "a100-sxm-80gb"


def test_frontiers_head_dim_is_the_models_and_mixed_batches_are_left_out(tmp_path):
    more = {"measurement_type": "CUDA_EVENT", "profiling_precision": "BF16", "mode": "even"}
    more |= {"is_mixed_batch": "False", "is_true_mixed_batch": ""}
    decodes = PHASES | DECODES | more
    write_csv(
        tmp_path / "data/profiling/compute/a800/qwen/attention.csv",
        decodes,
        decodes | {"is_mixed_batch": "True"},
        decodes | {"mode": "random"},
        decodes | {"is_true_mixed_batch": "True"},
    )
    write_text(tmp_path / "data/config/models/qwen.json", json.dumps({"head_dim": 128}))
    (decoding,), left = imported("frontier", tmp_path)
    assert shape(decoding) == ("decode", 8, 16, 2, 1, 4096, 128)
    assert (decoding.gpu, decoding.dtype) == ("A800", "bf16")
    assert measured_of(decoding).has_gaps
    assert left == {
        "sequences of different lengths": 2,
        "prefill and decoding in one batch": 1,
    }


def test_batches_of_one_kind_are_read_of_llmservingsim(tmp_path):
    model = tmp_path / "profiler/perf/RTX4090/meta-llama/Llama-3.1-8B/bf16"
    write_text(
        model / "tp2/attention.csv",
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
        "0,0,4,2048,36.8\n16,1024,0,0,40.97\n16,1024,4,2048,50\n",
    )
    write_text(model / "meta.yaml", "engine_effective:\n  block_size: 32\n")
    config = {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    write_text(tmp_path / "configs/model/meta-llama/Llama-3.1-8B.json", json.dumps(config))
    (decoding, prefill), left = imported("llmservingsim", tmp_path)
    assert shape(decoding) == ("decode", 4, 16, 4, 1, 2048, 128)
    assert shape(prefill) == ("fwd", 1, 16, 4, 16, 1040, 128)
    assert left == {"prefill and decoding in one batch": 1}
    case = measured_of(decoding).case
    assert (case.hardware.name, case.warm) == ("rtx-4090", False)
    assert case.schedule.page_size == 32


def test_llmservingsims_older_profiler_shares_its_keys_out_over_sequences(tmp_path):
    models = tmp_path / "profiler/v0/perf_models"
    write_csv(models / "H100/org/model/tp2/attention.csv", PHASES | DECODES, PHASES | FILLS)
    write_csv(models / "TPU-v6e-1/org/model/tp1/attention.csv", {"mean_ns": "1"})
    (decoding, prefill), left = imported("llmservingsim", tmp_path)
    assert shape(decoding) == ("decode", 8, 16, 2, 1, 512, 64)
    assert shape(prefill) == ("fwd", 1, 16, 2, 512, 1024, 64)
    assert measured_of(decoding).case.schedule.name == "flash2"  # it cuts no cache
    assert left == {"a TPU's": 1}


# --- what is imported is never fitted to -----------------------------------------------------


def test_imported_rows_have_no_split_and_nothing_is_fitted_to_them(tmp_path):
    write_text(
        tmp_path / "mha/prefill/h20/32-8-128.csv", "dtype,seq_len,latency_us,mfu\nbf16,1,9,1\n"
    )
    out = tmp_path / "h20.csv"
    save_imported(SOURCES["infersim"], tmp_path, out)
    assert out.read_text().splitlines()[0] == ",".join(WRITTEN)
    assert "split" not in WRITTEN
    (figure,) = read_figures([out])
    with pytest.raises(InputError, match="nothing is fitted"):
        must_be_fit(figure)


def test_the_command_reads_a_clone_into_a_table(tmp_path):
    write_csv(tmp_path / "clone/compute/a100/m/attention.csv", PHASES | FILLS)
    out = tmp_path / "a100.csv"
    run = called("validate", "import", "vidur", str(tmp_path / "clone"), "--out", str(out))
    assert run.stdout == f"1 rows of 1 files are in {out}\n"
    assert len(read_figures([out])) == 1


# --- what is wrong is one line ---------------------------------------------------------------

VIDUR = "compute/a100/m/attention.csv"


def test_on_a_full_disk_the_table_that_was_there_stays(tmp_path):
    write_csv(tmp_path / "data/profiling/compute/a100/org/model/attention.csv", PHASES | DECODES)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out/mine.csv"
    out.write_text("kept")
    with files_of_at_most(50), pytest.raises(InputError, match=r"mine\.csv: cannot be written: "):
        save_imported(SOURCES["vidur"], tmp_path / "data", out)
    assert [path.read_text() for path in out.parent.iterdir()] == ["kept"]
    save_imported(SOURCES["vidur"], tmp_path / "data", out)
    assert "A100" in out.read_text().upper()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": "eight"}, r'line 2: batch_size = "eight": a whole number'),
        ({"batch_size": "-8"}, r'line 2: batch_size = "-8": a whole number'),
        ({"kv_cache_size": "1.5"}, r'line 2: kv_cache_size = "1.5": a whole number'),
        ({"is_prefill": "maybe"}, r'line 2: is_prefill = "maybe": True or False'),
        ({"n_embd": ""}, r'line 2: n_embd = "": a value was expected'),
        ({"batch_size": "0"}, r'line 2: batch = "0": it must be above 0'),
        ({"time_stats.attn_decode.median": "nan"}, r'median = "nan": a number above 0'),
        ({"time_stats.attn_decode.median": "0"}, r'median = "0": a number above 0'),
    ],
)
def test_a_cell_that_is_wrong_is_named_with_its_file_and_column(tmp_path, changes, said):
    file = write_csv(tmp_path / VIDUR, PHASES | DECODES | changes)
    with pytest.raises(InputError, match=said) as error:
        save_imported(SOURCES["vidur"], tmp_path, tmp_path / "out.csv")
    assert str(error.value).startswith(str(file))
    assert not (tmp_path / "out.csv").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_column_that_is_missing_is_named_with_those_that_there_are(tmp_path):
    write_csv(tmp_path / VIDUR, {"n_q_head": "32", "num_tensor_parallel_workers": "1"})
    with pytest.raises(InputError, match="is_prefill: no such column; there are n_q_head, num"):
        save_imported(SOURCES["vidur"], tmp_path, tmp_path / "out.csv")


def test_a_pointer_of_git_lfs_is_not_taken_for_the_file(tmp_path):
    file = tmp_path / "generation_mla_perf.txt"
    write_text(file, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=r"a Git LFS pointer, not the file itself: .*git lfs pull"):
        save_imported(SOURCES["aiconfigurator"], tmp_path, tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("context_mla_perf.parquet", "PAR1 and no more", "not a Parquet file"),
        ("context_mla_perf.txt", "a,b\n1\n", "line 2: 1 cells; 2 columns were expected"),
        ("another.csv", "a,b\n1,2\n", "no file that is read of ai-dynamo/aiconfigurator"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, text, said):
    write_text(tmp_path / name, text)
    with pytest.raises(InputError, match=said):
        save_imported(SOURCES["aiconfigurator"], tmp_path, tmp_path / "out.csv")


def test_a_name_that_is_no_shape_and_a_model_without_its_heads_are_refused(tmp_path):
    write_text(tmp_path / "mha/decode/h20/data.csv", "dtype\nbf16\n")
    with pytest.raises(InputError, match=r"data\.csv: its name should be three numbers"):
        save_imported(SOURCES["infersim"], tmp_path, tmp_path / "out.csv")
    rows = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,1,1\n"
    write_text(tmp_path / "perf/RTX4090/a/b/bf16/tp1/attention.csv", rows)
    with pytest.raises(InputError, match=r"heads stand in configs/model/a/b\.json"):
        save_imported(SOURCES["llmservingsim"], tmp_path, tmp_path / "out.csv")


def test_no_such_folder_and_no_such_source_are_one_line(tmp_path):
    out = str(tmp_path / "out.csv")
    assert_one_line(called("validate", "import", "vidur", str(tmp_path / "no"), "--out", out))
    assert_one_line(
        called("validate", "import", "vidur", str(tmp_path), "--out", str(tmp_path / "out.txt"))
    )

"""Tables of figures: what is read of them, and one line for what is wrong in them."""

import pytest

from sim.inputs.files import InputError
from tests.support.tables_of_figures import ROW, figure, write
from validate.figures import REQUIRED, must_be_fit, read_figures


def test_files_and_folders_are_read_row_by_row_with_where_each_stands(tmp_path):
    write(tmp_path / "b.csv", {"value": "2"}, {"value": "3"})
    write(tmp_path / "a.csv", {"value": "1"})
    (tmp_path / "notes.txt").write_text("no table")
    figures = read_figures([tmp_path, tmp_path / "a.csv"])
    assert [one.value for one in figures] == [1, 2, 3, 1]
    assert figures[2].where == f"{tmp_path / 'b.csv'}, line 3"


def test_what_a_row_leaves_empty_was_not_stated(tmp_path):
    one = figure(tmp_path, batch="", causal="", kv_heads="")
    assert (one.batch, one.causal, one.kv_heads) == (None, None, None)


def test_a_table_of_ones_own_needs_the_required_columns_alone(tmp_path):
    path = tmp_path / "mine.csv"
    header = ",".join(REQUIRED)
    path.write_text(f"{header}\n{','.join(ROW[column] for column in REQUIRED)}\n")
    (one,) = read_figures([path])
    assert (one.kv_heads, one.kv_dtype, one.split) == (one.heads, one.dtype, "test")


def test_spaces_beside_commas_and_a_byte_order_mark_are_no_part_of_a_cell(tmp_path):
    path = tmp_path / "mine.csv"
    lines = [", ".join(REQUIRED), ", ".join(ROW[column] for column in REQUIRED)]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    (one,) = read_figures([path])
    assert (one.kernel, one.metric) == (ROW["kernel"], ROW["metric"])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"batch": "two"}, 'line 2: batch = "two": a whole number was expected'),
        (
            {"pass": "forward"},
            "line 2: pass = \"forward\": 'fwd', 'bwd' or 'decode' was expected",
        ),
        ({"metric": "ms"}, "line 2: metric = \"ms\": 'time_us'"),
        ({"causal": "yes"}, 'line 2: causal = "yes": 1, 0, or nothing'),
        ({"value": "0"}, 'line 2: value = "0": a time_us above 0 was expected'),
        ({"value": "nan"}, 'line 2: value = "nan": '),
        (
            {"split": "train"},
            "line 2: split = \"train\": 'fit', 'test' or 'transfer' was expected",
        ),
    ],
)
def test_a_bad_cell_is_one_line_with_file_line_column_and_value(tmp_path, cells, message):
    path = write(tmp_path / "bad.csv", cells)
    with pytest.raises(InputError) as caught:
        read_figures([path])
    assert f"{path}, {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu,kernl\n", "line 1: kernl: unknown column; did you mean 'kernel'?"),
        ("gpu,gpu\n", "line 1: gpu: stands there twice"),
        ("gpu,kernel\n", "line 1: pass: missing; needed are gpu, kernel, pass"),
        ("", "line 1: gpu: missing"),
    ],
)
def test_a_header_that_is_none_is_one_line(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        read_figures([path])


def test_a_row_with_too_few_cells_a_missing_file_and_an_empty_folder_are_told(tmp_path):
    path = write(tmp_path / "short.csv", {})
    path.write_text(path.read_text() + "H100,flash2\n")
    with pytest.raises(InputError, match="line 3: 2 cells; 17 columns were expected"):
        read_figures([path])
    with pytest.raises(InputError, match="no such file"):
        read_figures([tmp_path / "none.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no CSV file lies in this folder"):
        read_figures([tmp_path / "empty"])


@pytest.mark.parametrize("split", ["test", "transfer"])
def test_nothing_is_fitted_to_rows_of_test_and_transfer(tmp_path, split):
    rows = {"split": "fit"}, {"split": split}
    fit, held_back = read_figures([write(tmp_path / "mixed.csv", *rows)])
    must_be_fit(fit)
    with pytest.raises(InputError, match=f'line 3: split = "{split}": nothing is fitted'):
        must_be_fit(held_back)

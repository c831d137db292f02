"""The notebooks run, and say what they are shipped saying."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


def said(notebook):
    """What each cell printed and showed as text, in one piece."""
    return ["".join(map(text_of, cell.get("outputs", []))) for cell in notebook.cells]


def text_of(output):
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    return "a figure" if "image/png" in output.data else output.data["text/plain"]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_says_what_it_is_shipped_saying(path, tmp_path):
    shipped = nbformat.read(path, as_version=4)
    assert "a figure" in str(said(shipped))
    ran = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(ran, timeout=300, kernel_name="python3", resources=where).execute()
    assert said(ran) == said(shipped)

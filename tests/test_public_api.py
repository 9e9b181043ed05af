"""The public API is lazy, complete, and the same for people, for type checkers and at run time."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vit_finetune


def test_api__one_list_of_names() -> None:
    """`__all__`, the table of rooms and the imports for type checkers name the same things from the same rooms."""
    tree = ast.parse(Path(str(vit_finetune.__file__)).read_text(encoding="utf-8"))
    checked = {}
    for block in (node for node in tree.body if isinstance(node, ast.If)):
        for node in (statement for statement in block.body if isinstance(statement, ast.ImportFrom)):
            room = str(node.module).removeprefix("vit_finetune.")
            checked.update({alias.name: room for alias in node.names})
    assert checked == vit_finetune._ROOM_OF
    assert sorted(checked) == vit_finetune.__all__
    assert set(vit_finetune.__all__) <= set(dir(vit_finetune))


@pytest.mark.parametrize("name", vit_finetune.__all__)
def test_api__every_name_is_there(name: str) -> None:
    """Every public name can be fetched, is a function or class, and is documented."""
    value = getattr(vit_finetune, name)
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert inspect.getdoc(value)


def test_api__unknown_name() -> None:
    """An unknown name is an AttributeError, so that hasattr() and editors work."""
    with pytest.raises(AttributeError, match="no attribute 'create_modl'"):
        vit_finetune.create_modl  # noqa: B018


def test_api__finetune_is_the_function_whatever_was_imported_first() -> None:
    """Importing the module `vit_finetune.finetune` does not hide the function of the same name."""
    importlib.import_module("vit_finetune.finetune")
    assert inspect.isfunction(vit_finetune.finetune)


def test_api__runs_as_a_module() -> None:
    """`python -m vit_finetune --help` is the command line, as launchers start it."""
    done = subprocess.run([sys.executable, "-m", "vit_finetune", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Commands:" in done.stdout

"""Recipes: found by path, by name and by run folder; what is no recipe is said to be none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_finetune import recipe
from vit_finetune.common.errors import RequestError
from vit_finetune.recipe import find_recipe, read_recipe, read_yaml, recipe_of_pictures, write_yaml


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two recipes that come with the package."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name in ("quickstart", "image_folder"):
        (folder / f"{name}.yaml").write_text(f"run: {{dir: runs/{name}}}\n")
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    monkeypatch.setattr(recipe, "shipped_recipes", lambda: found)
    return folder


def test_find_recipe__by_path_name_and_run_folder(shipped: Path, tmp_path: Path) -> None:
    """A file is itself, a shipped recipe goes by its name with or without .yaml, a run folder means its config."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    assert find_recipe(mine) == mine
    assert find_recipe(str(run)) == run / "config.yaml"
    assert find_recipe("quickstart") == shipped / "quickstart.yaml"
    assert find_recipe("image_folder.yaml") == shipped / "image_folder.yaml"


def test_find_recipe__a_file_comes_before_a_shipped_name(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own file wins over a shipped recipe of the same name."""
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("{}")
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("quikstart", "; did you mean 'quickstart'?"), ("zzz", ""), ("elsewhere/quickstart.yaml", "")],
)
def test_find_recipe__unknown(shipped: Path, name: str, hint: str) -> None:
    """An unknown name is answered with the shipped ones and the closest; a path is never taken for a name."""
    with pytest.raises(RequestError) as error:
        find_recipe(name)
    text = f"no recipe {name!r}: neither a file, nor a run folder, nor one of image_folder, quickstart"
    assert str(error.value).startswith(text)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: [a]", "{path} extends ['a']; give the name of a shipped recipe, or a file beside this one"),
        ("extends: a.yaml", "{path} extends a.yaml, which leads back to it"),
        ("train: [1", "{path} is not readable YAML: while parsing a flow sequence"),
        ("- a\n- b\n", "{path} holds no sections; a recipe is a mapping such as model: {{...}}, data: {{...}}"),
        ("", "{path} holds no sections; a recipe is a mapping such as model: {{...}}, data: {{...}}"),
        ("a: !!python/object/apply:os.system [true]", "{path} is not readable YAML: could not determine a constructor"),
    ],
)
def test_read_recipe__refuses(tmp_path: Path, text: str, message: str) -> None:
    """A file that is no YAML, holds no mapping or asks for code is refused in one line that names it."""
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(RequestError) as error:
        read_recipe(path)
    assert str(error.value).startswith(message.format(path=path))
    assert "\n" not in str(error.value)


def test_read_recipe__extends(shipped: Path, tmp_path: Path) -> None:
    """A recipe is laid key by key over a shipped one or a file beside it, over any number of levels."""
    (shipped / "image_folder.yaml").write_text("train: {epochs: 5, seed: 1}\nmodel: {overrides: {depth: 2, a: 1}}\n")
    (tmp_path / "base.yaml").write_text("extends: image_folder\ntrain: {steps: 7}\ndata: {root: x}\n")
    top = tmp_path / "top.yaml"
    top.write_text("extends: base.yaml\ndata: {source: beans}\nmodel: {overrides: {a: 3}}\n")
    assert read_recipe(top) == {
        "train": {"seed": 1, "steps": 7},  # steps take the place of epochs, a source that of a root
        "model": {"overrides": {"depth": 2, "a": 3}},
        "data": {"source": "beans"},
    }


def test_read_recipe__extends_a_name_before_a_run_of_that_name(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a recipe extends does not depend on the folder that it is used in."""
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    Path("quickstart", "config.yaml").write_text("run: {dir: wrong}")
    Path("mine.yaml").write_text("extends: quickstart")
    assert read_recipe("mine.yaml") == {"run": {"dir": "runs/quickstart"}}


def test_read_recipe__extends_each_other(tmp_path: Path) -> None:
    """Two recipes that extend each other are refused."""
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.yaml").write_text(f"extends: {other}.yaml")
    with pytest.raises(RequestError, match=r"b\.yaml extends a\.yaml, which leads back to it"):
        read_recipe(tmp_path / "a.yaml")


def test_read_recipe__extends_nothing(shipped: Path, tmp_path: Path) -> None:
    """An unknown base is answered as an unknown recipe is."""
    (tmp_path / "a.yaml").write_text("extends: quikstart")
    with pytest.raises(RequestError, match="no recipe 'quikstart'.*did you mean 'quickstart'"):
        read_recipe(tmp_path / "a.yaml")


def test_read_recipe__binary_file(tmp_path: Path) -> None:
    """A file that is no text, such as a checkpoint given by mistake, is refused in one line."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff\xfe\x00\x80" * 8)
    with pytest.raises(RequestError, match="is not readable YAML"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("no", "no"), ("off", "off"), ("yes", "yes"), ("true", True), ("False", False), ("trueish", "trueish")],
        *[("5e-4", 5e-4), ("1e3", 1e3), ("5", 5), ("-3", -3), (".5", 0.5), ("1.", 1.0), ("-.inf", float("-inf"))],
        *[
            ("'5e-4'", "5e-4"),
            ("1e", "1e"),
            ("v1.0", "v1.0"),
            ("2024-01-01", "2024-01-01"),
            ("null", None),
            ("~", None),
        ],
    ],
)
def test_yaml__plain_words(text: str, value: object) -> None:
    """Plain words mean what YAML 1.2 says, and every value is written so that it reads back equal."""
    got = read_yaml(text)
    assert got == value
    assert type(got) is type(value)
    assert read_yaml(write_yaml({"key": value})) == {"key": value}


def test_recipe_of_pictures__a_folder_of_pictures_goes_with_image_folder(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is no run is data, with a run folder of its name; names of numbers stay text in YAML."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "2024", "run", "quickstart"):
        Path(name).mkdir()
    Path("run", "config.yaml").write_text("{}")
    assert recipe_of_pictures("photos/") == ("image_folder", ["data.root=photos", "run.dir=runs/photos"])
    assert recipe_of_pictures("2024") == ("image_folder", ["data.root='2024'", "run.dir=runs/2024"])
    for name in ("run", "quickstart", "nothing", "nothing.yaml"):
        assert recipe_of_pictures(name) == (name, [])

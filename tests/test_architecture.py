"""The house stands: who may import whom, nothing happens at import, sizes, documentation, no dead option.

Everything here reads the sources with `ast` (imports inside functions included); only the start-up tests run the
package, in a process of their own. A rule that matters is a test, not a sentence.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vit_finetune"

# A room is a folder or a module directly below vit_finetune/; it may import itself and what stands here.
_ROOMS_BELOW = {
    "common": set(),
    "pages": {"common"},  # style, templates and charts of everything that is written as HTML
    "models": {"common"},
    "weights": {"common", "models"},
    "data": {"common"},
    "tuning": {"common", "models", "weights"},
    "training": {"common", "models", "weights"},
    "evaluation": {"common", "models", "weights"},
    "export": {"common", "models", "weights"},
    "shipped": {"common"},
    "recipe": {"common", "shipped"},
    "config": {"common", "recipe"},
}
_ALL_ROOMS = set(_ROOMS_BELOW)
MAY_IMPORT: dict[str, set[str]] = {
    **_ROOMS_BELOW,
    "assembly": _ALL_ROOMS,  # the joints that finetune() needs, so that it reads as a story
    "pictures": _ALL_ROOMS,  # labelled pictures of a run, for what scores finished models
    "predictor": _ALL_ROOMS | {"pictures"},
    "predict": _ALL_ROOMS | {"pictures", "predictor"},
    "exported": _ALL_ROOMS | {"predictor"},  # an ONNX file in the place of a finished model
    "shipping": _ALL_ROOMS | {"pictures", "predict"},  # export, proof, card, push of a finished model
    "explaining": _ALL_ROOMS | {"pictures", "predictor"},
    "abstaining": _ALL_ROOMS | {"pictures", "predict", "predictor"},
    "serve": _ALL_ROOMS | {"pictures", "predictor"},
    "report": _ALL_ROOMS | {"pictures", "predictor"},
    "ladder": _ALL_ROOMS | {"assembly", "pictures", "predict", "report"},
    "readout_run": _ALL_ROOMS | {"assembly", "pictures", "predict", "report"},
    "staging": _ALL_ROOMS,  # what finetune() does at the boundary of two stages
    "finetune": _ALL_ROOMS | {"assembly", "pictures", "ladder", "readout_run", "report", "staging"},
    "scaling": _ALL_ROOMS | {"assembly"},  # what a recipe needs on how many machines
    "soups": _ALL_ROOMS | {"pictures", "predict"},
    "preflight": _ALL_ROOMS | {"assembly", "pictures", "predict", "readout_run", "staging"},
    "sweeps": _ALL_ROOMS | {"assembly", "pictures", "predict", "finetune"},
    "migration": {"common", "config", "models", "recipe"},  # other trainers' arguments as recipes
    "doctor": {"common", "training", "weights"},  # what this installation can do
    "cli": _ALL_ROOMS
    | {"pictures", "predict", "predictor", "exported", "shipping", "finetune", "sweeps", "preflight"}
    | {"abstaining", "explaining", "serve", "report", "migration", "doctor", "scaling"},
    "__main__": {"cli"},
    "__init__": _ALL_ROOMS
    | {"pictures", "predict", "predictor", "shipping", "finetune", "preflight", "report", "soups", "sweeps"}
    | {"abstaining", "explaining"},
}
# Single arrows between siblings: (module, room).
EXTRA_ARROWS = {("training.loop", "evaluation")}

# Third-party libraries of the rooms that have to stay small, and the only modules that may know timm.
LIBRARIES = {
    "common": {"numpy", "filelock"},  # filelock: entries that processes share
    "models": {"torch", "einops"},
    "recipe": {"yaml", "pydantic", "pydantic_core"},
    "config": {"yaml", "pydantic"},
}
TIMM_MODULES = {"weights.sources", "weights.formats.timm", "training.optim", "data.transforms", "shipping.readers"}
INSIDE_FUNCTIONS_ONLY = {
    *("simplejpeg", "optuna", "transformers", "peft", "onnx", "onnxruntime", "onnxscript"),
    *("pytorch_grad_cam", "matplotlib", "pynvml"),
}
NO_FILES_NO_NETWORK = {"io", "os", "pathlib", "shutil", "socket", "tempfile", "urllib", "http"}

# Calls that a top-level statement may make: they build a value and touch nothing else.
PURE_CALLS = {
    *("Path", "dict", "dict.fromkeys", "frozenset", "list", "range", "set", "sorted", "str", "tuple", "zip"),
    *("NamedTuple", "NewType", "ParamSpec", "TypeVar", "MappingProxyType", "get_args", "namedtuple", "partial"),
    *("BeforeValidator", "ConfigDict", "Field", "PlainSerializer", "PrivateAttr", "WrapValidator", "field", "replace"),
    *("logging.getLogger", "re.compile", "struct.Struct", "typer.Argument", "typer.Option", "typer.Typer"),
    "StrEnum",
    "Query",  # fastapi's, a description of a parameter
}
PURE_METHODS = {"items", "split", "keys", "values", "join"}
TOP_LEVEL_EXCEPTIONS = {
    ("__init__", "sys.modules[__name__].__class__ = _Package"),
    ("cli.starting", "app.add_typer(recipes, name='recipes')"),
}

MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 45  # a screen of code; its signature and what documents it are not counted
LONG_FUNCTIONS = {"finetune.finetune"}  # the one long function: the story of a run
MAX_SCRIPT_LINES = 60

# A verb joins with its issue, whole.
VERBS = {
    *("train", "check", "plan", "sweep", "evaluate", "predict", "explain", "embed", "serve", "report", "compare"),
    *("export", "push", "inspect", "convert", "models", "recipes", "doctor", "completion"),
}
HEAVY = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "pydantic", "rich", "numpy")


class Module(NamedTuple):
    """A module of the package: its name below vit_finetune, its text and its tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder or module directly below vit_finetune."""
        return self.name.split(".")[0]


class Import(NamedTuple):
    """One imported module: its full name, its line, and whether it is imported inside a function."""

    name: str
    line: int
    inside_function: bool


@cache
def modules() -> tuple[Module, ...]:
    """Read all modules of the package; a folder's `__init__` goes by the folder's name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found.append(Module(name, text, ast.parse(text, str(path))))
    return tuple(found)


def imports(node: ast.AST, *, inside_function: bool = False) -> Iterator[Import]:
    """Yield every import below a node; `from vit_finetune import x` counts as vit_finetune.x."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, inside_function)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import; write the full name"
            for alias in child.names if child.module == "vit_finetune" else child.names[:1]:
                name = f"vit_finetune.{alias.name}" if child.module == "vit_finetune" else str(child.module)
                yield Import(name, child.lineno, inside_function)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, inside_function=inside_function or is_function)


def libraries(module: Module) -> Iterator[Import]:
    """Yield the imports of a module that are neither ours nor the standard library's."""
    for found in imports(module.tree):
        if found.name.split(".")[0] not in {"vit_finetune", *sys.stdlib_module_names}:
            yield found


def functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Yield every class, function and method with its dotted name, not the functions inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from functions(child, prefix)


def test_layers__arrows_point_down() -> None:
    """Every import of ours, function-level ones included, follows the table; an unknown room must be entered first."""
    wrong = []
    for module in modules():
        assert module.room in MAY_IMPORT, f"{module.name}: a new room; enter it into MAY_IMPORT, design first"
        for found in imports(module.tree):
            target = found.name.split(".")[1:] if found.name.startswith("vit_finetune") else []
            if not target or target[0] in {module.room, "__version__"}:
                continue
            if target[0] not in MAY_IMPORT[module.room] and (module.name, target[0]) not in EXTRA_ARROWS:
                wrong.append(f"{module.name}:{found.line} imports {found.name}")
    assert not wrong, "arrows that do not point down:\n" + "\n".join(wrong)


def test_layers__libraries_stay_in_their_rooms() -> None:
    """Three modules know timm, optional libraries are imported inside functions, common and models stay small."""
    wrong = []
    for module in modules():
        for found in libraries(module):
            library = found.name.split(".")[0]
            place = f"{module.name}:{found.line} imports {found.name}"
            if library == "timm" and module.name not in TIMM_MODULES:
                wrong.append(f"{place}; timm belongs to {sorted(TIMM_MODULES)}")
            if library in INSIDE_FUNCTIONS_ONLY and not found.inside_function:
                wrong.append(f"{place} at the top; import it inside the function that needs it")
            if module.room in LIBRARIES and library not in LIBRARIES[module.room]:
                wrong.append(f"{place}; {module.room} knows {sorted(LIBRARIES[module.room])} only")
    assert not wrong, "\n".join(wrong)


def test_layers__the_network_knows_no_files() -> None:
    """models/ imports nothing that reads files or speaks to a network."""
    for module in modules():
        if module.room == "models":
            names = {found.name.split(".")[0] for found in imports(module.tree)}
            assert not names & NO_FILES_NO_NETWORK, f"{module.name} imports {names & NO_FILES_NO_NETWORK}"


def impure(statement: ast.stmt, ours: set[str]) -> Iterator[str]:
    """Yield what a statement at the top of a module or class does beyond defining and importing.

    Args:
        statement: the statement.
        ours: names of functions and classes of this package that it may call.
    """
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Pass():
            pass
        case ast.Expr(value=ast.Constant()):
            pass
        case ast.ClassDef(body=body):
            for inner in body:
                yield from impure(inner, ours)
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=[]):
            pass
        case ast.If() if ast.unparse(statement.test) == "__name__ == '__main__'":
            pass
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if not all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                yield f"{statement.lineno}: {ast.unparse(statement)}"
            for call in (node for node in ast.walk(statement) if isinstance(node, ast.Call)):
                name = ast.unparse(call.func)
                is_method = isinstance(call.func, ast.Attribute) and call.func.attr in PURE_METHODS
                if name not in PURE_CALLS | ours and not is_method:
                    yield f"{statement.lineno}: calls {name}"
        case _:
            yield f"{statement.lineno}: {ast.unparse(statement).splitlines()[0]}"


def test_import__has_no_side_effects() -> None:
    """The top of every module only imports, defines and builds plain values."""
    ours = {
        node.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    wrong = [
        f"{module.name}:{what}"
        for module in modules()
        for statement in module.tree.body
        for what in impure(statement, ours)
        if (module.name, ast.unparse(statement)) not in TOP_LEVEL_EXCEPTIONS
    ]
    assert not wrong, "done at import:\n" + "\n".join(wrong)


def run_python(code: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return done.stdout


def test_start__import_is_light() -> None:
    """`import vit_finetune` and listing its names import no heavy library, so they answer at once."""
    code = f"import sys, vit_finetune; dir(vit_finetune); print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(code) == "[]\n"


def command_line_help() -> tuple[str, str]:
    """Return what `vit-finetune --help` prints, and the heavy libraries that it imports."""
    output = run_python(
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', [name for name in {HEAVY} if name in sys.modules]))\n"
        "sys.argv = ['vit-finetune', '--help']\n"
        "from vit_finetune.cli import main\n"
        "main()\n"
    )
    text, _, heavy = output.partition("HEAVY ")
    return text, heavy.strip()


def test_start__help_is_light() -> None:
    """`vit-finetune --help` imports no heavy library, so it answers at once."""
    _, heavy = command_line_help()
    assert heavy == "[]"


def test_cli__verbs_are_the_documented_ones() -> None:
    """The command line has exactly the verbs that the list names."""
    text, _ = command_line_help()
    verbs = re.findall(r"^  ([a-z][\w-]*)", text.partition("Commands:")[2], re.MULTILINE)
    assert set(verbs) == VERBS


def test_start__importing_every_module_changes_nothing() -> None:
    """Importing all modules leaves environment, logging, warning filters, threads and random numbers as they were."""
    names = [f"vit_finetune.{module.name}" for module in modules() if module.name not in {"__init__", "__main__"}]
    code = f"""
import importlib, logging, os, random, sys, warnings
import accelerate, datasets, huggingface_hub, numpy, pydantic, timm, torch, torchvision.transforms.v2

def state():
    return (dict(os.environ), list(logging.root.handlers), list(warnings.filters), torch.cuda.is_initialized(),
            torch.get_num_threads(), torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()))

before = state()
for name in {names}:
    importlib.import_module(name)
print([index for index, (old, new) in enumerate(zip(before, state(), strict=True)) if old != new])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_size__modules() -> None:
    """No module is longer than 300 lines."""
    long = {module.name: lines for module in modules() if (lines := module.text.count("\n")) > MAX_MODULE_LINES}
    assert not long, f"modules over {MAX_MODULE_LINES} lines: {long}"


def test_size__functions() -> None:
    """No function has more than 45 lines below its signature and documentation, `finetune()` excepted."""
    long = {}
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[ast.get_docstring(node) is not None :] or node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                if lines > MAX_FUNCTION_LINES and f"{module.name}.{node.name}" not in LONG_FUNCTIONS:
                    long[f"{module.name}.{node.name}"] = lines
    assert not long, f"functions over {MAX_FUNCTION_LINES} lines: {long}"


def test_documentation__everything_public_has_a_docstring() -> None:
    """Every module, and every class, function and method without a leading underscore, says what it is."""
    silent = [module.name for module in modules() if ast.get_docstring(module.tree) is None]
    for module in modules():
        for name, node in functions(module.tree, module.name):
            below = name.removeprefix(f"{module.name}.")
            if not any(part.startswith("_") for part in below.split(".")) and ast.get_docstring(node) is None:
                silent.append(name)
    assert not silent, f"without a docstring: {silent}"


def config_classes() -> list[ast.ClassDef]:
    """Return the sections of the configuration, wherever in config/ they stand."""
    found = [node for module in modules() if module.room == "config" for node in module.tree.body]
    return [node for node in found if isinstance(node, ast.ClassDef)]


def config_fields() -> set[tuple[str, str]]:
    """Return (section class, field) of every field of the configuration: annotated, public, in a class with a base."""
    return {
        (node.name, statement.target.id)
        for node in config_classes()
        if node.bases
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def test_config__every_field_is_read() -> None:
    """Every option of a recipe is read as an attribute somewhere outside config/: no dead option."""
    fields = config_fields()
    read = {
        node.attr
        for module in modules()
        if module.room not in {"config", "recipe"}
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    dead = sorted(f"{section}.{field}" for section, field in fields if field not in read)
    assert not dead, f"options that nobody reads: {dead}"


def test_config__every_field_is_documented() -> None:
    """Every option of a recipe is followed by its documentation; a section is documented by its class."""
    fields = config_fields()
    classes = config_classes()
    documented = set()
    for node in classes:
        for statement, following in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                is_section = ast.unparse(statement.annotation) in {section.name for section in classes}
                if is_text or is_section:
                    documented.add((node.name, statement.target.id))
    assert fields == documented, f"options without documentation: {sorted(fields - documented)}"


@pytest.mark.parametrize("script", sorted(ROOT.glob("recipes/*.py")), ids=lambda path: path.name)
def test_recipes__scripts_are_short_and_use_the_public_api(script: Path) -> None:
    """A script in recipes/ has at most 60 lines and imports from `vit_finetune` itself only, by public names."""
    text = script.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_SCRIPT_LINES
    api = next(module for module in modules() if module.name == "__init__")
    public = next(ast.literal_eval(node.value) for node in api.tree.body if ast.unparse(node).startswith("__all__ = "))
    for found in imports(ast.parse(text)):
        if found.name.startswith("vit_finetune."):
            assert found.name.removeprefix("vit_finetune.") in public, f"{script.name}:{found.line}: {found.name}"

"""The house rules: which module may import which, how long files are, what texts may not hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "unitroles"

# A module imports only modules that stand before it.
# fmt: off
ARROWS = [
    "errors", "options", "output", "config", "arguments", "progress", "memory", "probe", "wrappers",
    "precision", "trace", "split", "nodes", "functional", "graph", "hoist", "operations", "owners",
    "separable", "head", "session", "additive", "masks", "losses", "trees", "sweep", "criterion",
    "store", "data", "columns", "stability", "groups", "sampling", "activity", "roles", "agreement",
    "minima", "resolution", "draws", "evidence", "plans", "check", "choice", "collect", "retrieval",
    "uses", "resample", "confidence", "controls", "inquiry", "survey", "prepare", "baseline",
    "provenance", "labelled", "verdict", "frames", "signs", "taxonomy", "members", "criteria",
    "relations", "analysis", "ablation", "drawing", "plots", "weights", "library", "hub", "models",
    "tables", "texts", "inputs", "layout", "evidence_text", "text", "pace", "forecast", "cli",
    "zoo",
]
# fmt: on
NOT_IN_INIT = {"drawing", "plots", "cli", "zoo"}
PUBLIC_BESIDE_ALL = {"plots", "__version__", ""}  # "" is `import unitroles` itself

# fmt: off
NOT_AT_IMPORT = {
    "matplotlib", "plotly", "typer", "rich", "jinja2", "sklearn", "accelerate", "torchvision",
    "timm", "transformers", "datasets", "ray", "lightning", "torch_pruning",
}
# fmt: on

SOURCES = sorted(PACKAGE.rglob("*.py"))
SOURCE_NAMES = [str(path.relative_to(PACKAGE)) for path in SOURCES]
TEXTS = sorted(p for p in SRC.rglob("*") if p.suffix in {".py", ".toml", ".html", ".css", ".js"})
TEXT_NAMES = [str(path.relative_to(SRC)) for path in TEXTS]


class Import(NamedTuple):
    """An imported name: `from a.b import c` is (a, b, c), `import a.b` is (a, b, "")."""

    line: int
    name: tuple[str, ...]
    lazy: bool


def walk(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it stands inside a function."""
    yield node, lazy
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from walk(child, lazy)


def imports(file: str, source: str) -> Iterator[Import]:
    """What a module at `file` in the package imports, also as an attribute of `unitroles`."""
    package = ["unitroles", *Path(file).parent.parts]
    nodes = list(walk(ast.parse(source)))
    roots = set()  # the names that stand for the package itself
    for node, lazy in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, (*alias.name.split("."), ""), lazy)
                if alias.name == "unitroles" or (
                    alias.name.startswith("unitroles.") and alias.asname is None
                ):
                    roots.add(alias.asname or "unitroles")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield Import(node.lineno, (*base, alias.name), lazy)
    for node, lazy in nodes:
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in roots
        ):
            yield Import(node.lineno, ("unitroles", node.attr), lazy)


def forbidden(file: str, source: str, public: set[str]) -> list[str]:
    """The imports of `source` that break the rules, as messages."""
    own = Path(file).parts[0].removesuffix(".py")
    if own != "__init__" and own not in ARROWS:
        return [
            f"{file}: module {own!r} has no place yet; add it to ARROWS in tests/test_house.py, "
            f"after everything that it imports"
        ]
    found = []
    for line, name, lazy in imports(file, source):
        if name[0] != "unitroles" or name[1] == own:
            continue
        top = name[1] if name[1] in ARROWS else ""
        if own == "__init__":
            allowed = top != "" and top not in NOT_IN_INIT
        elif own == "zoo":
            public_name = len(name) == 2 and name[1] in public | PUBLIC_BESIDE_ALL
            allowed = public_name or top == "plots"
        elif top == "":
            allowed = own == "cli"  # elsewhere importing the package from inside is a cycle
        else:
            earlier = ARROWS.index(top) < ARROWS.index(own)
            allowed = earlier or ((own, top) == ("cli", "zoo") and lazy)
        if not allowed:
            target = ".".join(name).rstrip(".")
            found.append(f"{file}:{line}: {own} may not import {target}")
    return found


@pytest.mark.parametrize(
    ("file", "source", "good"),
    [
        ("split.py", "from .errors import X", True),
        ("split.py", "from . import errors", True),
        ("split.py", "import unitroles.errors", True),
        ("split.py", "import torch\nfrom torch import nn", True),
        ("errors.py", "from .split import X", False),
        ("errors.py", "from . import split", False),
        ("errors.py", "import unitroles.split", False),
        ("errors.py", "from unitroles.split import X", False),
        ("errors.py", "def f():\n    from .split import X", False),
        ("analysis.py", "from . import analyze", False),
        ("analysis.py", "import unitroles", False),
        ("analysis.py", "from .zoo.settings import X", False),
        ("__init__.py", "from .analysis import analyze", True),
        ("__init__.py", "from . import plots", False),
        ("__init__.py", "def f():\n    from . import cli", False),
        ("cli.py", "import unitroles as ur\nur.analyze", True),
        ("cli.py", "def f():\n    from .zoo import X", True),
        ("cli.py", "from .zoo import X", False),
        ("zoo/__init__.py", "from .settings import X", True),
        ("zoo/fit.py", "from . import settings", True),
        ("zoo/fit.py", "from .. import analyze", True),
        ("zoo/fit.py", "import unitroles as ur\nur.analyze, ur.plots", True),
        ("zoo/fit.py", "from unitroles.plots import X", True),
        ("zoo/fit.py", "import unitroles as ur\nur.retrieval", False),
        ("zoo/fit.py", "from unitroles import retrieval", False),
        ("zoo/fit.py", "from ..retrieval import X", False),
        ("zoo/fit.py", "import unitroles.retrieval", False),
        ("zoo/fit.py", "from unitroles.cli import main", False),
        ("stray.py", "import torch", False),
    ],
)
def test_the_rule_tells_good_imports_from_bad(file: str, source: str, good: bool) -> None:
    assert (forbidden(file, source, public={"analyze"}) == []) is good


def test_a_new_module_is_told_where_to_go() -> None:
    (message,) = forbidden("stray.py", "", public=set())
    assert "add it to ARROWS in tests/test_house.py" in message


def test_files_were_found() -> None:
    assert {"__init__.py", "analysis.py", "roles.py"} <= set(SOURCE_NAMES)
    assert set(SOURCES) <= set(TEXTS)


@pytest.mark.parametrize("file", SOURCE_NAMES)
def test_arrows_point_one_way(file: str) -> None:
    import unitroles

    source = (PACKAGE / file).read_text(encoding="utf-8")
    assert forbidden(file, source, public=set(unitroles.__all__)) == []


def test_the_reference_needs_only_torch_and_numpy() -> None:
    source = (ROOT / "tests" / "reference.py").read_text(encoding="utf-8")
    found = {name[0] for _, name, _ in imports("reference.py", source)}
    assert found & {"torch", "numpy"}
    assert found - sys.stdlib_module_names <= {"torch", "numpy"}


def test_every_public_name_is_there_whatever_was_imported_before() -> None:
    code = (
        "import pkgutil, importlib, unitroles as ur; "
        "[importlib.import_module(f'unitroles.{m.name}') for m in pkgutil.iter_modules(ur.__path__)"
        " if not m.ispkg]; print(*(type(getattr(ur, name)).__name__ for name in ur.__all__))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "module" not in run.stdout.split()
    assert "function" in run.stdout.split()


def test_the_command_line_shows_its_help_without_torch() -> None:
    code = "import sys, unitroles.cli; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_light_install_analyses() -> None:
    """The extras, and what only figures, the report and the command line need, are shut out."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(NOT_AT_IMPORT)!r})); "
        "import torch, unitroles as ur; x, y = torch.randn(40, 4), torch.arange(40) % 2; "
        "net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2));"
        "found = ur.analyze(net, (x[:20], y[:20]), (x[20:], y[20:]), progress=False); "
        "print(found.layer, len(found.to_frame()), len(ur.layers(net, x[:2])))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["1", "12", "2"], run.stderr


def test_importing_the_package_is_light_and_silent() -> None:
    code = (
        "import sys, unitroles; [getattr(unitroles, name) for name in unitroles.__all__]; "
        "print(unitroles.__file__, *{m.split('.')[0] for m in sys.modules})"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import sys; sys.path.insert(0, {str(SRC)!r}); {code}",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    file, *modules = run.stdout.split()
    assert Path(file) == PACKAGE / "__init__.py"
    assert "numpy" in modules
    assert set(modules) & NOT_AT_IMPORT == set()


@pytest.mark.parametrize("file", TEXT_NAMES)
def test_no_file_is_longer_than_400_lines(file: str) -> None:
    assert len((SRC / file).read_text(encoding="utf-8").splitlines()) <= 400


# Put together here, or this file would hold what it looks for.
UNWANTED = re.compile(
    r"(?<![\w.])/(?:" + "|".join(["work", "root", "home"]) + r")/|\b(?:TO" + r"DO|FIX" + r"ME)\b"
)


def committed() -> list[Path]:
    """The files git has or would take; in an unpacked archive, those of the usual places."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    except OSError:  # no git on this machine
        names = []
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    if not files:
        folders = ["src", "tests", "docs", "benchmarks", ".ci"]
        files = [*ROOT.glob("*"), *(p for folder in folders for p in (ROOT / folder).rglob("*"))]
    return [path for path in files if path.is_file() and "__pycache__" not in path.parts]


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # a picture or an archive
        return ""


@pytest.mark.parametrize(
    "text", ["see /wo" + "rk/x", '"/ro' + 'ot/.x"', "# TO" + "DO: x", "FIX" + "ME"]
)
def test_unwanted_texts_are_seen(text: str) -> None:
    assert UNWANTED.search(text)
    assert not UNWANTED.search("https://example.org/wo" + "rk/x, framework/, home, TO" + "DOS")


def test_no_text_names_a_machine_or_unfinished_work() -> None:
    files = committed()
    assert {"pyproject.toml", "Makefile", "conftest.py"} <= {path.name for path in files}
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if UNWANTED.search(line)
    ]
    assert found == []

"""The house rules: which module may import which, how long files are, what texts may not hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "unitroles"

PUBLIC_NAMES = "the public names"
PUBLIC_BESIDE_ALL = {"plots", "__version__", ""}  # "" is `import unitroles` itself

# What a package may import of the others; each stands after everything that it imports.
GROUND = ("wording", "errors", "annotations", "options", "progress", "environment", "files")
MAY: dict[str, set[str]] = {
    "wording": set(),
    "errors": {"wording"},
    "annotations": {"wording", "errors"},
    "options": {"wording", "errors", "annotations"},
    "progress": {"wording", "errors", "annotations", "options"},
    "environment": {"wording", "errors", "annotations", "options", "progress"},
    "files": {"wording", "errors", "annotations", "options", "progress", "environment"},
    "roles": {"errors"},
    "stats": {*GROUND, "roles"},
    "results": {*GROUND, "roles", "stats"},
    "plots": {*GROUND, "roles", "stats", "results"},
    "report": {*GROUND, "roles", "stats", "results"},
    "model": {*GROUND},
    "data": {*GROUND, "model"},
    "graph": {*GROUND},
    "rewrite": {*GROUND, "model", "graph"},
    "heads": {*GROUND, "model", "graph", "rewrite"},
    "engine": {*GROUND, "model", "graph", "rewrite", "heads"},
    "curves": {*GROUND, "roles", "stats", "model", "data", "engine"},
    "resampling": {*GROUND, "roles", "stats", "model", "engine", "curves"},
}
MAY["analysis"] = {*MAY}
MAY["cost"] = {*MAY}
MAY["sources"] = {*GROUND}
MAY["zoo"] = {*GROUND, PUBLIC_NAMES}
MAY["paper"] = {*GROUND, PUBLIC_NAMES, "zoo", "results", "plots"}
MAY["cli"] = {*GROUND, PUBLIC_NAMES}
MAY["__init__"] = {*MAY} - {"plots", "report", "sources", "zoo", "paper", "cli"}
# Imported inside the functions that need them: each command loads what it runs, a result its face.
LAZILY = {"cli": {"report", "results", "sources", "paper"}, "results": {"plots", "report"}}
WITHOUT_TORCH = ("roles", "stats", "results", "plots", "report")
MOST_MODULES, MOST_LINES = 9, 500

# The public verbs, whose arguments are the user's.
MANY_PARAMETERS = {
    "analyze", "analyze_layers", "plan", "single_unit_ablation", "cumulative_ablation",
}  # fmt: skip
TOO_COMPLEX: set[str] = set()
# fmt: off
NOT_AT_IMPORT = {
    "matplotlib", "typer", "rich", "sklearn", "accelerate", "torchvision", "timm", "transformers",
    "datasets",
}
# fmt: on
EXTRAS = ("vision", "hf", "zoo")
IMPORT_NAMES = {"scikit-learn": "sklearn", "tomli-w": "tomli_w"}

SOURCES = sorted(PACKAGE.rglob("*.py"))
SOURCE_NAMES = [str(path.relative_to(PACKAGE)) for path in SOURCES]
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
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


def package_of(file: str) -> str:
    """The package of a module; a file of the ground is its own."""
    return Path(file).parts[0].removesuffix(".py")


def forbidden(file: str, source: str, public: set[str]) -> list[str]:
    """The imports of `source` that break the rules, as messages."""
    own = package_of(file)
    if own not in MAY:
        return [f"{file}: package {own!r} has no place yet; add it to MAY in tests/test_house.py"]
    found = []
    for line, name, lazy in imports(file, source):
        if name[0] != "unitroles" or name[1] == own:
            continue
        target = name[1] if name[1] in MAY and name[1] != "__init__" else PUBLIC_NAMES
        if target in public and len(name) == 2:
            target = PUBLIC_NAMES
        allowed = target in MAY[own] or (lazy and target in LAZILY.get(own, ()))
        if target == PUBLIC_NAMES:
            allowed = allowed and name[1] in public | PUBLIC_BESIDE_ALL
        elif target == "plots" and len(name) == 2:
            allowed = allowed or PUBLIC_NAMES in MAY[own]
        if not allowed:
            found.append(f"{file}:{line}: {own} may not import {'.'.join(name).rstrip('.')}")
    return found


def modules() -> dict[str, ast.Module]:
    """The trees of all modules by dotted name; a package by its own."""
    trees = {}
    for path in SOURCES:
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


MODULES = modules()


def defined(tree: ast.Module) -> set[str]:
    """The names that a module makes itself."""
    names: set[str] = set()
    for node in ast.walk(ast.Module([n for n in tree.body if not is_import(n)], [])):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def variants(name: str) -> set[str]:
    """The plural of a module's name, and what looks like an adjective or a verb of it."""
    stem = name.removesuffix("e").removesuffix("y")
    return {f"{name}s", f"{name}es"} | {
        f"{stem}{end}" for end in ("ies", "al", "ed", "ing", "ive", "able", "er", "ion", "ions")
    }


@pytest.mark.parametrize(
    ("file", "source", "good"),
    [
        ("model/borrow.py", "from unitroles.errors import X", True),
        ("model/borrow.py", "from .forward import X", True),
        ("model/borrow.py", "from .. import errors", True),
        ("model/borrow.py", "import unitroles.errors", True),
        ("model/borrow.py", "import torch\nfrom torch import nn", True),
        ("model/borrow.py", "from unitroles.engine.plan import X", False),
        ("model/borrow.py", "def f():\n    from unitroles.engine.plan import X", False),
        ("model/borrow.py", "import unitroles.engine.plan", False),
        ("model/borrow.py", "from ..engine import plan", False),
        ("model/borrow.py", "from unitroles import roles", False),
        ("errors.py", "from unitroles.wording import X", True),
        ("errors.py", "from .model.borrow import X", False),
        ("errors.py", "from . import options", False),
        ("analysis/analyze.py", "from unitroles.results.taxonomy import X", True),
        ("analysis/analyze.py", "from unitroles import analyze", False),
        ("analysis/analyze.py", "import unitroles", False),
        ("analysis/analyze.py", "from unitroles.zoo.settings import X", False),
        ("analysis/analyze.py", "from unitroles.cost.forecast import X", False),
        ("results/taxonomy.py", "def f():\n    from unitroles.report.text import X", True),
        ("results/taxonomy.py", "from unitroles.report.text import X", False),
        ("results/taxonomy.py", "def f():\n    from unitroles.engine.plan import X", False),
        ("__init__.py", "from unitroles.analysis.analyze import analyze", True),
        ("__init__.py", "from unitroles import plots", False),
        ("__init__.py", "def f():\n    from unitroles.cli import app", False),
        ("cli/app.py", "import unitroles as ur\nur.analyze", True),
        ("cli/app.py", "def f():\n    from unitroles.paper.reproduce import X", True),
        ("cli/app.py", "from unitroles.paper.reproduce import X", False),
        ("cli/app.py", "def f():\n    from unitroles.analysis.analyze import X", False),
        ("zoo/fit.py", "from .settings import X", True),
        ("zoo/fit.py", "from unitroles import analyze", True),
        ("zoo/fit.py", "import unitroles as ur\nur.analyze, ur.plots", True),
        ("zoo/fit.py", "from unitroles.files import X", True),
        ("zoo/fit.py", "import unitroles as ur\nur.curves", False),
        ("zoo/fit.py", "from unitroles import curves", False),
        ("zoo/fit.py", "from ..curves.retrieval import X", False),
        ("zoo/fit.py", "from unitroles.cli.app import main", False),
        ("paper/fit.py", "from unitroles.zoo.settings import X", True),
        ("stray/fit.py", "import torch", False),
    ],
)
def test_the_rule_tells_good_imports_from_bad(file: str, source: str, good: bool) -> None:
    assert (forbidden(file, source, public={"analyze"}) == []) is good


def test_a_new_package_is_told_where_to_go() -> None:
    (message,) = forbidden("stray/fit.py", "", public=set())
    assert "add it to MAY in tests/test_house.py" in message


def test_files_were_found() -> None:
    assert {"__init__.py", "analysis/analyze.py", "roles.py"} <= set(SOURCE_NAMES)
    assert set(SOURCES) <= set(TEXTS)
    assert {package_of(name) for name in SOURCE_NAMES} == set(MAY)


def test_arrows_between_packages_form_no_circle() -> None:
    arrows = {package: may - {PUBLIC_NAMES} for package, may in MAY.items()}
    order = list(TopologicalSorter(arrows).static_order())
    assert order.index("errors") < order.index("engine") < order.index("analysis")


@pytest.mark.parametrize("file", SOURCE_NAMES)
def test_arrows_point_one_way(file: str) -> None:
    import unitroles

    source = (PACKAGE / file).read_text(encoding="utf-8")
    assert forbidden(file, source, public=set(unitroles.__all__)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_inside_a_package_form_no_circle(package: str) -> None:
    arrows: dict[str, set[str]] = {}
    for path in sorted((PACKAGE / package).glob("*.py")):
        file = str(path.relative_to(PACKAGE))
        names = [name for _, name, _ in imports(file, path.read_text(encoding="utf-8"))]
        inside = {name[2] for name in names if name[:2] == ("unitroles", package) and name[2:]}
        arrows[path.stem] = inside - {""}
    TopologicalSorter(arrows).prepare()  # raises CycleError


def test_a_circle_is_seen() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_small_and_says_what_it_is_for(package: str) -> None:
    files = [path for path in (PACKAGE / package).iterdir() if path.suffix == ".py"]
    assert 1 < len(files) <= MOST_MODULES + 1
    source = (PACKAGE / package / "__init__.py").read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(source))
    assert said is not None
    assert 3 <= len(said.splitlines()) <= 6
    assert "\nBegin with `" in said


@pytest.mark.parametrize("name", MODULES)
def test_names_are_imported_from_where_they_are_defined(name: str) -> None:
    found = []
    for node in ast.walk(MODULES[name]):
        if not isinstance(node, ast.ImportFrom) or node.module not in MODULES:
            continue
        faces = node.module in ("unitroles", "unitroles.plots")  # what users import from
        for alias in node.names:
            own = f"{node.module}.{alias.name}" in MODULES
            if not (own or faces or alias.name in defined(MODULES[node.module])):
                found.append(f"{alias.name} from {node.module}")
    assert found == []


def test_no_module_is_called_by_the_plural_or_the_adjective_of_another() -> None:
    names = {name.rpartition(".")[2] for name in MODULES} - {"unitroles", *PACKAGES}
    assert {(name, other) for name in names for other in names if other in variants(name)} == set()
    assert {"resampling", "models"} <= variants("resample") | variants("model")


def test_the_reference_needs_only_torch_and_numpy() -> None:
    source = (ROOT / "tests" / "support" / "reference.py").read_text(encoding="utf-8")
    found = {name[0] for _, name, _ in imports("reference.py", source)}
    assert found & {"torch", "numpy"}
    assert found - sys.stdlib_module_names <= {"torch", "numpy"}


# Like an environment without it; None in sys.modules would be taken for a broken module by SciPy.
NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocked())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh process, in which warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_every_public_name_is_there_whatever_was_imported_before() -> None:
    """No module hides a public name."""
    code = (
        "import pkgutil, importlib, unitroles as ur; "
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(ur.__path__, 'unitroles.')"
        "]; print(*(type(getattr(ur, name)).__name__ for name in ur.__all__))"
    )
    kinds = run(code).stdout.split()
    assert "module" not in kinds
    assert "function" in kinds


def test_the_command_line_shows_its_help_without_torch() -> None:
    code = "import sys, unitroles.cli.app; print('torch' in sys.modules)"
    assert run(code).stdout.strip() == "False"


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_results_are_read_drawn_and_said_where_torch_is_absent(package: str) -> None:
    names = [name for name in MODULES if name.split(".")[1:2] == [package]]
    code = f"{NO_TORCH}\nimport {', '.join(names)}; print('done')"
    assert run(code).stdout == "done\n"


def test_a_saved_result_opens_where_torch_is_absent(tmp_path: Path) -> None:
    import torch

    import unitroles as ur

    x, y = torch.arange(160.0).reshape(40, 4).sin(), torch.arange(40) % 2
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    evidence = ur.Evidence(floors=2, resplits=2, replicates=4)
    found = ur.analyze(net, (x[:20], y[:20]), (x[20:], y[20:]), evidence=evidence, progress=False)
    file = found.save(tmp_path / "a.nc")
    code = (
        f"{NO_TORCH}\nimport unitroles as ur\n"
        "print(ur.load(sys.argv[1]).summary().to_csv())\n"
        "from unitroles.cli.app import main\nsys.exit(main(['report', sys.argv[1]]))"
    )
    said = run(code, str(file)).stdout
    assert said.startswith(found.summary().to_csv())
    assert "overfitted" in said.removeprefix(found.summary().to_csv())


def test_a_light_install_analyses(tmp_path: Path) -> None:
    """The extras, and what only figures, the report and the command line need, are shut out."""
    script = ROOT / "tests" / "support" / "light.py"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(NOT_AT_IMPORT)!r})); "
        f"import runpy; runpy.run_path({str(script)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["1", "12", "2"], done.stderr


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


FIRST_CALLS = {
    "ur.Compute": {"torch", "numpy", "pandas", "xarray", "h5netcdf", "scipy"},
    "ur.Taxonomy, ur.load": {"torch", "h5netcdf", "h5py", "scipy"},
    "ur.plan(*given, layer='1')": {"pandas", "xarray", "h5netcdf", "h5py", "scipy"},
    "ur.analyze(*given, layer='1', progress=False)": {"h5netcdf", "h5py", "scipy"},
}
"""What a first call in a process leaves to the calls that need it: each takes its time."""


@pytest.mark.parametrize("call", FIRST_CALLS)
def test_a_first_call_loads_no_more_than_it_needs(call: str) -> None:
    code = f"import sys\nsys.path.insert(0, {str(SRC)!r})\nimport unitroles as ur\n"
    if "given" in call:
        code += (
            "import torch\ntorch.manual_seed(0)\n"
            "x, y = torch.randn(20, 4), torch.arange(20) % 2\n"
            "layers = torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)\n"
            "given = torch.nn.Sequential(*layers), (x, y), (x, y)\n"
        )
    code += f"{call}\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    modules = set(run.stdout.split())
    assert "unitroles" in modules
    assert modules & (FIRST_CALLS[call] | NOT_AT_IMPORT) == set()


@pytest.mark.parametrize("file", TEXT_NAMES)
def test_no_file_is_longer_than_the_cap(file: str) -> None:
    assert len((SRC / file).read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    ("rule", "exceptions"), [("PLR0913", MANY_PARAMETERS), ("C901", TOO_COMPLEX)]
)
def test_the_exceptions_of_the_caps_are_listed(rule: str, exceptions: set[str]) -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert set(re.findall(rf"def (\w+)\(.*# noqa: .*{rule}", sources)) == exceptions
    assert len(MANY_PARAMETERS | TOO_COMPLEX) < 12


def test_nothing_is_declared_that_nothing_imports() -> None:
    """Imports by name or by a string."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(d for name in EXTRAS for d in extras[name])]
    names = {re.split(r"[<>=\[; ]", line)[0] for line in declared}
    assert {"torch", "numpy", "scikit-learn"} <= names
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert [name for name in sorted(names) if not is_used(name, sources)] == []


def is_used(name: str, sources: str) -> bool:
    own = IMPORT_NAMES.get(name, name)
    return re.search(rf"(import|from) {own}\b|[\"']{own}[\"']", sources) is not None


ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")


def drawn() -> set[str]:
    """The modules in the tree of docs/ARCHITECTURE.md."""
    tree = ARCHITECTURE.split("```")[1]
    found, package = set(), ""
    for line in tree.splitlines():
        if match := re.match(r"  (\w+)/", line):
            package = f"{match[1]}/"
        elif match := re.match(r"  (\w+\.py)", line):
            found.add(match[1])
        elif match := re.match(r"    (\w+\.py)", line):
            found.add(package + match[1])
    return found


def test_the_tree_shows_every_module() -> None:
    assert drawn() == {name for name in SOURCE_NAMES if not name.endswith("__init__.py")}


def test_the_arrows_of_the_page_are_those_of_the_rule() -> None:
    ground, above = set(GROUND), {"all above": set[str]()}
    for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", ARCHITECTURE, re.MULTILINE):
        names, said = row[0].split(":")[0].split(", "), row[1].split(";")[0].split(", ")
        if names == ["ground"]:
            above["all above"] |= ground
        elif set(names) <= set(MAY):
            groups = {"ground": ground, **above}
            may = {one for name in said for one in groups.get(name, {name})}
            for name in names:
                assert MAY[name] - ground == may - ground, name
            above["all above"] |= set(names)
    assert {"roles", "engine", "analysis", "sources"} <= above["all above"]


def test_what_the_page_names_is_there() -> None:
    found = re.findall(r"`([\w/]+\.py)`|\| `(\w[\w`, ]*)` \| ([\w/., ]+) \|", ARCHITECTURE)
    assert len(found) > 20
    for file, values, places in found:
        if file:
            assert (PACKAGE / file).is_file() or (ROOT / file).is_file(), file
        names = {name for place in places.split(", ") if place for name in defined_in(place)}
        assert set(re.findall(r"\w+", values)) <= names, values


def defined_in(file: str) -> set[str]:
    return defined(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))


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

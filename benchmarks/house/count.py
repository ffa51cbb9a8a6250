"""Count a source tree, so that it can be compared before and after a change.

    python benchmarks/house/count.py [--ways] [SRC/PACKAGE ...]

One column a folder; without one, the tree this file stands in. Nothing of the tree is run. A way is
where one argument of the public `ENTRY` goes: through calls, under other names, in and out of
collections and fields, until only what is computed from it is left. A module lies on it if a
function of it takes the argument or reads it from a field, not if it passes on what holds it.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections import defaultdict
from importlib.util import resolve_name
from itertools import groupby, pairwise
from pathlib import Path

ENTRY, ARGUMENTS, WAY = "analyze", ("model", "train", "layer"), ": its way"
Definition = ast.FunctionDef | ast.ClassDef
Paths = frozenset[tuple[str, ...]]  # of fields, under which an argument lies in a value
NOTHING, ITSELF, DEPTH = Paths(), Paths([()]), 4
ANSWER = ast.Name("return")  # the name of what a function returns or yields
SOURCE = {ast.For: "iter", ast.comprehension: "iter", ast.withitem: "context_expr"}
GIVING = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.Return, ast.Yield)
COMPUTED = (ast.stmt, ast.comprehension, ast.Lambda, ast.BinOp, ast.Compare, ast.JoinedStr)
# Calls outside the tree whose answer is, or holds, what is given; others that put it somewhere.
PASSING = re.compile("list|tuple|dict|next|sorted|zip|enumerate|items|values|get|replace|enter_.*")
ADDING = re.compile("append|add|extend|update|insert|setdefault")
COMMON = frozenset(name for kind in (list, dict, set, str) for name in dir(kind))


class Tree:
    """The modules of a package, by their dotted names without the package's own."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self.texts: dict[str, str] = {}
        self.package: dict[str, str] = {}  # the folder of every module, with the tree's own name
        for path in sorted(folder.rglob("*.py")):
            *outer, last = path.relative_to(folder).with_suffix("").parts
            module = ".".join(outer if last == "__init__" else [*outer, last])
            self.texts[module] = path.read_text(encoding="utf-8")
            self.package[module] = ".".join([self.name, *outer])
        self.trees = {module: ast.parse(text) for module, text in self.texts.items()}
        self.faces = {m for m in self.texts if self.package[m] == f"{self.name}.{m}".strip(".")}
        # A face that defines nothing hands names on: it is no module and no arrow's end.
        defines = re.compile(r"^(class|def) (?!__)", re.MULTILINE).search
        self.modules = [m for m in self.texts if m not in self.faces or defines(self.texts[m])]
        self.imported = {module: self._imported(module) for module in self.trees}
        self.arrows = {module: self._arrows(module) for module in self.modules}

    def _imported(self, module: str) -> dict[str, str]:
        """Local name and target of every import from the tree, also inside functions."""
        found = {}
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                found |= {a.asname or a.name: a.name for a in node.names}
                found |= {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = resolve_name("." * node.level + (node.module or ""), self.package[module])
                found |= {a.asname or a.name: f"{base}.{a.name}" for a in node.names}
        parts = {name: target.partition(".") for name, target in found.items()}
        return {name: rest for name, (top, _, rest) in parts.items() if top == self.name}

    def home(self, target: str) -> tuple[str, str]:
        """The module that defines a dotted name, and what is left of the name there."""
        module, rest = target.strip("."), ""
        while module not in self.trees:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}".strip(".")
        first, _, more = rest.partition(".")
        if module in self.faces and first in self.imported[module]:
            return self.home(f"{self.imported[module][first]}.{more}")
        return module, rest

    def _arrows(self, module: str) -> set[str]:
        """The modules that it imports, or uses as an attribute of a package."""
        names = self.imported[module]
        parts = [dotted(node).partition(".") for node in ast.walk(self.trees[module])]
        uses = {f"{names[first]}.{rest}" for first, _, rest in parts if rest and first in names}
        homes = {self.home(target)[0] for target in {*names.values(), *uses}}
        return homes.intersection(self.modules) - {module}


def dotted(node: ast.AST) -> str:
    """`a.b.c` for such an expression, nothing for any other."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return base and f"{base}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def below(arrows: dict[str, set[str]], start: str) -> set[str]:
    """All that a node points at, directly or through others."""
    found, ahead = set[str](), [start]
    while ahead:
        more = arrows[ahead.pop()] - found
        found |= more
        ahead += more
    return found


def circles(arrows: dict[str, set[str]]) -> str:
    """How many sets of nodes reach each other, and which."""
    reach = {node: below(arrows, node) for node in arrows}
    found = {" ".join(sorted(n for n in reach[one] if one in reach[n])) for one in arrows} - {""}
    return "; ".join([str(len(found)), *sorted(found)])


def under(fields: list[tuple[str, Paths]]) -> Paths:
    """What a record holds in these fields."""
    return Paths((field, *p) for field, paths in fields for p in paths if len(p) < DEPTH)


class Way:
    """One walk with an argument of `ENTRY`, call by call in the order of the code.

    A collection holds what its items hold; a name keeps what it once held. Of a method only the
    name is known: where several classes have it, all of them are entered.
    """

    def __init__(self, tree: Tree, argument: str) -> None:
        self.tree = tree
        self.module = {n: module for module, body in tree.trees.items() for n in ast.walk(body)}
        self.named: dict[tuple[str, str], Definition] = {}
        self.methods: dict[str, list[Definition]] = defaultdict(list)
        for node, module in self.module.items():
            for part in node.body if isinstance(node, ast.Module | ast.ClassDef) else ():
                if isinstance(part, Definition) and isinstance(node, ast.Module):
                    self.named[module, part.name] = part
                elif isinstance(part, ast.FunctionDef):
                    self.methods[part.name].append(part)
        self.stays: dict[tuple[ast.AST, ast.AST], str] = {}  # by the places where it is handed on
        self.passed: dict[tuple[ast.AST, frozenset], Paths] = {}
        entry = self.named.get(tree.home(ENTRY))
        if isinstance(entry, ast.FunctionDef) and argument in [a.arg for a in entry.args.args]:
            self._enter(entry, entry, [], [(argument, ITSELF)])
        self.steps = [module for module, _ in groupby(self.stays.values())]

    def _enter(self, site: ast.AST, called: Definition, args: list, words: list) -> Paths:
        """Give a function or class its arguments; what its answer holds comes back."""
        if isinstance(called, ast.ClassDef):
            makers = [method for method in self.methods["__init__"] if method in called.body]
            if makers:
                return self._enter(site, makers[0], [NOTHING, *args], words)
            fields = [dotted(n.target) for n in called.body if isinstance(n, ast.AnnAssign)]
            return under([*zip(fields, args, strict=False), *words])
        rest = [called.args.vararg] * len(args) if called.args.vararg else []
        places = [place.arg for place in (*called.args.args, *rest)]
        names: dict[str, Paths] = defaultdict(Paths)
        for name, paths in [*zip(places, args, strict=False), *words]:
            names[name] |= paths
        taken = any(() in paths for paths in names.values())
        self.stays |= {(site, called): self.module[called]} if taken else {}
        key = (called, frozenset(names.items()))
        if key not in self.passed and any(names.values()):
            self.passed[key] = NOTHING
            for node in called.body:
                self._flow(node, names)
            self.passed[key] = names["self" if called.name == "__init__" else "return"]
        return self.passed.get(key, NOTHING)

    def _definitions(self, node: ast.expr, owner: Paths, names: dict) -> list[Definition]:
        """A function or class of the tree, or all methods of that name; the argument has none."""
        module, target = self.module[node], dotted(node)
        first, _, rest = target.partition(".")
        if first in self.tree.imported[module]:
            module, target = self.tree.home(f"{self.tree.imported[module][first]}.{rest}")
        if (module, target) in self.named and first not in names:
            return [self.named[module, target]]
        name = getattr(node, "attr", "")
        return [] if owner == ITSELF or name in COMMON else self.methods[name]

    def _call(self, node: ast.Call, names: dict[str, Paths]) -> Paths:
        owner = getattr(node.func, "value", node.func)
        base = self._flow(owner, names)
        self._read(node.func, base)
        args = [self._flow(arg, names) for arg in node.args]
        words = [(word.arg or "", self._flow(word.value, names)) for word in node.keywords]
        name = getattr(node.func, "attr", dotted(node.func))
        definitions = self._definitions(node.func, base, names)
        if not definitions and ADDING.fullmatch(name):
            self._hold(owner, NOTHING.union(*args), names)
        if not definitions and PASSING.fullmatch(name):
            return base.union(*args, under(words))
        answer = NOTHING
        for called in definitions:
            given = [base, *args] if called in self.methods[called.name] else args
            answer |= self._enter(node, called, given, words)
        return answer

    def _read(self, node: ast.expr, holds: Paths) -> Paths:
        found = Paths(path[1:] for path in holds if path[:1] == (getattr(node, "attr", None),))
        self.stays |= {(node, node): self.module[node]} if () in found else {}
        return found

    def _hold(self, target: ast.AST | None, paths: Paths, names: dict[str, Paths]) -> None:
        """A name, or a field of what it stands for, takes a value."""
        if isinstance(target, ast.Name):
            names[target.id] |= paths
        elif isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
            is_field = isinstance(target, ast.Attribute)
            self._hold(target.value, under([(target.attr, paths)]) if is_field else paths, names)
        for part in getattr(target, "elts", ()):
            self._hold(part, paths, names)

    def _assign(self, target: ast.AST | None, source: ast.expr, names: dict[str, Paths]) -> None:
        """Item by item where both sides say what they are, else all to all."""
        parts, given = getattr(target, "elts", []), getattr(source, "elts", [])
        if isinstance(source, ast.Call) and parts:
            name = getattr(source.func, "attr", dotted(source.func))
            given = source.args if name == "zip" else []
            target = parts[-1] if name in ("enumerate", "items") else target
        if parts and len(parts) == len(given):
            for part, one in zip(parts, given, strict=True):
                self._assign(part, one, names)
        else:
            self._hold(target, self._flow(source, names), names)

    def _flow(self, node: ast.AST, names: dict[str, Paths]) -> Paths:
        """Run a statement; what an expression holds."""
        if isinstance(node, ast.Name):
            return names.get(node.id, NOTHING)
        if isinstance(node, ast.Call):
            return self._call(node, names)
        if isinstance(node, ast.Attribute):
            return self._read(node, self._flow(node.value, names))
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            names = names.copy()
        place = "value" if isinstance(node, GIVING) else SOURCE.get(type(node), "")
        source = getattr(node, place, None)
        if source is not None:
            target = getattr(node, "target", getattr(node, "optional_vars", ANSWER))
            for one in getattr(node, "targets", [target]):
                self._assign(one, source, names)
        inner = [child for child in ast.iter_child_nodes(node) if child is not source]
        inner.sort(key=lambda child: not isinstance(child, ast.comprehension))  # loops first
        holds = [self._flow(child, names) for child in inner]
        return NOTHING if isinstance(node, COMPUTED) else NOTHING.union(*holds)


def count(folder: Path) -> dict[str, object]:
    """Every number by its name, and every way."""
    tree = Tree(folder)
    package, nodes = tree.package, [n for body in tree.trees.values() for n in ast.walk(body)]
    packages: dict[str, set[str]] = defaultdict(set)
    for module, targets in tree.arrows.items():
        packages[package[module]] |= {package[target] for target in targets} - {package[module]}
    said = [getattr(node.value, "value", None) for node in nodes if isinstance(node, ast.Expr)]
    texts = [text for text in said if isinstance(text, str)]
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(tree.texts.values())).readline)
    comments = [token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT]
    lines = [(len(text.splitlines()), module) for module, text in tree.texts.items()]
    found = {
        "modules": len(tree.modules),
        "faces, which only hand names on": len(tree.texts) - len(tree.modules),
        "packages": len(packages.keys() - {tree.name}),
        "lines": sum(number for number, _ in lines),
        "longest file": " ".join(map(str, max(lines))),
        "statements without docstrings": sum(isinstance(n, ast.stmt) for n in nodes) - len(texts),
        "words in docstrings": len(" ".join(texts).split()),
        "words in comments": len(" ".join(comments).split()),
        "arrows between modules": sum(map(len, tree.arrows.values())),
        "circles of modules": circles(tree.arrows),
        "arrows between packages": sum(map(len, packages.values())),
        "circles of packages": circles(packages),
    }
    for argument in ARGUMENTS:
        steps = Way(tree, argument).steps
        climbs = sum(a in below(tree.arrows, b) for a, b in pairwise(steps))
        found |= {
            f"{argument}: modules on its way": len(set(steps)),
            f"{argument}: packages on its way": len({package[module] for module in steps}),
            f"{argument}: steps back to a module passed before": len(steps) - len(set(steps)),
            f"{argument}: steps up to a module that imports the last": climbs,
            f"{argument}{WAY}": "\n" + " > ".join(steps),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Count source trees, one column a folder.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="SRC/PACKAGE")
    parser.add_argument("--ways", action="store_true", help="print every way step by step")
    given = parser.parse_args()
    own = Path(__file__).parents[2] / "src" / "unitroles"
    counted = [count(folder) for folder in given.folders or [own]]
    for name in counted[0]:
        if given.ways or not name.endswith(WAY):
            print(f"{name:<54}", *(f"{found[name]!s:>20}" for found in counted))


if __name__ == "__main__":
    main()

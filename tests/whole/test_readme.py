"""README.md is run from top to bottom: its python blocks in one namespace, its commands between."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

BLOCK = re.compile(
    r"(?P<skip><!-- not run: \S[^>]*-->\s*)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
SHELLS = {"console", "bash"}

# Runs in a process and a namespace of its own; `compile` names the README line in a traceback.
DRIVER = """
import json, subprocess, sys
for kind, line, source in json.load(sys.stdin):
    if kind == "python":
        exec(compile("\\n" * (line - 1) + source, "README.md", "exec"), globals())
    elif subprocess.run(source, shell=True, stdin=subprocess.DEVNULL).returncode:
        sys.exit(f"README.md, line {line}: this command failed: {source}")
"""


class Step(NamedTuple):
    kind: str  # "python" or "command"
    line: int
    source: str


def commands(body: str) -> list[tuple[int, str]]:
    """Commands of a shell block and their line offsets; beside prompts the rest is output."""
    prompts = re.search(r"^\$ ", body, re.MULTILINE) is not None
    found = []
    lines = iter(enumerate(body.splitlines()))
    for offset, line in lines:
        if prompts and not line.startswith("$ "):
            continue
        command = line.removeprefix("$ ")
        while command.endswith("\\"):
            command = command[:-1] + next(lines)[1].strip()
        found.append((offset, command))
    return found


def shell_commands(text: str) -> list[str]:
    """Every command of the text, also of the blocks that are not run."""
    blocks = [block for block in BLOCK.finditer(text) if block["language"] in SHELLS]
    return [command for block in blocks for _, command in commands(textwrap.dedent(block["body"]))]


def steps(text: str) -> list[Step]:
    """What of the text is to be run, in order: python blocks and `unitroles` commands."""
    found = []
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start("body")) + 1
        body = textwrap.dedent(block["body"])
        if block["skip"]:
            continue
        if block["language"] == "python":
            found.append(Step("python", first, body))
        elif block["language"] in SHELLS:
            found += [
                Step("command", first + offset, command)
                for offset, command in commands(body)
                if command.startswith("unitroles ")
            ]
    return found


def make_targets(text: str) -> set[str]:
    """The targets that the `make` commands of the text name."""
    lines = [command.split("#")[0] for command in shell_commands(text)]
    words = [word for line in lines if line.startswith("make ") for word in line.split()[1:]]
    return {word for word in words if "=" not in word and not word.startswith("-")}


def run(found: list[Step], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the steps in a new process in `folder`, with this interpreter's scripts first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env={**os.environ, "PATH": path},
        input=json.dumps(found),
        capture_output=True,
        text=True,
        timeout=1800,
    )


SMALL = """# Small

```python
x = 1
```

1. In a list:

   ```console
   $ make demo PYTHON=python3 # make nothing
   $ unitroles report a.nc \\
         --out b.html
   unitroles prints this line
   ```

<!-- not run: needs a network -->
```python
raise SystemExit("never")
```

<!-- not run: slow -->

```bash
make clean
unitroles reproduce imagenet
```

```text
unitroles is no command here
```

```bash
pip install unitroles
unitroles layers m
```

```python
assert x == 1
```
"""


def test_steps_of_a_small_readme() -> None:
    assert steps(SMALL) == [
        ("python", 4, "x = 1\n"),
        ("command", 11, "unitroles report a.nc --out b.html"),
        ("command", 34, "unitroles layers m"),
        ("python", 38, "assert x == 1\n"),
    ]
    assert make_targets(SMALL) == {"demo", "clean"}


def test_a_block_is_only_skipped_for_a_reason() -> None:
    assert len(steps("<!-- not run: -->\n```python\nx\n```\n")) == 1
    assert len(steps("<!-- not run: x -->\n\ntext\n\n```python\nx\n```\n")) == 1


def test_steps_share_namespace_and_folder(tmp_path: Path) -> None:
    good = [
        Step("python", 1, "from pathlib import Path\nPath('a').write_text('1')\nx = 2"),
        Step("command", 2, "cat a > b"),
        Step("python", 3, "print(x, Path('b').read_text())"),
    ]
    done = run(good, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 1\n", "")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("python", 7, "x = 1\n1 / 0"), 'File "README.md", line 8'),
        (Step("command", 7, "exit 3"), "README.md, line 7: this command failed: exit 3"),
    ],
)
def test_a_failing_step_is_named(step: Step, message: str, tmp_path: Path) -> None:
    done = run([step, Step("python", 9, "print('not reached')")], tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout == ""


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    assert make_targets((ROOT / "README.md").read_text("utf-8")) <= set(targets)


@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path) -> None:
    found = steps((ROOT / "README.md").read_text("utf-8"))
    assert {step.kind for step in found} == {"python", "command"}
    done = run(found, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md"])
def test_every_file_that_a_page_links_to_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    assert links or page == "docs/ARCHITECTURE.md"

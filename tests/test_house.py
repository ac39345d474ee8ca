"""The house itself: who may import whom, who may name a family, and how large a file may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foveate

PACKAGE = Path(foveate.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    ("errors", "terminal", "atomic_write", "machine", "ticking", "_version"),
    ("families",),
    ("bundle",),
    ("runtime",),
    ("modeling",),
    ("calibration", "export", "bench"),
    ("commands",),
    ("cli",),
)
"""Top-level modules from the lowest up; one imports its own floor and those below."""
FACE = ("__init__", "__main__")
FAMILY = re.compile(r"qwen2?[ _-]?vl|llava|\bvila", re.IGNORECASE)
FAMILY_FILES = re.compile(
    r"(families|modeling)/(qwen2_vl|llava\w*?|vila)(_\w+)?\.py"
    r"|families/__init__\.py|modeling/families\.py"
)
SLIM = (
    "foveate.runtime",
    "foveate.bundle",
    "foveate.families",
    "foveate.export.tensorrt.build",
    "foveate.calibration.evaluation.bundle",
    "foveate.calibration.evaluation.evaluate",
    "foveate.calibration.evaluation.table",
)


def name(path: Path) -> str:
    """A file as it stands in the package."""
    return path.relative_to(PACKAGE).as_posix()


def floor(module: str) -> int:
    """The floor of a top-level module."""
    return next(number for number, modules in enumerate(FLOORS) if module in modules)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Each module inside foveate that a file imports, wherever in it, and the name taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found: list[tuple[str, str]] = []
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports by a relative path"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                inside = PACKAGE / "/".join(whole.split(".")[1:])
                module = inside.is_dir() or inside.with_suffix(".py").is_file()
                found.append((whole, "") if module else (str(node.module), alias.name))
        yield from (pair for pair in found if pair[0].startswith("foveate."))


def is_private(dotted: str) -> bool:
    """Whether a dotted name leads through one that is private; the version's module is not."""
    parts = dotted.split(".")
    return any(part.startswith("_") and not part.endswith("__") for part in parts)


def test_no_file_imports_from_above() -> None:
    upwards = [
        f"{name(path)}: {module}"
        for path in FILES
        if (own := path.relative_to(PACKAGE).parts[0].removesuffix(".py")) not in FACE
        for module, _ in imports(path)
        if floor(module.split(".")[1]) > floor(own)
    ]
    assert not upwards


def test_no_file_takes_a_private_name_of_another_package() -> None:
    private = [
        f"{name(path)}: {module} {taken}"
        for path in FILES
        for module, taken in imports(path)
        if (PACKAGE / "/".join(module.split(".")[1:])).parent != path.parent
        and is_private(f"{module}.{taken}".replace("foveate._version", "foveate"))
    ]
    assert not private


def test_every_file_is_read_in_one_sitting() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_a_family_is_named_only_in_its_own_files_and_the_registries() -> None:
    named = [
        f"{name(path)}: {line.strip()}"
        for path in FILES
        if not FAMILY_FILES.fullmatch(name(path))
        for line in path.read_text(encoding="utf-8").splitlines()
        if FAMILY.search(line) or FAMILY.search(path.stem)
    ]
    assert not named


def test_there_are_at_most_ten_loose_files() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 10


COMMANDS = [f"foveate.commands.{path.stem}" for path in (PACKAGE / "commands").glob("[!_]*.py")]


@pytest.mark.parametrize("module", [*SLIM, *sorted(COMMANDS)])
def test_what_runs_bundles_needs_neither_torch_nor_onnx(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        f"import {module}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

"""The wheel, with the packages that it requires and no other: it runs a bundle."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.metadata import packages_distributions as find_modules
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle
from tests.conftest import Sample

ROOT = Path(__file__).parent.parent

ANSWER = """
import json, sys
for name in json.loads(sys.argv[4]):
    sys.modules[name] = None
import foveate
for name in ("torch", "transformers", "onnx", "onnxscript"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(name + " is installed")
with foveate.Pipeline.load(sys.argv[1]) as pipe:
    answer = pipe.generate(sys.argv[2], images=[sys.argv[3]], keep=0.5)
print(json.dumps({"text": answer.text, "from": foveate.__file__, "kept": answer.visual.kept}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT))
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "foveate",
        f"{wheel.name.split('-py3')[0]}.dist-info",
    }
    shipped = {name for name in names if name.startswith("foveate/")}
    written = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.toml", "py.typed")
        for path in (ROOT / "foveate").rglob(pattern)
    }
    assert shipped == written


def test_the_wheel_runs_a_bundle_without_torch(
    wheel: Path, nano_bundle: Bundle, samples: list[Sample], tmp_path: Path
) -> None:
    place = tmp_path / "place"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(place),
        str(wheel),
    )
    foveate = next(iter(Distribution.discover(name="foveate", path=[str(place)])))
    required = {"foveate", *requirements(foveate.requires or [])}
    assert {"numpy", "onnxruntime"} <= required
    assert not {"torch", "safetensors"} & required
    absent = [
        module
        for module, names in find_modules().items()
        if not required & {canonical(name) for name in names}
    ]
    assert {"torch", "transformers", "safetensors"} <= set(absent)
    sample = next(sample for sample in samples if sample.task == "letter")
    root, picture = str(nano_bundle.root), str(sample.image)
    words = (sample.question, picture, json.dumps(absent))
    answer = json.loads(run(sys.executable, "-c", ANSWER, root, *words, place=place))
    assert answer["text"] == sample.answer
    assert answer["from"].startswith(str(place))
    script = str(place / "bin" / "foveate")
    assert json.loads(run(script, "inspect", root, "--json", place=place))


def canonical(name: str) -> str:
    """A package's name as all its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(lines: Iterable[str]) -> set[str]:
    """The packages that requirements name, and those that these require, extras left out."""
    found: set[str] = set()
    todo = list(lines)
    while todo:
        line = todo.pop()
        name = canonical(re.split(r"[^\w.-]", line)[0])
        if name in found or "extra ==" in line:
            continue
        found.add(name)
        try:
            todo += distribution(name).requires or []
        except PackageNotFoundError:
            continue
    return found


def run(*command: str, place: Path | None = None) -> str:
    """Run a command, with `place` in front of what is installed; its output, or a failure that shows it."""
    environment = {**os.environ, "PYTHONPATH": str(place)} if place else None
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout

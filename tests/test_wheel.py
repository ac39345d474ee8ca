"""The wheel, installed alone where there is no torch: it runs a bundle."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle
from tests.conftest import Sample

ROOT = Path(__file__).parent.parent

ANSWER = """
import json, sys, time
began = time.perf_counter()
import foveate
imported = time.perf_counter() - began
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
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", str(environment))
    python = str(environment / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    run(python, "-m", "pip", "install", "-q", "--no-input", "-c", constraints, str(wheel))
    sample = next(sample for sample in samples if sample.task == "letter")
    output = run(
        python,
        "-c",
        ANSWER,
        str(nano_bundle.root),
        sample.question,
        str(sample.image),
        cwd=tmp_path,
    )
    answer = json.loads(output)
    assert answer["text"] == sample.answer
    assert answer["from"].startswith(str(environment))
    script = str(environment / "bin" / "foveate")
    assert json.loads(run(script, "inspect", str(nano_bundle.root), "--json", cwd=tmp_path))


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a command; its output, or a failure that shows it."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout

"""The doctor: what it says of machines that are not this one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from foveate.commands import doctor
from tests.command import invoke

if sys.version_info >= (3, 11):
    import tomllib

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
CPU = {"CPUExecutionProvider": "runs"}
CUDA = {"CUDAExecutionProvider": "runs", **CPU}


def packages(**changes: str | None) -> dict[str, dict[str, str | None]]:
    """All packages installed but onnxruntime-gpu, with changes ("_" stands for "-")."""
    all_there = {
        extra: dict.fromkeys(names, "1.0") | ({"onnxruntime-gpu": None} if extra == "gpu" else {})
        for extra, names in doctor.PACKAGES.items()
    }
    for name, found in changes.items():
        (extra,) = (extra for extra in all_there if name.replace("_", "-") in all_there[extra])
        all_there[extra][name.replace("_", "-")] = found
    return all_there


def test_text_and_json() -> None:
    result = invoke("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    for word in (
        "this machine",
        "packages",
        "CPUExecutionProvider",
        "telemetry",
        "TensorRT engines",
    ):
        assert word in result.stdout
    facts = json.loads(invoke("doctor", "--json").stdout)
    assert facts["providers"]["CPUExecutionProvider"] == "runs"
    assert facts["telemetry"] is False
    assert facts["packages"]["export"]["torch"]
    assert {one["what"]: one["able"] for one in facts["abilities"]}["run on the CPU"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")
def test_packages_are_those_of_the_project() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    del wanted["dev"]
    elsewhere = ("foveate[", "python_version <")
    names = {
        extra: tuple(
            re.split(r"[<>=~!\[]", one)[0]
            for one in lines
            if not any(word in one for word in elsewhere)
        )
        for extra, lines in wanted.items()
    }
    assert names == doctor.PACKAGES


def test_the_tiny_graph_is_an_onnx_model() -> None:
    model = onnx.load_model_from_string(doctor.TINY)
    onnx.checker.check_model(model)


def test_cpu_only() -> None:
    found = doctor.find_abilities(packages(), CPU, False)
    assert found["run on the CPU"][0]
    assert found["export, demo, verify --checkpoint"][0]
    assert found["run on CUDA"] == (False, "no NVIDIA GPU was found (nvidia-smi lists none)")
    assert not found["run TensorRT engines"][0]
    assert found["build TensorRT engines"] == (True, "tensorrt-rtx 1.0, for RTX GPUs")


def test_building_engines() -> None:
    both = doctor.find_abilities(packages(), CUDA, True)["build TensorRT engines"]
    assert both == (True, "tensorrt 1.0, for this GPU; tensorrt-rtx 1.0, for RTX GPUs")
    plain = doctor.find_abilities(packages(tensorrt_rtx=None), CPU, False)["build TensorRT engines"]
    assert plain == (False, "tensorrt builds for the GPU it runs on, and none was found")
    neither = doctor.find_abilities(packages(tensorrt=None, tensorrt_rtx=None), CUDA, True)
    assert neither["build TensorRT engines"][1].endswith("pip install 'foveate[rtx]'")


def test_running_engines() -> None:
    what = "run TensorRT engines"
    assert doctor.find_abilities(packages(), CUDA, True)[what] == (
        True,
        "tensorrt 1.0 and tensorrt-rtx 1.0",
    )
    assert doctor.find_abilities(packages(), CPU, False)[what][1].startswith(
        "no NVIDIA GPU was found"
    )
    neither = packages(tensorrt=None, tensorrt_rtx=None)
    assert doctor.find_abilities(neither, CUDA, True)[what][1].endswith(
        "pip install 'foveate[tensorrt]'"
    )
    unbound = packages(tensorrt=None)
    for extra in ("tensorrt", "rtx"):
        unbound[extra]["cuda-bindings"] = None
    assert doctor.find_abilities(unbound, CUDA, True)[what] == (
        False,
        "cuda-bindings not installed: pip install 'foveate[rtx]'",
    )


def test_gpu_with_and_without_the_package_for_it() -> None:
    able, why = doctor.find_abilities(packages(), CPU, True)["run on CUDA"]
    assert not able
    assert "pip install onnxruntime-gpu" in why
    gpu = packages(onnxruntime=None, onnxruntime_gpu="1.0")
    found = doctor.find_abilities(gpu, CUDA, True)
    assert found["run on CUDA"][0]
    assert found["run on the CPU"][0]
    broken = {**CUDA, "CUDAExecutionProvider": "does not run: no libcudnn"}
    assert doctor.find_abilities(gpu, broken, True)["run on CUDA"] == (
        False,
        "does not run: no libcudnn",
    )


def test_missing_packages_are_named_with_the_fix() -> None:
    found = doctor.find_abilities(packages(torch=None, onnxscript=None), CPU, False)
    able, why = found["export, demo, verify --checkpoint"]
    assert not able
    assert why == "onnxscript, torch not installed: pip install 'foveate[export]'"
    able, why = doctor.find_abilities(packages(tokenizers=None), CPU, False)["run on the CPU"]
    assert not able
    assert why == "tokenizers not installed: pip install foveate"


def test_both_onnxruntimes_are_a_warning() -> None:
    (warning,) = doctor.find_warnings(packages(onnxruntime_gpu="1.0"))
    assert "the CPU one wins silently" in warning
    assert doctor.find_warnings(packages()) == []


def test_telemetry_left_on_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    (warning,) = doctor.find_warnings(packages())
    assert "telemetry" in warning
    assert doctor.examine()["telemetry"]


def test_a_machine_with_all_of_it_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "H100", "memory": "1 MiB", "driver": "1", "compute_capability": "9.0"}
    monkeypatch.setattr(doctor, "find_gpus", lambda: [gpu])
    monkeypatch.setattr(doctor, "find_jetson", lambda: "Jetson Orin, L4T 36.4.3")
    monkeypatch.setattr(doctor, "try_providers", lambda: CUDA)
    missing = {"onnxruntime": None, "tensorrt": None}
    monkeypatch.setattr(doctor, "installed", lambda name: missing.get(name, "1.0"))
    text = doctor.describe_machine(doctor.examine())
    assert "H100, 1 MiB, compute capability 9.0, driver 1" in text
    assert "Jetson Orin, L4T 36.4.3" in text
    assert "onnxruntime-gpu stands in for it" in text
    assert (
        "not installed: adds TensorRT engines of this machine's GPU; pip install 'foveate[tensorrt]'"
        in text
    )


def test_without_onnxruntime_it_still_answers() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from foveate.cli import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot be imported" in done.stdout

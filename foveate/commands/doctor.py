"""`foveate doctor`: what this machine has and can run, and why not the rest; it changes nothing and never fails."""

import dataclasses
import importlib
import os
import platform
from dataclasses import dataclass
from typing import Any

from foveate._version import __version__
from foveate.commands.options import as_json, verb
from foveate.machine import count_cores, count_memory, find_gpus, find_jetson, installed
from foveate.terminal import one_line, plural, size, table, tell, tell_json

PACKAGES = {
    "": ("click", "jinja2", "msgspec", "numpy", "onnxruntime", "pillow", "tokenizers"),
    "export": (
        "huggingface_hub", "onnx", "onnx-ir", "onnxscript", "safetensors", "torch", "transformers",
    ),
    "calibrate": ("accelerate", "matplotlib", "pyarrow", "tensorboard"),
    "bench": ("matplotlib",),
    "gpu": ("onnxruntime-gpu",),
    "tensorrt": ("cuda-bindings", "tensorrt"),
    "rtx": ("cuda-bindings", "tensorrt-rtx"),
    "video": ("av",),
}  # fmt: skip
ADDS = {
    "": "everything else",
    "export": "export, demo and verify --checkpoint",
    "calibrate": "calibrate",
    "bench": "bench --plot",
    "gpu": "CUDA",
    "tensorrt": "TensorRT engines of this machine's GPU",
    "rtx": "TensorRT engines of RTX GPUs, wherever they are",
    "video": "video",
}
USED = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}

# An ONNX model that adds a float32 [1] to itself: small enough to try a provider with.
TINY = (
    b"\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y\"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01"
    b"\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)  # fmt: skip


@verb("foveate doctor")
@as_json
def doctor(as_json: bool) -> None:
    """Show what this machine can run, and why not the rest."""
    found = examine()
    tell_json(machine_facts(found)) if as_json else tell(describe_machine(found))


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that Foveate does, and whether it can be done here.

    Attributes:
        what: In a few words.
        able: Whether it works.
        why: What it runs on, or what is in the way and the fix.
    """

    what: str
    able: bool
    why: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found.

    Attributes:
        foveate: Foveate's version.
        python: Python's version.
        system: The operating system.
        machine: The processor's architecture.
        cores: Processor cores this process may use.
        memory: Bytes of memory; None where the system does not say.
        jetson: Board and L4T release; None on anything else.
        gpus: What nvidia-smi says of each GPU: name, memory, driver, compute capability.
        packages: For each extra ("" is the base) its packages' versions; None is not installed.
        providers: For each provider of onnxruntime "runs", "not used", or why it does not run.
        telemetry: Whether onnxruntime is allowed to send telemetry.
        warnings: What is likely to surprise.
        abilities: What can be done here.
    """

    foveate: str
    python: str
    system: str
    machine: str
    cores: int
    memory: int | None
    jetson: str | None
    gpus: list[dict[str, str]]
    packages: dict[str, dict[str, str | None]]
    providers: dict[str, str]
    telemetry: bool
    warnings: list[str]
    abilities: list[Ability]


def examine() -> Machine:
    """Find out what this machine has and can run."""
    packages = {
        extra: {name: installed(name) for name in names} for extra, names in PACKAGES.items()
    }
    providers = try_providers()
    gpus, jetson = find_gpus(), find_jetson()
    return Machine(
        foveate=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cores=count_cores(),
        memory=count_memory(),
        jetson=jetson,
        gpus=gpus,
        packages=packages,
        providers=providers,
        telemetry=os.environ.get("ORT_DISABLE_TELEMETRY") != "1",
        warnings=find_warnings(packages),
        abilities=find_abilities(packages, providers, bool(gpus or jetson)),
    )


def try_providers() -> dict[str, str]:
    """Run a tiny graph on each of onnxruntime's providers that Foveate uses."""
    try:
        engine = importlib.import_module("foveate.runtime.backends.ort.session")
        import numpy as np

        ort = engine.ort
        ort.set_default_logger_severity(4)
        names = ort.get_available_providers()
    except Exception as error:
        return {"onnxruntime": f"cannot be imported: {one_line(str(error), 160)}"}
    found = {}
    for name in names:
        found[name] = "not used"
        if name in USED:
            try:
                options = engine.session_options(engine.OnnxOptions(device=USED[name]))
                session = ort.InferenceSession(TINY, sess_options=options, providers=[name])
                (result,) = session.run(None, {"x": np.ones(1, dtype=np.float32)})
                given = session.get_providers()[0]
                right = given == name and result[0] == 2
                found[name] = "runs" if right else f"does not run: onnxruntime gave {given} instead"
            except Exception as error:
                found[name] = f"does not run: {one_line(str(error), 160)}"
    return found


def find_warnings(packages: dict[str, dict[str, str | None]]) -> list[str]:
    """What is likely to surprise."""
    found = []
    if packages[""]["onnxruntime"] and packages["gpu"]["onnxruntime-gpu"]:
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed, and the CPU one wins silently: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
        )
    if os.environ.get("ORT_DISABLE_TELEMETRY", "1") != "1":
        found.append(
            f"ORT_DISABLE_TELEMETRY is {os.environ['ORT_DISABLE_TELEMETRY']!r}, so onnxruntime "
            "may send telemetry: set it to 1 or unset it"
        )
    return found


def find_abilities(
    packages: dict[str, dict[str, str | None]], providers: dict[str, str], gpu: bool
) -> list[Ability]:
    """What can be done with these packages, providers and devices."""
    base = {
        **packages[""],
        "onnxruntime": packages[""]["onnxruntime"] or packages["gpu"]["onnxruntime-gpu"],
    }
    lacking = [name for name, found in base.items() if not found]
    cpu = providers.get("CPUExecutionProvider", "onnxruntime has no CPUExecutionProvider")
    runs = cpu == "runs" and not lacking
    why = "onnxruntime" if runs else _missing(lacking, "") if lacking else cpu
    missing = [name for name, found in packages["export"].items() if not found]
    exports = runs and not missing
    return [
        Ability("run on the CPU", runs, why),
        _cuda(providers, lacking, gpu),
        Ability(
            "export, demo, verify --checkpoint",
            exports,
            f"torch {packages['export']['torch']}" if exports
            else _missing(missing, "export") if missing else "onnxruntime does not run",
        ),
        _builds(packages, gpu),
        _runs(packages, gpu),
    ]  # fmt: skip


def _builds(packages: dict[str, dict[str, str | None]], gpu: bool) -> Ability:
    """Whether TensorRT engines can be built."""
    what = "build TensorRT engines"
    plain, rtx = packages["tensorrt"]["tensorrt"], packages["rtx"]["tensorrt-rtx"]
    able = [f"tensorrt {plain}, for this GPU"] if plain and gpu else []
    able += [f"tensorrt-rtx {rtx}, for RTX GPUs"] if rtx else []
    if able:
        return Ability(what, True, "; ".join(able))
    if plain:
        return Ability(what, False, "tensorrt builds for the GPU it runs on, and none was found")
    return Ability(what, False, _missing(["tensorrt-rtx"], "rtx"))


def _runs(packages: dict[str, dict[str, str | None]], gpu: bool) -> Ability:
    """Whether TensorRT engines run."""
    what = "run TensorRT engines"
    plain, rtx = packages["tensorrt"]["tensorrt"], packages["rtx"]["tensorrt-rtx"]
    if not gpu:
        return Ability(what, False, "no NVIDIA GPU was found (nvidia-smi lists none)")
    if not plain and not rtx:
        return Ability(what, False, _missing(["tensorrt"], "tensorrt"))
    extra = "tensorrt" if plain else "rtx"
    if not packages[extra]["cuda-bindings"]:
        return Ability(what, False, _missing(["cuda-bindings"], extra))
    found = [f"tensorrt {plain}"] if plain else []
    found += [f"tensorrt-rtx {rtx}"] if rtx else []
    return Ability(what, True, " and ".join(found))


def _cuda(providers: dict[str, str], lacking: list[str], gpu: bool) -> Ability:
    """Whether bundles run on CUDA."""
    found = providers.get("CUDAExecutionProvider")
    if found == "runs" and not lacking:
        return Ability("run on CUDA", True, "onnxruntime's CUDAExecutionProvider")
    if not gpu:
        why = "no NVIDIA GPU was found (nvidia-smi lists none)"
    elif lacking:
        why = _missing(lacking, "")
    elif found:
        why = found
    else:
        why = (
            "this onnxruntime has no CUDAExecutionProvider: pip uninstall -y onnxruntime, then "
            "pip install onnxruntime-gpu"
        )
    return Ability("run on CUDA", False, why)


def _absence(found: Machine, name: str, extra: str) -> str:
    """What to say of a package that is not installed."""
    if name == "onnxruntime" and found.packages["gpu"]["onnxruntime-gpu"]:
        return "onnxruntime-gpu stands in for it"
    return f"not installed: adds {ADDS[extra]}; {_install(extra)}"


def _missing(names: list[str], extra: str) -> str:
    """Which packages are missing, and how to get them."""
    return f"{', '.join(names)} not installed: {_install(extra)}"


def _install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'foveate[{extra}]'" if extra else "pip install foveate"


def machine_facts(found: Machine) -> dict[str, Any]:
    """What `foveate doctor --json` says."""
    return dataclasses.asdict(found)


def describe_machine(found: Machine) -> str:
    """What `foveate doctor` shows."""
    memory = size(found.memory) if found.memory else "unknown"
    general = [
        ("foveate", found.foveate),
        ("python", found.python),
        ("system", f"{found.system}, {found.machine}"),
        ("processor", f"{plural(found.cores, 'core')}, {memory} of memory"),
        *([("board", found.jetson)] if found.jetson else []),
        *(
            ("gpu", f"{gpu['name']}, {gpu['memory']}, compute capability "
                    f"{gpu['compute_capability']}, driver {gpu['driver']}")
            for gpu in found.gpus
        ),
        *([] if found.gpus or found.jetson else [("gpu", "none found")]),
        ("telemetry", "allowed for onnxruntime" if found.telemetry else "off"),
    ]  # fmt: skip
    packages = [
        (name, got or _absence(found, name, extra))
        for extra, names in found.packages.items()
        for name, got in names.items()
    ]
    abilities = [
        ("yes" if ability.able else "no", ability.what, ability.why) for ability in found.abilities
    ]
    return "\n".join(
        [
            "this machine",
            table(general),
            "\npackages",
            table(packages),
            "\nonnxruntime's providers",
            table(found.providers.items()),
            "\nwhat it can run",
            table(abilities),
            *(f"\nwarning: {warning}" for warning in found.warnings),
        ]
    )

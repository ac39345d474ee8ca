"""`foveate doctor`: what this machine has and can run, and why not the rest; it changes nothing and never fails."""

import os
import platform
from typing import Any

from foveate._version import __version__
from foveate.commands.options import as_json, verb
from foveate.machine import count_cores, count_memory, find_gpus, find_jetson, installed
from foveate.terminal import one_line, plural, size, table, tell, tell_json

EXTRAS = {
    "": ("everything else", "click jinja2 msgspec numpy onnxruntime pillow tokenizers"),
    "export": (
        "export, demo and verify --checkpoint",
        "huggingface_hub onnx onnx-ir onnxscript safetensors torch transformers",
    ),
    "calibrate": ("calibrate", "accelerate matplotlib pyarrow tensorboard"),
    "bench": ("bench --plot", "matplotlib"),
    "gpu": ("CUDA", "onnxruntime-gpu"),
    "tensorrt": ("TensorRT engines of this machine's GPU", "cuda-bindings onnx tensorrt"),
    "rtx": ("TensorRT engines of RTX GPUs, wherever they are", "cuda-bindings onnx tensorrt-rtx"),
    "video": ("video", "av"),
    "heic": ("HEIC pictures", "pillow-heif"),
}
"""For each extra ("" is the base) what it adds, and its packages."""
PACKAGES = {extra: tuple(names.split()) for extra, (_, names) in EXTRAS.items()}
NO_GPU = "no NVIDIA GPU was found (nvidia-smi lists none)"
Packages = dict[str, dict[str, str | None]]
"""For each extra its packages' versions; None is not installed."""
Abilities = dict[str, tuple[bool, str]]
"""For each thing that Foveate does whether it works here, and what it runs on or what is in the way."""
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
    tell_json(found) if as_json else tell(describe_machine(found))


def examine() -> dict[str, Any]:
    """Find out what this machine has and can run.

    Returns:
        What `foveate doctor --json` says: the versions of Foveate and Python; the operating system, the
        processor's architecture, the cores that this process may use, and bytes of memory (None where
        the system does not say); the Jetson's board and L4T release (None on anything else); what
        nvidia-smi says of each GPU; for each extra ("" is the base) its packages' versions (None is not
        installed); for each provider of onnxruntime "runs", "not used", or why it does not run; whether
        onnxruntime is allowed to send telemetry; warnings; and abilities.
    """
    packages = {
        extra: {name: installed(name) for name in names} for extra, names in PACKAGES.items()
    }
    providers, gpus, jetson = try_providers(), find_gpus(), find_jetson()
    abilities = find_abilities(packages, providers, bool(gpus or jetson))
    return {
        "foveate": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": count_cores(),
        "memory": count_memory(),
        "jetson": jetson,
        "gpus": gpus,
        "packages": packages,
        "providers": providers,
        "telemetry": os.environ.get("ORT_DISABLE_TELEMETRY") != "1",
        "warnings": find_warnings(packages),
        "abilities": [
            {"what": what, "able": able, "why": why} for what, (able, why) in abilities.items()
        ],
    }


def try_providers() -> dict[str, str]:
    """Run a tiny graph on each of onnxruntime's providers that Foveate uses."""
    try:
        import numpy as np

        from foveate.runtime.backends.ort import session
        from foveate.runtime.backends.ort.library import ort

        ort.set_default_logger_severity(4)
        names = ort.get_available_providers()
    except Exception as error:
        return {"onnxruntime": f"cannot be imported: {one_line(str(error), 160)}"}
    found = {}
    for name in names:
        found[name] = "not used"
        if name in USED:
            try:
                options = session.session_options(session.OnnxOptions(device=USED[name]))
                tried = ort.InferenceSession(TINY, sess_options=options, providers=[name])
                (result,) = tried.run(None, {"x": np.ones(1, dtype=np.float32)})
                given = tried.get_providers()[0]
                right = given == name and result[0] == 2
                found[name] = "runs" if right else f"does not run: onnxruntime gave {given} instead"
            except Exception as error:
                found[name] = f"does not run: {one_line(str(error), 160)}"
    return found


def find_warnings(packages: Packages) -> list[str]:
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


def find_abilities(packages: Packages, providers: dict[str, str], gpu: bool) -> Abilities:
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
    if missing:
        export = _missing(missing, "export")
    else:
        export = f"torch {packages['export']['torch']}" if runs else "onnxruntime does not run"
    return {
        "run on the CPU": (runs, why),
        "run on CUDA": _cuda(providers, lacking, gpu),
        "export, demo, verify --checkpoint": (runs and not missing, export),
        "build TensorRT engines": _builds(packages, gpu),
        "run TensorRT engines": _runs(packages, gpu),
    }


def _cuda(providers: dict[str, str], lacking: list[str], gpu: bool) -> tuple[bool, str]:
    """Whether bundles run on CUDA, and why or why not."""
    found = providers.get("CUDAExecutionProvider")
    if found == "runs" and not lacking:
        return True, "onnxruntime's CUDAExecutionProvider"
    if not gpu:
        return False, NO_GPU
    if lacking:
        return False, _missing(lacking, "")
    return False, found or (
        "this onnxruntime has no CUDAExecutionProvider: pip uninstall -y onnxruntime, then "
        "pip install onnxruntime-gpu"
    )


def _builds(packages: Packages, gpu: bool) -> tuple[bool, str]:
    """Whether TensorRT engines can be built, and why or why not."""
    plain, rtx = packages["tensorrt"]["tensorrt"], packages["rtx"]["tensorrt-rtx"]
    able = [f"tensorrt {plain}, for this GPU"] if plain and gpu else []
    able += [f"tensorrt-rtx {rtx}, for RTX GPUs"] if rtx else []
    if able:
        return True, "; ".join(able)
    if plain:
        return False, "tensorrt builds for the GPU it runs on, and none was found"
    return False, _missing(["tensorrt-rtx"], "rtx")


def _runs(packages: Packages, gpu: bool) -> tuple[bool, str]:
    """Whether TensorRT engines run, and why or why not."""
    plain, rtx = packages["tensorrt"]["tensorrt"], packages["rtx"]["tensorrt-rtx"]
    if not gpu:
        return False, NO_GPU
    if not plain and not rtx:
        return False, _missing(["tensorrt"], "tensorrt")
    extra = "tensorrt" if plain else "rtx"
    if not packages[extra]["cuda-bindings"]:
        return False, _missing(["cuda-bindings"], extra)
    found = {"tensorrt": plain, "tensorrt-rtx": rtx}
    return True, " and ".join(f"{name} {version}" for name, version in found.items() if version)


def _missing(names: list[str], extra: str) -> str:
    """Which packages are missing, and how to get them."""
    return f"{', '.join(names)} not installed: {_install(extra)}"


def _install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'foveate[{extra}]'" if extra else "pip install foveate"


def describe_machine(found: dict[str, Any]) -> str:
    """What `foveate doctor` shows."""
    memory = size(found["memory"]) if found["memory"] else "unknown"
    gpus = [
        f"{gpu['name']}, {gpu['memory']}, compute capability {gpu['compute_capability']}, "
        f"driver {gpu['driver']}"
        for gpu in found["gpus"]
    ]
    general = [
        ("foveate", found["foveate"]),
        ("python", found["python"]),
        ("system", f"{found['system']}, {found['machine']}"),
        ("processor", f"{plural(found['cores'], 'core')}, {memory} of memory"),
        *([("board", found["jetson"])] if found["jetson"] else []),
        *(("gpu", gpu) for gpu in gpus or ([] if found["jetson"] else ["none found"])),
        ("telemetry", "allowed for onnxruntime" if found["telemetry"] else "off"),
    ]
    packages = [
        (name, got or _absence(found["packages"], name, extra))
        for extra, names in found["packages"].items()
        for name, got in names.items()
    ]
    abilities = [
        ("yes" if one["able"] else "no", one["what"], one["why"]) for one in found["abilities"]
    ]
    parts = [
        f"this machine\n{table(general)}",
        f"packages\n{table(packages)}",
        f"onnxruntime's providers\n{table(found['providers'].items())}",
        f"what it can run\n{table(abilities)}",
        *(f"warning: {warning}" for warning in found["warnings"]),
    ]
    return "\n\n".join(parts)


def _absence(packages: Packages, name: str, extra: str) -> str:
    """What to say of a package that is not installed."""
    if name == "onnxruntime" and packages["gpu"]["onnxruntime-gpu"]:
        return "onnxruntime-gpu stands in for it"
    return f"not installed: adds {EXTRAS[extra][0]}; {_install(extra)}"

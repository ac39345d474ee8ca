"""Whether a bundle's TensorRT engine can run on a machine, told before it is loaded."""

from foveate.bundle.manifest import EngineVariant, Library, outdated
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError

NAMES: dict[Library, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def fits(
    bundle: Bundle, engine: EngineVariant, capability: str | None, library: Library, version: str
) -> None:
    """Refuse an engine that would not run here, or would not be this bundle's model.

    Args:
        bundle: The bundle that lists the engine.
        engine: The engine.
        capability: The GPU's compute capability, for instance "8.7"; None where there is no GPU.
        library: The library that is to run it.
        version: That library's version. Engines run in the very version that built them.

    Raises:
        BackendError: It does not fit; the message says why and what to do.
    """
    name = f"{bundle.root}: the engine of {engine.role} for {engine.target}"
    again = f"Build it here: {rebuild(bundle, engine.target)}"
    other = f"foveate build {bundle.root} --target NAME, with a target for this machine"
    if engine.library != library:
        raise BackendError(
            f"{name} is for {NAMES[engine.library]}, not for {NAMES[library]}. Build one: {other}"
        )
    if capability is None:
        raise BackendError(f"{name} needs a GPU, and none is to be seen. See: foveate doctor")
    if capability not in engine.compute_capabilities:
        raise BackendError(
            f"{name} is for compute capability {', '.join(engine.compute_capabilities)}, and this "
            f"GPU has {capability}. Build one: {other}"
        )
    if engine.version != version:
        raise BackendError(
            f"{name} was built by {NAMES[library]} {engine.version}, and {version} is installed; "
            f"engines run in no other version. {again}"
        )
    role = outdated(bundle.manifest, engine)
    if role is not None:
        raise BackendError(f"{name} was not built from this bundle's {role}. {again}")
    path, wanted = bundle.file(engine.file), bundle.manifest.files[engine.file].bytes
    found = path.stat().st_size if path.is_file() else 0
    if found != wanted:
        raise BackendError(f"{path} has {found} of its {wanted} bytes: it was cut short. {again}")


def rebuild(bundle: Bundle, target: str) -> str:
    """The command that builds a target's engines again, as they are now."""
    options = ""
    for engine in bundle.manifest.engines:
        if engine.target == target and engine.role == "decoder":
            if engine.decoder == "static":
                options += " --decoder static"
            if engine.precision != bundle.manifest.precision:
                options += f" --precision {engine.precision}"
    return f"foveate build {bundle.root} --target {target}{options} --force"

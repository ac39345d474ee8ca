"""Which of a bundle's TensorRT engines run on this machine: those of one target, or an error."""

from collections.abc import Callable, Mapping

from foveate.bundle.manifest import EngineVariant, Library
from foveate.bundle.reader import Bundle
from foveate.errors import BackendError, FoveateError
from foveate.runtime.backends.base import standard_roles
from foveate.runtime.backends.trt.fit import fits

Versions = Callable[[Library], str]
"""The version of an installed library; raises MissingDependencyError where it is not installed."""


def choose_engines(
    bundle: Bundle, target: str | None, capability: str | None, versions: Versions
) -> dict[str, EngineVariant]:
    """The engines of a target that all fit this machine, by role.

    Args:
        bundle: An open bundle.
        target: Its name; None where only one fits.
        capability: The GPU's compute capability, for instance "8.7"; None where there is no GPU.
        versions: Tells what is installed.

    Raises:
        BackendError: There is no such target, it does not fit, or several do.
        MissingDependencyError: The library of the target is not installed.
    """
    names = list(dict.fromkeys(engine.target for engine in bundle.manifest.engines))
    if not names:
        raise BackendError(
            f"{bundle.root} has no TensorRT engines. Build them: foveate build {bundle.root} "
            "--target NAME"
        )
    if target is not None:
        if target not in names:
            raise BackendError(
                f"{bundle.root} has no engines for the target {target!r}; it has them for "
                f"{', '.join(names)}. Build them: foveate build {bundle.root} --target {target}"
            )
        return engines_of(bundle, target, capability, versions)
    fitting, reasons = fitting_engines(bundle, capability, versions)
    if len(fitting) > 1:
        raise BackendError(
            f"engines for several targets run here: {', '.join(fitting)}. Name one: --target "
            f"{next(iter(fitting))}"
        )
    if not fitting:
        if len(reasons) == 1:
            raise next(iter(reasons.values()))
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise BackendError(f"no engines of this bundle run here. {told}")
    return next(iter(fitting.values()))


def fitting_engines(
    bundle: Bundle, capability: str | None, versions: Versions
) -> tuple[dict[str, dict[str, EngineVariant]], Mapping[str, FoveateError]]:
    """The engines that fit by target and role, and why those of other targets do not."""
    fitting: dict[str, dict[str, EngineVariant]] = {}
    reasons: dict[str, FoveateError] = {}
    for name in dict.fromkeys(engine.target for engine in bundle.manifest.engines):
        try:
            fitting[name] = engines_of(bundle, name, capability, versions)
        except FoveateError as error:
            reasons[name] = error
    return fitting, reasons


def engines_of(
    bundle: Bundle, target: str, capability: str | None, versions: Versions
) -> dict[str, EngineVariant]:
    """The engines of one target, by role.

    Raises:
        BackendError: One is missing or does not fit.
        MissingDependencyError: The library is not installed.
    """
    engines = {engine.role: engine for engine in bundle.manifest.engines if engine.target == target}
    roles = standard_roles(bundle)
    for role in roles:
        if role not in engines:
            raise BackendError(
                f"{bundle.root} has no engine of {role} for {target}. Build it: foveate build "
                f"{bundle.root} --target {target} --force"
            )
        engine = engines[role]
        fits(bundle, engine, capability, engine.library, versions(engine.library))
    return {role: engines[role] for role in roles}

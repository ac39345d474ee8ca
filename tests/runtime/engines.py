"""Bundles with engines that are no engines: enough for all that is decided before one is loaded."""

import shutil
from pathlib import Path

from foveate.bundle import Bundle
from foveate.engine_writer import EngineWriter
from foveate.manifest import EngineVariant, Library
from foveate.tensorrt.build import _sources
from foveate.tensorrt.profiles import plan_profiles
from foveate.tensorrt.targets import read_targets

ROLES = ("vision", "compressor", "decoder")


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """A copy of a bundle that a test may write in."""
    shutil.copytree(bundle.root, folder)
    return Bundle(folder, bundle.manifest)


def with_engines(
    bundle: Bundle,
    target: str,
    *,
    capability: str = "9.0",
    library: Library = "tensorrt",
    version: str = "10.3.0",
    roles: tuple[str, ...] = ROLES,
) -> Bundle:
    """The bundle with files that its manifest takes for the engines of a target."""
    plans = plan_profiles(bundle.manifest, read_targets()["h100"])
    with EngineWriter(bundle, target) as writer:
        files = {f"engine.{target}.{role}": writer.root / f"{role}.engine" for role in roles}
        for path in files.values():
            path.write_bytes(b"no engine")
        engines = [
            EngineVariant(
                target=target,
                role=role,
                file=f"engine.{target}.{role}",
                library=library,
                version=version,
                compute_capabilities=[capability],
                precision=bundle.manifest.precision,
                profiles={plan.name: plan.ranges(bundle.graph(role), role) for plan in plans[role]},
                built_from=_sources(bundle, role),
            )
            for role in roles
        ]
        return writer.finish(engines, files)

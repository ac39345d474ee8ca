"""Bundles with engines that are no engines: enough for all that is decided before one is loaded."""

import shutil
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from foveate.bundle.engine_writer import EngineWriter
from foveate.bundle.manifest import Decoder, EngineVariant, Library
from foveate.bundle.reader import Bundle
from foveate.export.tensorrt.build import _sources
from foveate.export.tensorrt.profiles import cache_capacity, plan_profiles
from foveate.export.tensorrt.targets import Ranges, read_targets
from foveate.runtime.backends.base import standard_roles
from foveate.runtime.backends.trt.tensor_specs import static_spec

ROLES = ("vision", "compressor", "decoder")


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """A copy of a bundle that a test may write in."""
    shutil.copytree(bundle.root, folder)
    return Bundle(folder, bundle.manifest)


def variants(
    bundle: Bundle,
    target: str,
    *,
    capability: str = "9.0",
    library: Library = "tensorrt",
    version: str = "10.3.0",
    roles: tuple[str, ...] | None = None,
    decoder: Decoder = "concat",
    ranges: Ranges | None = None,
    profiles: int = 2,
) -> list[EngineVariant]:
    """What the manifest says of a target's engines."""
    h100 = read_targets()["h100"]
    like = replace(h100, decoder=decoder, ranges=ranges or h100.ranges, decoder_profiles=profiles)
    plans = plan_profiles(bundle.manifest, like)
    roles = roles or standard_roles(bundle)
    specs = {role: bundle.graph(role) for role in roles}
    if decoder == "static":
        specs["decoder"] = static_spec(specs["decoder"], cache_capacity(bundle.manifest, like))
    return [
        EngineVariant(
            target=target,
            role=role,
            file=f"engine.{target}.{role}",
            library=library,
            version=version,
            compute_capabilities=[capability],
            precision=bundle.manifest.precision,
            decoder=decoder if role == "decoder" else None,
            profiles={plan.name: plan.ranges(specs[role], role) for plan in plans[role]},
            built_from=_sources(bundle, role),
        )
        for role in roles
    ]


def with_engines(
    bundle: Bundle,
    target: str,
    **how: Any,
) -> Bundle:
    """The bundle with files that its manifest takes for `variants` of a target's engines."""
    engines = variants(bundle, target, **how)
    with EngineWriter(bundle, target) as writer:
        files = {one.file: writer.root / f"{one.role}.engine" for one in engines}
        for path in files.values():
            path.write_bytes(b"no engine")
        return writer.finish(engines, files)

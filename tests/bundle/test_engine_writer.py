"""Engines put into a bundle: all of a target's or none, and nobody else's touched."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from foveate.bundle.engine_writer import EngineWriter
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError, OutputError, OutputExistsError
from tests.bundle.example import contents, unprivileged, write

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from foveate.bundle import engine_writer
from foveate.bundle.reader import Bundle
from tests.bundle.test_engine_writer import add
moment, steps = int(sys.argv[2]), 0
def step(call):
    def stepping(*arguments, **options):
        global steps
        steps += 1
        if steps == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return stepping
for name in ("sync", "replace_file"):
    setattr(engine_writer, name, step(getattr(engine_writer, name)))
add(Bundle.open(sys.argv[1]), "jetson-orin", b"new", force=True)
"""


def add(bundle: Bundle, target: str, content: bytes, *, force: bool = False) -> Bundle:
    """Put an engine and a timing cache of a target into the example bundle."""
    with EngineWriter(bundle, target, force=force) as writer:
        files = {
            f"engine.{target}.vision": writer.root / "vision.engine",
            f"timing.{target}": writer.root / "timing.cache",
        }
        for path in files.values():
            path.write_bytes(content)
        (like,) = (one for one in bundle.manifest.engines if one.target == "jetson-orin")
        engine = msgspec.structs.replace(like, target=target, file=f"engine.{target}.vision")
        return writer.finish([engine], files)


def engines(bundle: Bundle) -> dict[str, bytes]:
    """The engines by target."""
    return {one.target: bundle.file(one.file).read_bytes() for one in bundle.manifest.engines}


def test_another_target_is_added(tmp_path: Path) -> None:
    before = write(tmp_path / "bundle")
    old = contents(tmp_path / "bundle")
    after = add(before, "rtx", b"rtx engine")
    assert after == Bundle.open(tmp_path / "bundle")
    assert engines(after) == {"jetson-orin": b"engine", "rtx": b"rtx engine"}
    new = contents(tmp_path / "bundle")
    assert {name for name in new if name.startswith("engines/rtx/")} == {
        after.manifest.files["engine.rtx.vision"].path,
        after.manifest.files["timing.rtx"].path,
    }
    assert all(old[entry.path] == new[entry.path] for entry in before.manifest.files.values())
    assert not list((tmp_path / "bundle").glob(".*"))


def test_force_replaces_the_targets_own_engines(tmp_path: Path) -> None:
    bundle = add(write(tmp_path / "bundle"), "rtx", b"rtx engine")
    with pytest.raises(OutputExistsError, match=r"already has engines for jetson-orin.*--force"):
        add(bundle, "jetson-orin", b"new")
    replaced = add(bundle, "jetson-orin", b"new", force=True)
    assert engines(replaced) == {"jetson-orin": b"new", "rtx": b"rtx engine"}
    listed = {entry.path for entry in replaced.manifest.files.values()}
    assert contents(bundle.root).keys() == listed | {"manifest.json"}
    again = add(replaced, "jetson-orin", b"new", force=True)
    assert again.manifest.files == replaced.manifest.files
    assert Bundle.open(bundle.root) == again


def test_two_writers_keep_each_others_engines(tmp_path: Path) -> None:
    opened = write(tmp_path / "bundle")
    add(opened, "rtx", b"rtx engine")
    assert set(engines(add(opened, "a100", b"a100 engine"))) == {"jetson-orin", "rtx", "a100"}


def test_an_error_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    before = contents(bundle.root)
    with pytest.raises(ValueError, match="broken"), EngineWriter(bundle, "rtx") as writer:
        (writer.root / "vision.engine").write_bytes(b"half")
        raise ValueError("broken")
    assert contents(bundle.root) == before
    assert not list(bundle.root.glob(".*"))


@pytest.mark.parametrize("moment", range(1, 5))
def test_killed_at_any_step(tmp_path: Path, moment: int) -> None:
    bundle = write(tmp_path / "bundle")
    listed = {entry.path for entry in bundle.manifest.files.values()} | {"manifest.json"}
    before = contents(bundle.root)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(bundle.root), str(moment)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert {name: data for name, data in contents(bundle.root).items() if name in listed} == before
    assert Bundle.open(bundle.root) == bundle
    assert engines(add(bundle, "jetson-orin", b"later", force=True)) == {"jetson-orin": b"later"}


def test_a_bundle_replaced_while_engines_were_built(tmp_path: Path) -> None:
    bundle = write(tmp_path / "bundle")
    with pytest.raises(BundleError, match="was replaced while"), EngineWriter(bundle, "rtx") as new:
        path = new.root / "vision.engine"
        path.write_bytes(b"engine")
        (engine,) = bundle.manifest.engines
        other = msgspec.structs.replace(
            engine, target="rtx", built_from={**engine.built_from, "vision": "0" * 64}
        )
        new.finish([other], {"engine.rtx.vision": path})
    assert Bundle.open(bundle.root) == bundle


def test_a_bundle_that_may_not_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        bundle = write(Path(folder) / "bundle")
        bundle.root.chmod(0o555)
        with unprivileged(), pytest.raises(OutputError, match="no permission"):
            EngineWriter(bundle, "rtx").__enter__()

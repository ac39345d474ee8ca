"""The bundle's writer: a bundle is there whole or not at all, and replaces only what it may."""

import errno
import os
import re
import signal
import time
from pathlib import Path

import msgspec
import pytest

from foveate.bundle.reader import Bundle
from foveate.bundle.writer import BundleWriter
from foveate.errors import BundleError, BundleNotFoundError, OutputError, OutputExistsError
from tests.bundle.example import FILES, GOLDEN, contents, example, fill, run, write

WRITER = """
import os, sys, time
from pathlib import Path
from foveate.bundle.writer import BundleWriter
from foveate.bundle.manifest_json import decode
golden, target, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
manifest = decode((golden / "manifest.json").read_bytes(), golden)
while True:
    with BundleWriter(target, force=True) as writer:
        for entry in manifest.files.values():
            path = writer.root / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((golden / entry.path).read_bytes())
            while mode == "stuck":
                print("writing", flush=True)
                time.sleep(60)
        writer.finish(manifest)
    print("written", flush=True)
"""


# The writer


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), BundleWriter(tmp_path / "bundle") as writer:
        fill(writer.root)
        raise error
    assert os.listdir(tmp_path) == []


def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        fill(writer.root)
        assert not (tmp_path / "bundle").exists()
    assert os.listdir(tmp_path) == []


def test_finish_refuses_a_file_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"decoder\.onnx\.data is not in manifest\.json\. List it"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (writer.root / "decoder.onnx.data").write_bytes(b"left out")
        writer.finish(example(writer.entries(FILES)))
    assert os.listdir(tmp_path) == []


def test_finish_refuses_a_linked_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"link is not in manifest\.json"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (writer.root / "link").symlink_to("text")
        writer.finish(example(writer.entries(FILES)))


def test_finish_refuses_weights_that_nobody_listed(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"vision\.onnx takes weights from 'vision\.onnx\.data'"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        listed = {role: FILES[role] for role in ("vision", "embeddings")}
        manifest = example(writer.entries(listed))
        writer.finish(msgspec.structs.replace(manifest, engines=[]))
    assert os.listdir(tmp_path) == []


def test_finish_refuses_files_changed_since_they_were_measured(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"vision\.onnx has .* cut short or changed"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        entries = writer.entries(FILES)
        (writer.root / "vision.onnx").write_bytes(b"later")
        writer.finish(example(entries))
    assert os.listdir(tmp_path) == []


def test_the_folder_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert write(tmp_path / "bundle").root.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["entries", "missing"])
def test_entries_refuses_links_and_missing_files(tmp_path: Path, name: str) -> None:
    with BundleWriter(tmp_path / "bundle") as writer:
        fill(writer.root)
        if name == "entries":
            (writer.root / name).symlink_to("vision.onnx")
        with pytest.raises(BundleError, match=f"{name} is "):
            writer.entries({"vision": name})


def test_kill_while_writing(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    child = run(WRITER, GOLDEN, target, "stuck")
    assert child.stdout
    assert child.stdout.readline() == "writing\n"
    child.kill()
    child.communicate(timeout=30)
    (partial,) = tmp_path.iterdir()
    assert partial.name.startswith(".bundle.partial-")
    with pytest.raises(BundleNotFoundError, match="bundle does not exist"):
        Bundle.open(target)
    with pytest.raises(BundleNotFoundError, match=r"cut short\. Delete it and export again"):
        Bundle.open(partial)
    partial.rename(tmp_path / "renamed")
    with pytest.raises(BundleNotFoundError, match=r"cut short, or copied in part\. Delete it"):
        Bundle.open(tmp_path / "renamed")
    write(target)
    assert contents(target) == contents(GOLDEN)


def test_kill_at_any_moment_leaves_the_old_bundle_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for round_ in range(4):
        child = run(WRITER, GOLDEN, target, "loop")
        assert child.stdout
        assert child.stdout.readline() == "written\n"
        time.sleep(0.011 * round_)
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
        if target.exists():
            Bundle.open(target)
            continue
        with pytest.raises(BundleNotFoundError) as caught:
            Bundle.open(target)
        aside = re.search(r"cut short\. Rename (\S+) back to it", str(caught.value))
        assert aside
        Path(aside[1]).rename(target)
        Bundle.open(target)


def test_a_bundle_set_aside_is_named(tmp_path: Path) -> None:
    aside = write(tmp_path / "x [1]").root.rename(tmp_path / ".x [1].replaced-0123abcd")
    with pytest.raises(BundleNotFoundError, match=f"Rename {re.escape(str(aside))} back to it"):
        Bundle.open(tmp_path / "x [1]")


# What may be replaced


def test_an_existing_path_is_refused_without_force(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("bundle", "file", "empty", "dangling"):
        with (
            pytest.raises(OutputExistsError, match=f"{name} is already there. Give another path"),
            BundleWriter(tmp_path / name),
        ):
            pass
    assert sorted(os.listdir(tmp_path)) == ["bundle", "dangling", "empty", "file"]


def test_force_replaces_a_bundle_and_an_empty_folder(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "bundle" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "bundle", force=True)
    write(tmp_path / "empty", force=True)
    assert contents(tmp_path / "bundle") == contents(tmp_path / "empty") == contents(GOLDEN)
    assert sorted(os.listdir(tmp_path)) == ["bundle", "empty"]


def test_force_replaces_a_bundle_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text('{"format": "foveate-bundle", "version": 9}')
    write(tmp_path / "bundle", force=True)
    Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize(
    "manifest", [None, "{}", "[]", "not JSON", '{"format": "other"}', "[" * 99_999]
)
def test_force_never_replaces_another_folder(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    if manifest is not None:
        (tmp_path / "mine" / "manifest.json").write_text(manifest)
    before = contents(tmp_path)
    with (
        pytest.raises(OutputExistsError, match="neither a bundle nor an empty folder"),
        BundleWriter(tmp_path / "mine", force=True),
    ):
        pass
    assert contents(tmp_path) == before


def test_force_replaces_neither_files_nor_links(tmp_path: Path) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("bundle")
    for name in ("file", "link"):
        with pytest.raises(OutputExistsError), BundleWriter(tmp_path / name, force=True):
            pass
    Bundle.open(tmp_path / "link")


def test_what_appears_while_a_bundle_is_written_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputExistsError, match="already there"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (tmp_path / "bundle").mkdir()
        writer.finish(example(writer.entries(FILES)))
    assert os.listdir(tmp_path) == ["bundle"]
    assert contents(tmp_path) == {}


def test_the_old_bundle_comes_back_when_the_move_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "bundle")
    (tmp_path / "bundle" / "old").touch()
    rename = Path.rename

    def fail(source: Path, target: Path) -> Path:
        """Rename, but never a partial folder."""
        if "partial" in source.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match=r"Input/output error\. Check the disk"):
        write(tmp_path / "bundle", force=True)
    assert os.listdir(tmp_path) == ["bundle"]
    assert (tmp_path / "bundle" / "old").exists()

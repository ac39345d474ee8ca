"""Disks that do not take what is written, and single files written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from foveate.atomic_write import replace_file, scratch_folder, writing
from foveate.bundle.writer import BundleWriter
from foveate.errors import OutputError, OutputExistsError
from tests.bundle.example import contents, fill, run, unprivileged, vision_graph, write

# A disk that does not take it


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    parent = tmp_path / "no" / "such"
    with (
        pytest.raises(OutputError, match=f"{parent}/bundle .* folder does not exist. Make that"),
        BundleWriter(parent / "bundle"),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"its folder is a file\. Give another path"),
        BundleWriter(tmp_path / "file" / "bundle"),
    ):
        pass


def test_a_parent_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with (
            unprivileged(),
            pytest.raises(OutputError, match=r"no permission\. Give a path that you may write to"),
            BundleWriter(tmp_path / "bundle"),
        ):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_while_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"bundle could not be written: the disk is full\. Free"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        fill(writer.root)
        (writer.root / "vision.onnx").unlink()
        with open("/dev/full", "wb") as file:
            file.write(vision_graph())
    assert os.listdir(tmp_path) == []


def test_a_file_too_large_for_the_limit(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from foveate.bundle.writer import BundleWriter
from foveate.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with BundleWriter(sys.argv[1]) as writer:
        (writer.root / "vision.onnx").write_bytes(bytes(8192))
except OutputError as error:
    print(error.errno, error)
"""
    output, _ = run(script, tmp_path / "bundle").communicate(timeout=30)
    assert output.startswith(f"{errno.EFBIG} {tmp_path}/bundle could not be written: it is larger")
    assert os.listdir(tmp_path) == []


def test_reading_errors_inside_the_writer_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, BundleWriter(tmp_path / "bundle"):
        (tmp_path / "checkpoint").read_bytes()
    assert type(caught.value) is FileNotFoundError
    with (
        pytest.raises(OutputError, match="folder does not exist"),
        BundleWriter(tmp_path / "bundle") as writer,
    ):
        (writer.root / "no" / "file").touch()


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EROFS, "Give a path on another disk"),
        (errno.EPERM, "Give a path that you may write to"),
        (errno.EIO, "Check the disk"),
    ],
)
def test_writing_names_path_and_fix(number: int, fix: str) -> None:
    with (
        pytest.raises(OutputError, match=f"^out.png could not be written: .*{fix}") as caught,
        writing("out.png"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number


# One file


def test_replace_file(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    replace_file(target, b"one")
    with pytest.raises(OutputExistsError, match=r"out\.json is already there"):
        replace_file(target, b"two")
    assert target.read_bytes() == b"one"
    with target.open("rb") as reader:
        replace_file(target, lambda file: file.write(b"three"), force=True)
        assert reader.read() == b"one"
    assert target.read_bytes() == b"three"
    assert os.listdir(tmp_path) == ["out.json"]


def test_replace_file_keeps_the_old_one_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")

    def fail(file: object) -> None:
        """An image library that gives up."""
        raise OSError("cannot write mode F as PNG")

    with pytest.raises(OutputError, match=r"out\.png .* cannot write mode F as PNG"):
        replace_file(target, fail, force=True)
    with pytest.raises(ZeroDivisionError):
        replace_file(target, lambda file: 1 // 0, force=True)
    assert contents(tmp_path) == {"out.png": b"old"}


def test_replace_file_replaces_only_plain_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "link", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(OutputExistsError, match=r"is not a plain file\. Give another path"):
            replace_file(path, b"", force=True)
    assert (tmp_path / "link").is_symlink()


def test_replace_file_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"folder does not exist\. Make that first"):
        replace_file(tmp_path / "no" / "out.png", b"")


# What killed processes left


def test_what_killed_writers_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    left = [
        ".out.json.partial-0123abcd", ".bundle.partial-0123abcd/vision.onnx",
        ".bundle.partial-89abcdef/a", ".bundle.scratch-0123abcd/a",
    ]  # fmt: skip
    others = [
        ".bundle.partial-0123abc/a", ".bundle.partial-0123abcd.txt", ".bundle.replaced-0123abcd/a",
        ".bundle2.partial-0123abcd/a", ".other.json.partial-0123abcd", "bundle.partial-0123abcd",
    ]  # fmt: skip
    for name in (*left, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".bundle.partial-aaaaaaaa").symlink_to("bundle")
    write(tmp_path / "bundle")
    replace_file(tmp_path / "out.json", b"{}")
    with scratch_folder(tmp_path / "bundle") as folder:
        assert folder.is_dir()
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in others)
    assert (tmp_path / ".bundle.partial-aaaaaaaa").is_symlink()


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from foveate.atomic_write import replace_file, scratch_folder
from foveate.bundle.writer import BundleWriter
path = Path(sys.argv[1])
def content(file):
    print("writing", flush=True)
    sys.stdin.read()
with BundleWriter(path) as writer, scratch_folder(path):
    (writer.root / "vision.onnx").touch()
    replace_file(path.with_name("out.json"), content)
"""
    with run(script, tmp_path / "bundle") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        held = sorted(os.listdir(tmp_path))
        assert len(held) == 3
        write(tmp_path / "bundle")
        replace_file(tmp_path / "out.json", b"{}")
        with scratch_folder(tmp_path / "bundle"):
            pass
        assert sorted({*os.listdir(tmp_path)} - {"bundle", "out.json"}) == held
        child.kill()
        child.wait()
    write(tmp_path / "bundle", force=True)
    replace_file(tmp_path / "out.json", b"{}", force=True)
    with scratch_folder(tmp_path / "bundle"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["bundle", "out.json"]


def test_many_writers_of_one_file_clear_nothing_of_each_other(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from foveate.atomic_write import replace_file
for _ in range(100):
    replace_file(Path(sys.argv[1]), b"whole", force=True)
print("done")
"""
    children = [run(script, tmp_path / "out.json") for _ in range(3)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["done\n"] * 3
    assert contents(tmp_path) == {"out.json": b"whole"}

"""Standard streams that are closed or full, and signals at any moment: a line and the right exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from foveate.cli import main
from foveate.commands.calibrate import calibrate
from tests.command import command, invoke, refused

ROOT = Path(__file__).parents[2]
VERBS = [
    [],
    *([name] for name in main.list_commands(click.Context(main)) if name != "calibrate"),
    *(["calibrate", name] for name in calibrate.commands),
]
FORKED = """
import os, sys
import click
from foveate.cli import main

main.get_command(click.Context(main), "all of them")

def outcome(words, spoilt):
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 2)
        for number in spoilt:
            os.close(number)
            setattr(sys, {1: "stdout", 2: "stderr"}[number], None)
            setattr(sys, {1: "__stdout__", 2: "__stderr__"}[number], None)
            if how == "full":
                os.open("/dev/full", os.O_WRONLY)
                stream = open(number, "w", closefd=False)
                setattr(sys, {1: "stdout", 2: "stderr"}[number], stream)
                setattr(sys, {1: "__stdout__", 2: "__stderr__"}[number], stream)
        try:
            main(words)
        except SystemExit as end:
            os._exit(end.code or 0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    return words, os.waitstatus_to_exitcode(os.wait()[1]), said

how, verbs = sys.argv[1], eval(sys.argv[2])
os.close(1)
os.open(os.devnull, os.O_WRONLY)
results = []
for words in verbs:
    results += [outcome([*words, "--help"], [1]), outcome([*words, "--help"], [2])]
    results += [outcome([*words, "--help"], [1, 2]), outcome([*words, "--nonsense"], [2])]
sys.stderr.write(repr(results))
"""
INTERRUPTED = """
import importlib.abc, os, signal, sys

class Stopper(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == at:
            os.kill(os.getpid(), signal.SIGINT)

at = sys.argv.pop(1)
sys.meta_path.insert(0, Stopper())
from foveate.__main__ import main
main()
"""
STUCK = """
import sys, time
import click
from pathlib import Path
from foveate import cli
from foveate.bundle.writer import BundleWriter

@click.command()
@click.argument("out", type=Path)
def inspect(out):
    with BundleWriter(out) as writer:
        (writer.root / "vision.onnx").touch()
        print("writing", flush=True)
        time.sleep(60)

cli.main.add_command(inspect)
cli.main()
"""
LINE = "foveate: error: interrupted; nothing was left half-written\n"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("how", ["closed", "full"])
def test_streams_of_every_verb(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, how, repr(VERBS)],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    results = eval(done.stderr)
    assert len(results) == 4 * len(VERBS)
    for number, (words, code, said) in enumerate(results):
        spoilt_stdout, spoilt_stderr = number % 4 in (0, 2), number % 4 in (1, 2, 3)
        assert code == (2 if spoilt_stdout or number % 4 == 3 else 0), words
        if spoilt_stderr:
            assert said == "", words
        else:
            assert said.startswith("foveate: error: "), words
            assert "standard output" in said
            assert said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 2, "standard output is closed"),
        ("> /dev/full", 2, "could not be written to standard output: No space left"),
        ("2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
        (">&- 2>&-", 2, ""),
        ("> /dev/full 2> /dev/full", 2, ""),
        ("<&-", 0, ""),
    ],
)
def test_streams_by_the_shell(bundle: Path, redirection: str, code: int, said: str) -> None:
    line = " ".join(command("inspect", bundle)) + f" {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == (1 if said else 0)
    assert ("qwen2_vl" in done.stdout) == (redirection[:3] != ">&-" and redirection[:6] != "> /dev")


@pytest.mark.parametrize(
    "module", ["foveate.cli", "click", "foveate.commands.inspect", "msgspec", "hashlib"]
)
def test_ctrl_c_in_an_import(bundle: Path, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "inspect", str(bundle)],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")],
)
def test_signals_clean_what_was_being_written(
    tmp_path: Path, number: signal.Signals, said: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, "inspect", str(tmp_path / "bundle")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "writing\n"
        assert len(os.listdir(tmp_path)) == 1
        child.send_signal(number)
        assert child.stderr.read() == f"foveate: error: {said}; nothing was left half-written\n"
        assert child.wait(10) == 128 + number
    assert os.listdir(tmp_path) == []


def test_ctrl_c_is_ignored_where_it_was(tmp_path: Path) -> None:
    """As for a job that a shell started in the background."""
    line = f"trap '' INT; exec {sys.executable} -c '{STUCK}' inspect {tmp_path / 'bundle'}"
    with subprocess.Popen(
        ["bash", "-c", line],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGINT)
        time.sleep(0.1)
        assert child.poll() is None
        child.terminate()
        assert child.wait(10) == 143


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "checkpoint", "there"], "there is already there"),
        (["export", "checkpoint", "no/such/bundle"], "folder does not exist"),
        (["export", "checkpoint", "new", "--keep", "1.5"], "keep is 1.5"),
        (["export", "checkpoint", "new", "--visual-tokens", "0"], "give at least 1"),
        (["export", "checkpoint", "new", "--compressor", "none.safetensors"], "no such file"),
        (["export", "checkpoint", "new", "--precision", "int8"], "give --calibration"),
        (["calibrate", "train", "there", "file"], "file is already there"),
        (["calibrate", "train", "none", "new"], "no folder of relevance maps"),
        (["calibrate", "show", "checkpoint", "file.png"], "file.png is already there"),
        (["calibrate", "show", "checkpoint", "new.png", "--keep", "no"], "keep is 'no'"),
        (["evaluate", "checkpoint", "file", "--json=file"], "file is already there"),
        (["evaluate", "checkpoint", "file", "--keep", "no"], "keep is 'no'"),
    ],
)
def test_what_is_wrong_at_once_is_said_before_torch_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "file.png").touch()

    def fail(begin: object) -> None:
        raise AssertionError("torch is loaded")

    monkeypatch.setattr("foveate.commands.export.load_torch", fail)
    monkeypatch.setattr("foveate.commands.calibrate.load_torch", fail)
    assert said in refused(invoke(*arguments))

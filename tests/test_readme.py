"""The README's commands and its Python, run as they stand there."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from foveate.bundle.reader import Bundle

ROOT = Path(__file__).parent.parent
DESK = """
import json, sys
from foveate.cli import main
for words in json.loads(sys.argv[1]):
    if code := main(words, prog_name="foveate", standalone_mode=False):
        sys.exit(f"{words} exits with {code}")
"""
"""Runs the commands in one process, which imports torch once."""
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands were run in order."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "models").symlink_to(ROOT / "models")
    lines = "".join(blocks("console")).strip().splitlines()
    assert len(lines) == 11
    commands = [shlex.split(line) for line in lines]
    assert all(words[:2] == ["$", "foveate"] for words in commands)
    run(folder, "-c", DESK, json.dumps([words[2:] for words in commands]))
    return folder


def test_the_commands_run(desk: Path) -> None:
    assert (desk / "bundle" / "manifest.json").is_file()
    assert (desk / "bench.json").is_file()
    for picture in ("heatmap.png", "sheet.png", "f_theta.png", "kept.png"):
        assert (desk / picture).read_bytes().startswith(b"\x89PNG")
    for bundle, samples in (("bundle", "1,589 samples"), ("compressed", ", 8 samples")):
        compressor = Bundle.open(desk / bundle).manifest.compressor
        assert compressor.kind == "f_theta"
        assert samples in str(compressor.trained_on)


def test_the_run_answers_and_keeps_as_the_readme_says(desk: Path) -> None:
    commands = "".join(blocks("console")).splitlines()
    (command,) = [line for line in commands if line.startswith("$ foveate run ")]
    arguments = shlex.split(command)[2:]
    facts = json.loads(run(desk, "-m", "foveate", *arguments, "--force", "--json"))
    assert facts["text"] == "E"
    assert "The `run` above answers `E`" in README
    assert f"{facts['visual']['kept']} of {facts['visual']['total']} visual tokens" in README
    assert (ROOT / "docs/pictures/heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_every_link_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*/README.md")]
    assert len(pages) >= 11
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900


def test_the_python_runs_and_answers(desk: Path) -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    (desk / "scene.png").write_bytes((ROOT / "models/nano/samples/scene-77-00004.png").read_bytes())
    text, kept, total, _ = run(desk, "-c", code).split()
    assert (text, int(kept) * 2) == ("E", int(total))


def test_the_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def run(folder: Path, *arguments: str) -> str:
    """Run Python in `folder`; its output, or a failure that shows it."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout

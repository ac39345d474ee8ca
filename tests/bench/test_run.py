"""foveate bench: what it measures and says. How long anything took is never asserted."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from foveate.bench.result import STAGES
from foveate.bench.run import BenchOptions
from foveate.bundle.reader import Bundle
from foveate.errors import LimitError
from foveate.runtime.backends.ort.backend import OrtBackend, OrtDecoder
from tests.command import invoke, refused

QUICK = ("--new-tokens", 2, "--repeats", 2, "--warmup", 1, "--device", "cpu", "--keep", "1,0.5,3")
SIZE = ("--image-size", "112x84")


def test_against_transformers(
    tiny_bundle: Bundle, tiny_checkpoint: Path, evaluation: Path, tmp_path: Path
) -> None:
    """With the same tokens, transformers' first token is the same."""
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = (
        "bench", tiny_bundle.root, *QUICK, *SIZE, "--video", "4x84x56", "--against",
        tiny_checkpoint, "--json", out, "--plot", plot, "--quality", evaluation,
    )  # fmt: skip
    told = invoke(*arguments)
    assert told.exit_code == 0, told.stderr
    assert "112x84: 12 visual tokens" in told.stdout
    assert "times faster than transformers, same tokens" in told.stdout
    with Image.open(plot) as picture:
        assert picture.width > picture.height
    facts = json.loads(out.read_text())
    assert (facts["format"], facts["version"]) == ("foveate-bench", 1)
    assert facts["bundle"]["precision"] == "fp32"
    assert facts["transformers"]["dtype"] == "float32"
    assert facts["memory"]["peak"] > facts["memory"]["before"] > 0
    assert facts["machine"]["gpu"] is None
    still, video = facts["cases"]
    assert (still["scene"], video["scene"]) == ("112x84", "4x84x56")
    assert (still["visual_tokens"], video["visual_tokens"]) == (12, 12)
    for case in (still, video):
        check_case(case)
    refused(invoke(*arguments), "bench.json", "--force")


def check_case(case: dict[str, Any]) -> None:
    """Foveate with each keep, then transformers with all tokens and with the same."""
    sides = [(row["side"], row["kept"]) for row in case["rows"]]
    assert sides == [
        ("foveate", 12), ("foveate", 6), ("foveate", 3), ("transformers", 12),
        ("transformers, same tokens", 6), ("transformers, same tokens", 3),
    ]  # fmt: skip
    ours, theirs = case["rows"][:3], case["rows"][3:]
    for one, other in zip(ours, theirs, strict=True):
        assert one["first_token_id"] == other["first_token_id"]
        assert one["prompt_tokens"] == other["prompt_tokens"] == case["text_tokens"] + one["kept"]
        assert one["cache_bytes"] == other["cache_bytes"]
        assert len(one["rounds"]) == len(other["rounds"]) == 2
        assert set(one["seconds"]) - set(other["seconds"]) == {"compress"}
        assert set(other["seconds"]) == {
            "preprocess", "vision", "prefill", "first_token", "per_token",
        }  # fmt: skip
    assert set(ours[0]["times_faster_than"]) == {"transformers"}
    assert set(ours[1]["times_faster_than"]) == {
        "all_tokens", "transformers", "transformers_same_tokens",
    }  # fmt: skip


def test_batches(tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Cache and tokens a second are of all requests at once; transformers answers one at a time."""
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    told = invoke(
        "bench", tiny_bundle.root, *QUICK, *SIZE, "--batch", "3,1", "--against", tiny_checkpoint,
        "--json", out, "--plot", plot,
    )  # fmt: skip
    assert told.exit_code == 0, told.stderr
    for words in (
        "batch",
        "last first token",
        "a step gives each of them a token",
        "up to batch 3",
    ):
        assert words in told.stdout
    with Image.open(plot) as picture:
        assert picture.height > picture.width
    facts = json.loads(out.read_text())
    assert facts["batches"] == [1, 3]
    assert set(facts["memory"]["by_batch"]) == {"1", "3"}
    (case,) = facts["cases"]
    check_case({**case, "rows": [row for row in case["rows"] if row["batch"] == 1]})
    single, several = case["rows"][:3], case["rows"][3:6]
    for one, other in zip(single, several, strict=True):
        assert (one["batch"], other["batch"], other["side"]) == (1, 3, "foveate")
        assert other["kept"] == one["kept"]
        assert other["first_token_id"] == one["first_token_id"]
        assert other["prompt_tokens"] == one["prompt_tokens"]
        assert other["cache_bytes"] == 3 * one["cache_bytes"]
        assert set(other["seconds"]) - set(one["seconds"]) == {"last_first_token"}
        step = other["seconds"]["per_token"]["median"]
        assert other["tokens_per_second"] == pytest.approx(3 / step)
        for sample in other["rounds"]:
            assert sample["first_token"] < sample["last_first_token"]
            assert sum(sample[stage] for stage in STAGES) <= sample["last_first_token"]
    assert set(several[1]["times_faster_than"]) == {"all_tokens"}


def test_json_on_standard_output(tiny_bundle: Bundle) -> None:
    facts = json.loads(invoke("bench", tiny_bundle.root, *QUICK, *SIZE, "--json").stdout)
    assert facts["provider"] == "CPUExecutionProvider"
    assert facts["transformers"] is None
    assert facts["keeps"] == [1.0, 0.5, 3]
    assert set(facts["cases"][0]["rows"][1]["times_faster_than"]) == {"all_tokens"}


def test_it_needs_no_torch(tiny_bundle: Bundle) -> None:
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'matplotlib'):\n"
        "    sys.modules[name] = None\nfrom foveate.cli import main\nmain(sys.argv[1:])"
    )
    words = [str(word) for word in ("bench", tiny_bundle.root, *QUICK, *SIZE)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "module", "more", "extra"),
    [
        ("matplotlib.axes", "plot", ("--plot", "x.png"), "bench"),
        ("torch", "transformers_run", ("--against", "x"), "export"),
    ],
)
def test_what_is_missing_is_named(
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    module: str,
    more: tuple[str, str],
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"foveate.bench.{module}", raising=False)
    told = invoke("bench", tiny_bundle.root, *QUICK, *SIZE, *more)
    assert told.exit_code == 2
    assert told.stderr.splitlines()[-1].endswith(f"pip install 'foveate[{extra}]'")


def test_what_is_refused(tiny_bundle: Bundle, evaluation: Path, tmp_path: Path) -> None:
    root = tiny_bundle.root
    refused(invoke("bench", root, "--quality", evaluation), "--plot OUT.png")
    refused(invoke("bench", root, "--json", tmp_path / "no" / "b.json"), "folder does not exist")
    refused(invoke("bench", root, *SIZE, "--keep", "99", "--warmup", 1), "keep is 99 tokens")
    refused(invoke("bench", root, "--backend", "abacus"), "abacus")
    refused(invoke("bench", root, "--batch", "4,8", "--against", root), "add 1 to --batch")
    refused(invoke("bench", root, "--batch", "0"), "batch is '0'")
    refused(invoke("bench", tmp_path / "none"), "none")
    for name in ("new_tokens", "repeats", "warmup"):
        with pytest.raises(LimitError, match=name):
            BenchOptions(**{name: 0}).check()


def test_a_backend_that_takes_one_sequence_is_refused(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured, with the reason."""
    begin = OrtDecoder.__init__

    def begin_alone(self: OrtDecoder, *parts: Any) -> None:
        begin(self, *parts)
        self.capabilities = replace(self.capabilities, batch=1)

    monkeypatch.setattr(OrtDecoder, "__init__", begin_alone)
    monkeypatch.setattr(OrtBackend, "encode", None)
    refused(invoke("bench", tiny_bundle.root, *SIZE, "--batch", "1,4"), "decodes 1 together")


def test_against_transformers_whose_pictures_become_tiles(
    llava_contrib_bundle: Bundle, llava_checkpoint: Path
) -> None:
    """Frames are prepared by Foveate for both, as pixels for one and as levels for the other."""
    done = invoke(
        "bench", llava_contrib_bundle.root, *QUICK, "--image-size", "100x60", "--video", "2x60x40",
        "--against", llava_checkpoint, "--keep", "1,0.25",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "99 visual tokens" in done.stdout
    assert "times faster than transformers, same tokens" in done.stdout

"""Prompts longer than f_θ was trained on: both forms of nano's compressor graph against float64."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.bundle.manifest import CONTRIB_SUFFIX, ModelFacts
from foveate.export.contrib.cases import compressor_case
from foveate.export.contrib.compressor import compressor
from foveate.export.exporter import load_cast
from foveate.export.parity import Case
from foveate.export.plans import compressor_plan
from foveate.export.trace import save_graph, write_graph
from foveate.modeling.attention import GROUPED
from foveate.modeling.checkpoint import Checkpoint
from foveate.modeling.f_theta import FTheta
from foveate.modeling.families import torch_family
from foveate.modeling.language_model import Language
from foveate.modeling.ranker import Ranker
from foveate.runtime.memory_estimate import MemoryModel, Work
from tests.conftest import NANO
from tests.long_prompts import GRIDS, INSTRUCTION, TEXT, long_prompt

TOLERANCE = 2e-5
"""Of logits that spread over several units. Angles of positions up to 130 are float32, thus off by 1e-5,
and so are the attention scores; f_θ then sums up to 256 products of float32 in each of its layers."""
MEASURE = """
import sys
from pathlib import Path
from foveate.machine import Peak, resident
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions
from tests.long_prompts import long_prompt, short_prompt

visual, hidden = map(int, sys.argv[2:])
engine = OnnxEngine(Path(sys.argv[1]), OnnxOptions(threads=2, arena=True))
engine.run(short_prompt(hidden))
feeds = long_prompt(visual, visual, hidden)
before = resident()
with Peak(resident) as peak:
    engine.run(feeds)
print(peak.most - before)
"""


class Nano(NamedTuple):
    """The parts of nano that rank its visual tokens, and graphs of them by their operators."""

    language: Language
    facts: ModelFacts
    network: FTheta
    graphs: dict[str, onnxruntime.InferenceSession]
    folder: Path


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    folder = tmp_path_factory.mktemp("nano")
    checkpoint = Checkpoint.open(NANO)
    family = torch_family(checkpoint.family)
    model = load_cast(family, checkpoint, torch.float32)
    language, facts = family.language(model), family.facts(model)
    network, _ = FTheta.load(NANO / "f_theta.safetensors")
    ranker = Ranker(network)
    made = compressor(language, facts, ranker, torch.float32)
    save_graph("compressor", made, folder, CONTRIB_SUFFIX)
    family.set_attention(model, GROUPED)
    write_graph(compressor_plan(language, facts, ranker), folder)
    graphs = {
        operators: onnxruntime.InferenceSession(str(folder / f"compressor{suffix}"))
        for operators, suffix in (("standard", ".onnx"), ("contrib", CONTRIB_SUFFIX))
    }
    return Nano(language, facts, network, graphs, folder)


def turned(states: Tensor, positions: Tensor, facts: ModelFacts) -> Tensor:
    """Heads [heads, N, D] turned by m-rope, whose axes take turns by section; float64."""
    half = facts.head_dim // 2
    rates = facts.rope.theta ** -(torch.arange(half, dtype=torch.float64) / half)
    axes = torch.repeat_interleave(torch.tensor(facts.rope.sections))
    angles = positions.double()[axes].T * rates
    cos, sin = angles.cos(), angles.sin()
    first, second = states[..., :half], states[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@torch.no_grad()
def scores_in_float64(nano: Nano, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """f_θ's logits by the definition, every step in float64."""
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    first: Any = nano.language.layers[0]
    norm, heads = first.input_layernorm, nano.facts.heads
    index = torch.cat([given["text_index"], given["visual_index"]])
    embeds = torch.cat([given["text_embeds"], given["visual_embeds"]]).double()
    scale = (embeds.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    normed = embeds * scale * norm.weight.double()

    def projected(layer: Any, rows: Tensor, places: Tensor) -> Tensor:
        states = rows @ layer.weight.double().T + layer.bias.double()
        states = states.reshape(len(rows), -1, nano.facts.head_dim).transpose(0, 1)
        return turned(states, given["position_ids"][:, places], nano.facts)

    rows = given["instruction_rows"]
    query = projected(first.self_attn.q_proj, normed[rows], index[rows])
    key = projected(first.self_attn.k_proj, normed, index)
    key = key.repeat_interleave(heads // nano.facts.kv_heads, 0)
    products = query @ key.mT * nano.facts.head_dim**-0.5
    hidden = index[None, :] > index[rows][:, None]
    attention = products.masked_fill(hidden, float("-inf")).softmax(-1)
    visual = nano.network.pool(attention[..., len(given["text_index"]) :])
    visual = visual.reshape(1, nano.network.channels_in, -1)
    scaled = nano.network.scale(visual)
    for depthwise, pointwise in zip(nano.network.depthwise, nano.network.pointwise, strict=True):
        for layer in (depthwise, pointwise):
            scaled = torch.nn.functional.conv1d(
                scaled, layer.weight.double(), layer.bias.double(),
                padding=layer.padding, groups=layer.groups,
            )  # fmt: skip
        scaled = scaled.relu()
    head = nano.network.head
    assert head.bias is not None
    logits = torch.nn.functional.conv1d(scaled, head.weight.double(), head.bias.double())
    found: NDArray[np.float64] = logits[0, 0].numpy()
    return found


@pytest.mark.parametrize("operators", ["standard", "contrib"])
@pytest.mark.parametrize("visual", list(GRIDS))
def test_f_theta_over_thousands_of_tokens(nano: Nano, visual: int, operators: str) -> None:
    """What is kept is what float64 keeps, but for tokens as good as the threshold itself."""
    keep = visual // 4
    feeds = long_prompt(visual, keep, nano.facts.hidden_size)
    scores = scores_in_float64(nano, feeds)
    if operators == "contrib":
        case = Case("compressor", feeds, {}, lambda feeds, outputs: None)
        feeds = compressor_case(case).feeds
    session = nano.graphs[operators]
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    assert np.ptp(scores) > 1
    assert np.abs(found["scores"] - scores).max() <= TOLERANCE
    assert found["relevance"].sum() == pytest.approx(1, abs=1e-4)

    rows = found["kept_rows"] if operators == "contrib" else found["kept_indices"]
    kept = rows[rows < visual]
    assert len(kept) == keep
    assert (np.diff(kept) > 0).all()
    threshold = np.sort(scores)[-keep]
    wanted = np.flatnonzero(scores > threshold + 2 * TOLERANCE)
    assert np.isin(wanted, kept).all()
    assert (scores[kept] >= threshold - 2 * TOLERANCE).all()
    assert len(wanted) > 0.95 * keep


def test_memory_is_as_estimated(nano: Nano) -> None:
    """Within half of it: onnxruntime takes memory in pieces, and keeps some for later runs."""
    visual, facts = 8667, nano.facts
    model = MemoryModel(
        hidden=facts.hidden_size, heads=facts.heads, vision_width=0, decoder_width=0, patches=4.0,
        cache=0, scores=0, chunk=lambda length: length,
    )  # fmt: skip
    work = Work(visual=visual, text=TEXT, instruction=INSTRUCTION, kept=visual)
    estimate = model.stages(work)["compressor"]
    graph = nano.folder / "compressor.onnx"
    command = [sys.executable, "-c", MEASURE, str(graph), str(visual), str(facts.hidden_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert estimate / 1.5 <= int(done.stdout) <= estimate * 1.5

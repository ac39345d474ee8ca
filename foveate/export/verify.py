"""A bundle held against the checkpoint it says it came from, stage by stage."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from foveate.bundle.manifest import EMBEDDINGS, quantized
from foveate.bundle.reader import Bundle
from foveate.errors import BundleError, ParityError
from foveate.export.contrib.cases import checkpoint_cases
from foveate.export.exporter import load_cast
from foveate.export.parity import compare
from foveate.modeling.checkpoint import DTYPES, Checkpoint, release
from foveate.modeling.f_theta import FTheta
from foveate.modeling.families import torch_family
from foveate.modeling.ranker import Ranker

FLOATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ROOM = 1.25
"""How much further than at its export a quantized graph may be from transformers."""


def verify(
    bundle: Bundle, source: str | Path, progress: Callable[[str], None] = lambda stage: None
) -> dict[str, float]:
    """Compare every graph of a bundle with transformers' eager code on a checkpoint.

    Args:
        bundle: Opened, its checksums checked.
        source: The checkpoint's folder or hub id.
        progress: Told as each stage begins.

    Returns:
        For each graph the largest difference over the largest magnitude of the output concerned.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ParityError: The bundle is not of this checkpoint or of any, or differs by more than its precision allows.
    """
    if bundle.manifest.weights == "random":
        raise ParityError(
            f"{bundle.root} has random weights, so no checkpoint has the same; verify it without one"
        )
    checkpoint = Checkpoint.open(source)
    if checkpoint.family != bundle.manifest.family:
        raise ParityError(
            f"{bundle.root} is of the family {bundle.manifest.family} and {checkpoint.name} of "
            f"{checkpoint.family}; give the checkpoint that the bundle was exported from"
        )
    torch_half = torch_family(checkpoint.family)
    progress("weights")
    model = load_cast(torch_half, checkpoint, DTYPES[FLOATS[_float_type(bundle)]])
    if torch_half.facts(model) != bundle.manifest.model:
        raise ParityError(
            f"{checkpoint.name} has other sizes than {bundle.root} says; "
            "give the checkpoint that the bundle was exported from"
        )
    ranker = Ranker(words=bundle.manifest.compressor.words)
    if bundle.manifest.compressor.kind == "f_theta":
        ranker = Ranker(FTheta.load(bundle.file("f_theta"))[0])
    progress("reference")
    cases = checkpoint_cases(torch_half, model, ranker, bundle)
    release(model)
    progress("parity")
    files = {role: bundle.file(role) for role in (*bundle.manifest.graphs, EMBEDDINGS)}
    precision, allowed = bundle.manifest.precision, None
    if quantized(precision):
        allowed = {role: ROOM * parity for role, parity in bundle.manifest.parity.items()}
    with TemporaryDirectory() as copies:
        return compare(files, precision, bundle.manifest.operators, cases, Path(copies), allowed)


def _float_type(bundle: Bundle) -> str:
    """What the graphs compute in, where they are not quantized: the type of the decoder's embeddings.

    Raises:
        BundleError: A decoder that takes none.
    """
    inputs = {one.name: one.dtype for one in bundle.graph("decoder").inputs}
    if inputs.get("inputs_embeds") not in FLOATS:
        raise BundleError(f"{bundle.root}: its decoder takes no inputs_embeds of floats")
    return inputs["inputs_embeds"]

"""A bundle held against the checkpoint it says it came from, stage by stage."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from foveate.bundle.reader import Bundle
from foveate.errors import ParityError
from foveate.export.exporter import family_export
from foveate.export.parity import compare
from foveate.export.quantization.options import quantized
from foveate.modeling.cast_weights import recast
from foveate.modeling.checkpoint import DTYPES, Checkpoint, release
from foveate.modeling.f_theta import FTheta
from foveate.runtime.pipeline import read_family, read_tokenizer

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
    torch_half = family_export(checkpoint.family)
    progress("weights")
    dtype = DTYPES[FLOATS[bundle.graph("embeddings").outputs[0].dtype]]
    with TemporaryDirectory() as scratch:
        model = torch_half.load(recast(checkpoint, dtype, Path(scratch)), dtype)
    if torch_half.facts(model) != bundle.manifest.model:
        raise ParityError(
            f"{checkpoint.name} has other sizes than {bundle.root} says; "
            "give the checkpoint that the bundle was exported from"
        )
    network = None
    if bundle.manifest.compressor.kind == "f_theta":
        network, _ = FTheta.load(bundle.file("f_theta"))
    family = read_family(bundle, read_tokenizer(bundle))
    progress("reference")
    cases = torch_half.reference(model, network, family)
    if bundle.manifest.operators == "onnxruntime":
        cases = torch_half.fused_cases(cases, family)
    release(model)
    progress("parity")
    graphs = {role: bundle.file(role) for role in bundle.manifest.graphs}
    precision, allowed = bundle.manifest.precision, None
    if quantized(precision):
        allowed = {role: ROOM * parity for role, parity in bundle.manifest.parity.items()}
    with TemporaryDirectory() as twins:
        return compare(graphs, precision, bundle.manifest.operators, cases, Path(twins), allowed)

"""Training f_θ: Adam on KL(R_v* ‖ softmax(f_θ(A_v⁰))) (paper, Eq. 3 and appendix B)."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from foveate.atomic_write import writing
from foveate.calibration.device import pick_device
from foveate.calibration.ranking import chance, overlap_at_ratios
from foveate.calibration.relevance.store import Sample, Store
from foveate.calibration.training.curves import Events, curves_png
from foveate.calibration.training.examples import prepare
from foveate.calibration.training.labels import label_maker
from foveate.calibration.training.options import TrainingOptions
from foveate.calibration.training.outputs import Outputs
from foveate.calibration.training.result import TrainingResult
from foveate.calibration.training.run import Progress, Run, mean
from foveate.calibration.training.state import TrainingState
from foveate.errors import DataError, OutputExistsError
from foveate.modeling.f_theta import FTheta


def train_store(
    folder: Path, out: Path, options: TrainingOptions, progress: Progress = lambda status: None
) -> TrainingResult:
    """Train on the relevance maps in `folder`; see `train`.

    Raises:
        DataError: No relevance maps there, or damaged ones.
    """
    store = Store.open(folder)
    name = Path(store.manifest.checkpoint).name
    return train(store, out, options, progress, source=f"{name} ({store.manifest.mode})")


def train(
    samples: Iterable[Sample],
    out: Path,
    options: TrainingOptions,
    progress: Progress = lambda status: None,
    *,
    source: str = "samples",
) -> TrainingResult:
    """Train an f_θ, keep the weights of the epoch with the lowest validation KL, and write them.

    An interrupted training goes on where its last whole epoch ended when it is called again with
    the same arguments, and gives the same weights as one that was not interrupted.

    Args:
        samples: Attention and relevance of one checkpoint's samples.
        out: The safetensors file; its header holds the figures.
        options: See `TrainingOptions`.
        progress: Told after every step.
        source: What the samples are of, for the header.

    Raises:
        DataError: Too few samples, or options that cannot be.
        BackendError: The device cannot be had.
        OutputExistsError: An output is there, and `force` was not given.
        OutputError: An output could not be written.
    """
    options.check()
    device = pick_device(options.device)
    outputs = Outputs.of(out, options.plot, options.log_dir)
    outputs.check(force=options.force)
    aside = outputs.state

    if isinstance(samples, Iterator):
        samples = list(samples)
    make_label = label_maker(options.label, samples)
    data = prepare(samples, options.inputs, options.scaling, make_label, options.words)
    run = Run(data, options, device)
    training, validation = run.training, run.validation
    key = hashlib.sha256(f"{data.digest} {options.decisive()}".encode()).hexdigest()
    state = resumed(aside, key, options.force)
    if state is None:
        state = TrainingState(key)
        state.write(aside)
    attention = mean(overlap_at_ratios(one.attention, one.relevance) for one in validation)
    random = mean(chance(len(example.label)) for example in validation)

    references = {"attention": attention, "random": random}
    with Events(outputs.log_dir, references, state.history) as events:
        for epoch in run.epochs(state, progress):
            state.write(aside)
            events.add(epoch)

    trained_on = f"{source}, {len(data.all):,} samples"
    counts = len(training), len(validation), data.skipped
    paths = (outputs.plot, outputs.log_dir)
    result = TrainingResult(
        out, trained_on, state.history, attention, random, *counts, state.seconds, *paths
    )
    network = FTheta(data.channels_in, options.scaling, options.words)
    network.load_state_dict(state.best)
    content = network.serialized(header(result, options))
    state.finish(aside, out, content, force=options.force)
    state.finish(aside, outputs.plot, curves_png(result), force=options.force)
    with writing(aside):
        aside.unlink()
    return result


def resumed(path: Path, key: str, force: bool) -> TrainingState | None:
    """The state of an interrupted training, if there is one to go on with.

    Raises:
        DataError: It cannot be read.
        OutputExistsError: It is of another training, and `force` was not given.
    """
    if not path.exists():
        return None
    try:
        return TrainingState.read(path, key)
    except (DataError, OutputExistsError):
        if not force:
            raise
        return None


def header(result: TrainingResult, options: TrainingOptions) -> dict[str, str]:
    """What the file says of itself."""
    return {
        "trained_on": result.trained_on,
        **{f"option.{name}": value for name, value in options.decisive().items()},
        **{f"figure.{name}": str(value) for name, value in result.figures().items()},
        **{name: str(value) for name, value in result.background().items()},
    }

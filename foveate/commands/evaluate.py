"""`foveate evaluate`: what share of answers stays right on some of the visual tokens, by what chose them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import Choice, IntRange, option

from foveate.atomic_write import check_file, replace_file
from foveate.commands.options import LOADING, PATH, force, load_torch, loading, options, verb
from foveate.errors import CheckpointError
from foveate.terminal import Progress, tell

if TYPE_CHECKING:
    from foveate.calibration.evaluation.options import EvaluateOptions
    from foveate.calibration.evaluation.subject import Evaluated

PRINTED = "-"
BUNDLE, CHECKPOINT = "manifest.json", "config.json"
NOT_OF_CHECKPOINTS = tuple(name for name in LOADING if name != "device")
NOT_OF_BUNDLES = ("rank", "dtype")


@verb("foveate evaluate bundle held-out.jsonl --keep 0.5,0.25,0.1 --json kept.json --plot kept.png")
@click.argument("source", metavar="BUNDLE|CHECKPOINT")
@click.argument("data", type=PATH, nargs=-1, required=True)
@options(
    option("--rank", multiple=True, metavar="NAME|FILE,…",
           help="For a checkpoint: attention, as export takes it, relevance, relevance-clamp, relevance-mean, "
           "or the weights of a trained f_θ; several times for several.  [default: attention]"),
    option("--keep", default="0.5,0.25,0.1", metavar="RATIO|N,…",
           help="Visual tokens to keep; a question of fewer than N keeps all."),
    option("--ways", metavar="NAME,…",
           help="What tokens are chosen by beside the own question: other, neutral, random, centre, smaller, "
           "oracle, without, all-but-it, one-token.  [default: all]"),
    option("--neutral", default="Describe the picture.", metavar="TEXT", help="The neutral prompt."),
    option("--seed", type=IntRange(min=0), default=0, help="Of chance, and of the intervals."),
    option("--rule", type=Choice(["exact", "contains"]), default="exact",
           help="When an answer is right: it is one of the data's answers, or has one in it."),
    option("--max-new-tokens", type=IntRange(min=1), default=64, metavar="N",
           help="The longest answer."),
    option("--batch", type=IntRange(1, 4096), default=16, metavar="N",
           help="The most answers that are generated together."),
    option("--limit", type=IntRange(min=1), metavar="N",
           help="Ask only the first N questions of each file.  [default: all]"),
    option("--dtype", type=Choice(["fp32", "bf16"]),
           help="For a checkpoint: what the model computes in.  [default: fp32]"),
    *loading,
    option("--answers", type=PATH, metavar="FILE",
           help="Keep answers aside here while it runs.  [default: a file in the user's cache]"),
    option("--json", "out", is_flag=False, flag_value=PRINTED, metavar="[OUT.json]",
           help="Write JSON to a file, or print it instead of text."),
    option("--plot", type=PATH, metavar="OUT.png", help="Draw answers kept against tokens kept."),
    force,
)  # fmt: skip
def evaluate(
    source: str, data: tuple[Path, ...], out: str | None, plot: Path | None, force: bool, **how: Any
) -> None:
    """Measure what share of answers to DATA stays right on some of the visual tokens.

    Tokens are chosen by the question itself, by another one about the same picture, by a neutral prompt and
    by chance; by a smaller picture; and, where DATA has boxes, with and without the asked thing. The first
    figure is selectivity: own less other. DATA is JSON Lines, see the guide. A run that was stopped goes on
    by the same command. For several processes on a checkpoint put `accelerate launch -m` in front.
    """
    from foveate.calibration.evaluation.options import EvaluateOptions
    from foveate.calibration.evaluation.ways import WAYS, parse_keeps, parse_ways

    target = None if out in (None, PRINTED) else Path(str(out))
    for path in filter(None, (target, plot)):
        check_file(path, force=force)
    parse_keeps(how["keep"])
    names = ("keep", "neutral", "seed", "rule", "max_new_tokens", "batch", "limit", "answers")
    chosen = EvaluateOptions(
        ways=parse_ways(how["ways"]) if how["ways"] else tuple(WAYS),
        **{name: how[name] for name in names},
    )
    if plot is not None:
        from foveate.calibration.evaluation.plot import draw_evaluation
    evaluated = find_evaluated(source, chosen, how)
    from foveate.calibration.evaluation.evaluate import evaluate as run
    from foveate.calibration.evaluation.result import evaluation_facts
    from foveate.calibration.evaluation.table import describe_evaluation

    evaluation = run(evaluated, data, chosen, quiet=False)
    if evaluation is None:
        return
    document = json.dumps(evaluation_facts(evaluation), indent=2, ensure_ascii=False)
    if target is not None:
        replace_file(target, f"{document}\n".encode(), force=force)
    if plot is not None:
        figure = draw_evaluation(evaluation)
        replace_file(plot, lambda file: figure.savefig(file, format="png"), force=force)
    tell(document if out == PRINTED else describe_evaluation(evaluation))


def find_evaluated(source: str, chosen: "EvaluateOptions", how: dict[str, Any]) -> "Evaluated":
    """The bundle or the checkpoint of this name; torch is imported for a checkpoint alone.

    Args:
        source: A bundle's folder, or a checkpoint's folder or hub id.
        chosen: What is compared.
        how: The command line's options.

    Raises:
        CheckpointError: A folder that is neither, or options of the other.
        FoveateError: What opening it raises.
    """
    folder = Path(source)
    shared = {"max_new_tokens": chosen.max_new_tokens, "batch": chosen.batch}
    is_bundle = (folder / BUNDLE).is_file()
    if folder.exists() and not is_bundle and not (folder / CHECKPOINT).is_file():
        raise CheckpointError(
            f"{source} is neither a bundle, which has a {BUNDLE}, nor a checkpoint, which has a {CHECKPOINT}"
        )
    _check_options("bundle" if is_bundle else "checkpoint")
    if is_bundle:
        from foveate.calibration.evaluation.bundle import Bundle

        return Bundle(folder, {name: how[name] for name in LOADING}, **shared)
    with Progress() as progress:
        load_torch(progress.begin)
        from foveate.calibration.evaluation.checkpoint import Checkpoint

    dtype = how["dtype"] or "fp32"
    return Checkpoint(source, how["rank"], dtype=dtype, device=how["device"], **shared)


def _check_options(kind: str) -> None:
    """Refuse options that say nothing of what is evaluated."""
    context = click.get_current_context()
    names = NOT_OF_BUNDLES if kind == "bundle" else NOT_OF_CHECKPOINTS
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            flag = "--" + name.replace("_", "-")
            reason = (
                "which is ranked by its own compressor in its own precision"
                if kind == "bundle"
                else "which runs in torch"
            )
            raise CheckpointError(f"{flag} has no effect on a {kind}, {reason}; leave it out")

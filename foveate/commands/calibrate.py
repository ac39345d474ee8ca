"""`foveate calibrate`: relevance maps, and a trained f_θ that predicts them."""

from pathlib import Path
from typing import Any

import click
from click import Choice, FloatRange, IntRange, option

from foveate.commands.options import PATH, as_json, debug, device, force, load_torch, options, verb
from foveate.errors import DataError
from foveate.terminal import Progress, note, tell, tell_json

mode = option("--mode", type=Choice(["grad", "grad-clamp", "mean"]), default="grad",
              help="Relevance by Eq. 1, with negative products dropped, or without gradients.")  # fmt: skip
relevance_mode = option("--mode", type=Choice(["auto", "grad", "grad-clamp", "mean"]), default="auto",
                        help="Relevance by Eq. 1 (grad), with negative products dropped, or without "
                        "gradients; auto measures which of them keeps the most answers.")  # fmt: skip
dtype = option("--dtype", type=Choice(["fp32", "bf16"]), default="fp32",
               help="What the model computes in.")  # fmt: skip
rule = option("--rule", type=Choice(["exact", "contains"]), default="exact",
              help="When an answer is right: it is one of the data's answers, or has one in it.")  # fmt: skip
own_answers = option("--own-answers", is_flag=True,
                     help="Take the model's own answers as right, all of them: DATA need have none.")  # fmt: skip
longest = option("--max-new-tokens", type=IntRange(min=1), default=64, metavar="N",
                 help="The longest answer.")  # fmt: skip

network = (
    option("--epochs", type=IntRange(min=1), default=100, metavar="N",
           help="How often every sample is seen."),
    option("--batch", type=IntRange(min=1), default=128, metavar="N",
           help="Samples for each step of Adam."),
    option("--seed", type=IntRange(min=0), default=0,
           help="Of the weights, the order and the split; makes training repeatable on a CPU."),
    option("--validation", type=FloatRange(0, 1, min_open=True, max_open=True), default=0.1,
           metavar="SHARE", help="Pictures to validate on, and not to train on."),
    option("--inputs", type=Choice(["mean", "heads"]), default="mean",
           help="Read attention averaged over heads, as the paper does, or each head apart."),
    option("--scaling", type=Choice(["none", "log"]), default="none",
           help="Attention as it is, or the log of it times the number of visual tokens."),
    option("--words", type=Choice(["mean", "unusual", "learned"]), default="mean",
           help="The question's words count alike, as in the paper, by how unusual their attention is, or by "
           "that and more, as trained with f_θ."),
    option("--label", type=Choice(["relevance", "contrast"]), default="relevance",
           help="Learn relevance itself, or what a question has more of it than the others about its "
           "picture."),
)  # fmt: skip
"""How f_θ is trained."""


@verb("foveate calibrate relevance path/to/checkpoint data.jsonl maps --dtype bf16")
@click.argument("checkpoint")
@click.argument("data", type=PATH)
@click.argument("out", type=PATH)
@options(
    relevance_mode,
    dtype,
    device,
    rule,
    option("--keep-wrong", is_flag=True, help="Keep the maps of wrong answers too."),
    own_answers,
    longest,
    option("--limit", type=IntRange(min=1), metavar="N",
           help="Take only the first N records.  [default: all]"),
    option("--report", is_flag=True,
           help="Also measure by mode whether relevance is about the question: answers kept by its own "
           "map, and by that of another question about the same picture."),
    force,
    as_json,
)  # fmt: skip
def relevance(checkpoint: str, data: Path, out: Path, as_json: bool, **how: Any) -> None:
    """Compute relevance maps of CHECKPOINT's right answers to the questions of DATA, into OUT.

    DATA is JSON Lines: {"id", "image", "images" or "video", "question", "answer" or "answers"}. A run that
    was stopped goes on by the same command. For several processes put `accelerate launch -m` in
    front.
    """
    from foveate.calibration.relevance import collect as collecting

    options = collecting.CollectOptions(**how)
    collected = collecting.collect(checkpoint, data, out, options, quiet=False)
    if collected is None:
        return
    facts = collecting.collected_facts(collected)
    tell_json(facts) if as_json else tell(collecting.describe_collected(collected))


@verb(
    "foveate calibrate show path/to/checkpoint relevance.png --image street.jpg "
    '--question "What does the sign say?"'
)
@click.argument("checkpoint")
@click.argument("out", type=PATH, metavar="OUT.png")
@options(
    option("--image", "images", multiple=True, metavar="FILE",
           help="A picture; several times for several in one question."),
    option("--video", type=PATH, metavar="FILE", help="A video, in place of pictures."),
    option("--question", "questions", multiple=True, metavar="TEXT",
           help="A question about the pictures; several times to compare."),
    option("--data", type=PATH, metavar="DATA.jsonl",
           help="Take questions and pictures from here."),
    option("--id", "ids", multiple=True, metavar="ID",
           help="One of the data; several times for several."),
    option("--compressor", default="attention", metavar="FILE|attention|attention:FORM",
           help="The weights of a trained f_θ, or first-layer attention, its words weighed by FORM: mean or "
           "unusual."),
    option("--keep", default="0.5,0.25", metavar="RATIO|N,…", help="Visual tokens to keep."),
    mode,
    dtype,
    device,
    force,
    as_json,
)  # fmt: skip
def show(checkpoint: str, out: Path, as_json: bool, **how: Any) -> None:
    """Draw the relevance of visual tokens to CHECKPOINT's answers, and its answers from the kept ones.

    Into OUT.png, for each question: its words, shaded by what they count; relevance R_v, and below it
    f_θ's prediction; the best tokens with the rest white; and the answer that they give. A video is
    drawn frame by frame, its best tokens outlined.
    """
    from foveate.runtime.heatmap import check_target
    from foveate.runtime.keep import parse_keep

    check_target(out, force=how["force"])
    for one in how["keep"].split(","):
        parse_keep(one)
    with Progress() as progress:
        load_torch(progress.begin)
        from foveate.calibration.drawing import show as showing

        wanted = (how.pop(name) for name in ("images", "questions", "data", "ids", "video"))
        samples = showing.gather_samples(*wanted)
        drawn = showing.show(checkpoint, out, samples, progress=progress.begin, **how)
    facts = showing.show_facts(drawn, out)
    tell_json(facts) if as_json else tell(showing.describe_show(drawn, out))


@verb("foveate calibrate train maps f_theta.safetensors --plot curves.png")
@click.argument("relevance", type=PATH)
@click.argument("out", type=PATH)
@options(
    *network,
    device,
    option("--plot", type=PATH, metavar="OUT.png", help="The curves.  [default: OUT with .png]"),
    option("--log-dir", type=PATH, metavar="DIR",
           help="The curves for TensorBoard.  [default: OUT with .tensorboard]"),
    force,
    as_json,
)  # fmt: skip
def train(relevance: Path, out: Path, as_json: bool, **how: Any) -> None:
    """Train f_θ on the maps in RELEVANCE, and write it to OUT, a safetensors file.

    The weights of the epoch with the lowest validation loss are kept. A run that was stopped goes
    on by the same command.
    """
    from foveate.calibration.training.outputs import Outputs

    if not relevance.is_dir():
        raise DataError(
            f"{relevance} is no folder of relevance maps; make them with foveate calibrate relevance"
        )
    Outputs.of(out, how["plot"], how["log_dir"]).check(force=how["force"])
    with Progress() as progress:
        load_torch(progress.begin)
        from foveate.calibration.training.options import TrainingOptions
        from foveate.calibration.training.progress import TrainingProgress
        from foveate.calibration.training.result import describe_training, training_facts
        from foveate.calibration.training.train import train_store

    with TrainingProgress() as shown:
        result = train_store(relevance, out, TrainingOptions(**how), shown)
    tell_json(training_facts(result)) if as_json else tell(describe_training(result))


@verb("foveate calibrate auto-keep path/to/checkpoint held_out.jsonl f_theta.safetensors")
@click.argument("checkpoint")
@click.argument("data", type=PATH)
@click.argument("compressor", metavar="FILE|attention")
@options(
    option("--target", type=FloatRange(0, 1, min_open=True), default=0.99, metavar="SHARE",
           help="The share of answers that are to stay."),
    option("--least", type=FloatRange(0, 1, min_open=True), default=0.02, metavar="RATIO",
           help="The smallest ratio of visual tokens to keep."),
    option("--most", type=FloatRange(0, 1, min_open=True), default=0.5, metavar="RATIO",
           help="The largest."),
    own_answers,
    dtype,
    device,
    rule,
    longest,
    option("--limit", type=IntRange(min=1), metavar="N",
           help="Take only the first N records.  [default: all]"),
    option("--seed", type=IntRange(min=0), default=0,
           help="Of the split by picture: half to calibrate, half to measure."),
    force,
    as_json,
)  # fmt: skip
def auto_keep(checkpoint: str, data: Path, compressor: str, as_json: bool, **how: Any) -> None:
    """Find what keep="auto" is to keep so that CHECKPOINT's answers to DATA stay.

    It is the smallest share of the relevance that f_θ predicts, and is noted in FILE, the weights of
    f_θ; export takes it from there. DATA is JSON Lines, as for relevance, of pictures that f_θ was not
    trained on.
    """
    from foveate.calibration import auto_keep as calibrating

    options = calibrating.AutoKeepOptions(**how)
    result = calibrating.calibrate_auto_keep(checkpoint, data, compressor, options, quiet=False)
    if result is None:
        return
    facts = calibrating.auto_keep_result_facts(result)
    tell_json(facts) if as_json else tell(calibrating.describe_auto_keep(result))


@verb("foveate calibrate run path/to/checkpoint questions.jsonl made --own-answers")
@click.argument("checkpoint")
@click.argument("questions", type=PATH)
@click.argument("out", type=PATH)
@options(
    own_answers,
    option("--held-out", type=FloatRange(0, 1, min_open=True, max_open=True), default=0.2,
           metavar="SHARE", help="Pictures to measure on, and not to train on."),
    relevance_mode,
    *network,
    option("--keep", default="0.5,0.25,0.1", metavar="RATIO|N,…",
           help="Visual tokens to keep in the measurement."),
    option("--target", type=FloatRange(0, 1, min_open=True), default=0.99, metavar="SHARE",
           help="The share of answers that keep=auto is to keep."),
    dtype,
    device,
    rule,
    longest,
    option("--limit", type=IntRange(min=1), metavar="N",
           help="Take only the first N questions.  [default: all]"),
    force,
    as_json,
)  # fmt: skip
def run(checkpoint: str, questions: Path, out: Path, as_json: bool, **how: Any) -> None:
    """Make a compressor for CHECKPOINT from QUESTIONS, and measure it, all into the folder OUT.

    QUESTIONS is a JSON Lines file, as for relevance, or a folder of them. Pictures are parted: on most
    of them relevance maps are made and f_θ is trained; on the rest keep=auto is calibrated and answers
    are counted. OUT gets f_theta.safetensors, the maps, figures.json and a picture. A run that was
    stopped goes on by the same command.
    """
    from foveate.runtime.keep import parse_keep

    for one in how["keep"].split(","):
        parse_keep(one)
    with Progress() as progress:
        load_torch(progress.begin)
        from foveate.calibration import recipe
        from foveate.calibration.recipe_figures import describe_figures
        from foveate.calibration.training.options import DECISIVE, TrainingOptions

    training = {name: how.pop(name) for name in DECISIVE}
    options = recipe.RecipeOptions(
        training=TrainingOptions(**training, device=how["device"]), **how
    )
    figures = recipe.run_recipe(checkpoint, questions, out, options, quiet=False, say=note)
    tell_json(figures) if as_json else tell(describe_figures(figures))


@click.group(commands=[run, relevance, train, auto_keep, show])
def calibrate() -> None:
    """Train the compressor of a checkpoint: relevance maps first, then f_θ.

    \b
    Try it:  foveate calibrate run CHECKPOINT questions.jsonl made --own-answers
    or by hand:  foveate calibrate relevance CHECKPOINT data.jsonl maps
                 foveate calibrate train maps f_theta.safetensors
    """


calibrate.params.append(debug)

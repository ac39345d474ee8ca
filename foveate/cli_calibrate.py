"""The verbs of `foveate calibrate`: relevance maps, and a trained f_θ that predicts them."""

import click

from foveate.verbs import debug


@click.group()
def calibrate() -> None:
    """Train the compressor of a checkpoint: relevance maps first, then f_θ.

    \b
    Try it:  foveate calibrate relevance CHECKPOINT data.jsonl maps
             foveate calibrate train maps f_theta.safetensors
    """


calibrate.params.append(debug)

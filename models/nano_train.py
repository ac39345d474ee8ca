"""Trains the nano checkpoint in legs, each going on from the one before.

python models/nano_train.py OUT --mode captions --minutes 8
python models/nano_train.py OUT2 --resume OUT --mode whole --minutes 8
"""

import argparse
import json
import time
from pathlib import Path

import torch
from nano_batches import Batch, Batches, held_out, pictures_of
from nano_checkpoint import write_folder
from nano_model import Nano, Packed, text_block, vision_block
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

TEACHERS = (2, 3, 4, 5)
"""The layers whose attention layer 0 is pulled towards."""


def answers(nano: Nano, batch: Batch, visual: Tensor, kept: Tensor | None) -> tuple[Packed, Tensor]:
    """A batch's rows with the visual tokens that are left, packed; and their numbers."""
    rows, columns = batch.grid
    whole = visual[batch.picture]
    if kept is None:
        kept = torch.arange(rows * columns, device=visual.device).expand(len(whole), -1)
    else:
        whole = whole.gather(1, kept[..., None].expand(-1, -1, whole.shape[-1]))
        closed = ~batch.whole[:, None, None]
        whole = torch.where(closed, whole.detach(), whole)
    text = (batch.ids, batch.segments, batch.places)
    return nano.pack(whole, kept, columns, max(rows, columns), text), kept


@torch.no_grad()
def first_look(nano: Nano, batch: Batch, visual: Tensor) -> Tensor:
    """A_v⁰ of each row's questions, float32 [R, N]: layer 0's attention, mean over heads and words."""
    packed, _ = answers(nano, batch, visual, None)
    looks = nano.looks(packed, packed.embeds, 0, batch.ids.shape[1])
    asked = batch.asked.float()
    return torch.einsum("rt,rtn->rn", asked, looks) / asked.sum(1, keepdim=True)


def pull(nano: Nano, batch: Batch, packed: Packed, states: list[Tensor]) -> Tensor:
    """KL of layer 0's attention from questions to that of later layers from answers, by segment.

    Both are normed over visual tokens; nothing goes back into the later layers' states.
    """
    length = batch.ids.shape[1]
    most = int(batch.segments.shape[1] // 12)
    number = torch.arange(1, most + 1, device=batch.ids.device)
    own = (batch.segments[:, None, :] == number[:, None]).float()
    asked = own * batch.asked[:, None, :]
    said = own * (batch.targets >= 0)[:, None, :]
    with torch.no_grad():
        teacher = sum(said @ nano.looks(packed, states[layer], layer, length) for layer in TEACHERS)
        assert isinstance(teacher, Tensor)
        teacher = teacher / teacher.sum(-1, keepdim=True).clamp(min=1e-9)
    student = asked @ nano.looks(packed, states[0], 0, length)
    student = student / student.sum(-1, keepdim=True).clamp(min=1e-9)
    apart = (teacher * ((teacher + 1e-6).log() - (student + 1e-6).log())).sum(-1)
    real = (asked.sum(-1) > 0) & (said.sum(-1) > 0)
    return (apart * real).sum() / real.sum().clamp(min=1)


def step_loss(nano: Nano, batch: Batch, options: argparse.Namespace, draw: float) -> Tensor:
    """The loss of one batch; of those with holes `draw` decides whose attention makes them."""
    visual = nano.vision(pictures_of(batch, blur=True))
    kept = batch.kept
    if kept is not None and draw < options.ranked:
        assert batch.needed is not None
        scores = first_look(nano, batch, visual) + batch.needed
        kept = scores.topk(kept.shape[1]).indices.sort().values
    packed, _ = answers(nano, batch, visual, kept)
    states = nano.language(packed)
    length = batch.ids.shape[1]
    loss = entropy(nano.logits(packed, states[-1], length), batch.targets)
    if options.early:
        loss = loss + options.early * entropy(nano.logits(packed, states[1], length), batch.targets)
    if options.pull and kept is None:
        loss = loss + options.pull * pull(nano, batch, packed, states)
    return loss


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits [R, T, V] where targets [R, T] are given."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def right(nano: Nano, batch: Batch, visual: Tensor, kept: Tensor | None) -> Tensor:
    """Whether every token of a row's answers (stop included) is the first choice, bool [R]."""
    packed, _ = answers(nano, batch, visual, kept)
    best = nano.logits(packed, nano.language(packed)[-1], batch.ids.shape[1]).argmax(-1)
    return ((best == batch.targets) | (batch.targets < 0)).all(1)


@torch.no_grad()
def evaluate(nano: Nano, tests: list[Batch], device: str) -> dict[str, str]:
    """By kind: percent right with all tokens, then of those what stays right.

    Own / other by A_v⁰ at 25 %, own / other at 10 %, the asked thing and others at random at 25 %,
    its most attended token alone, and everything but it.
    """
    figures = {}
    for batch in (test.to(device) for test in tests):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            visual = nano.vision(pictures_of(batch, blur=False, split="test"))
            full = right(nano, batch, visual, None)
            line = [float(full.float().mean())]
            if batch.needed is not None and full.any():
                own = first_look(nano, batch, visual)
                other = own.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
                noise = torch.rand_like(own)
                count = own.shape[1]
                alone = own * batch.needed + noise * 1e-6
                without = noise - 2 * batch.needed
                for scores, share in (
                    (own, 0.25),
                    (other, 0.25),
                    (own, 0.1),
                    (other, 0.1),
                    (noise + batch.needed, 0.25),
                    (alone, 1 / count),
                    (without, 1 - float(batch.needed.float().mean(1).max())),
                ):
                    kept = scores.topk(max(1, round(share * count))).indices.sort().values
                    stays = right(nano, batch, visual, kept)
                    line.append(float(stays[full].float().mean()))
        figures[batch.kind] = " ".join(f"{100 * share:.0f}" for share in line)
    return figures


def optimizers(nano: Nano, kind: str, rate: float, device: str) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices of layers and AdamW for the rest."""
    matrices, rest = [], []
    for name, weight in nano.named_parameters():
        inner = kind == "muon" and weight.dim() == 2 and "embed" not in name
        (matrices if inner else rest).append(weight)
    fused = device == "cuda"
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.02, fused=fused)
    ]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
        found.append(muon)
    return found


def train(options: argparse.Namespace) -> None:
    """Train until the time is up or the steps are done; save weights and moments."""
    began = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    out: Path = options.out
    model = write_folder(out)
    nano = Nano(model, Tokenizer.from_file(str(out / "tokenizer.json"))).to(device)
    steppers = optimizers(nano, options.optimizer, options.rate, device)
    if options.resume:
        state = torch.load(options.resume / "state.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        if not options.fresh:
            for stepper, saved in zip(steppers, state["optimizers"], strict=True):
                stepper.load_state_dict(saved)
    if options.compile:
        nano.vision_block = torch.compile(vision_block, dynamic=True)
        nano.text_block = torch.compile(text_block, dynamic=True)
    tests = held_out(out, 7, options.tests)
    log, losses = [], []
    generator = torch.Generator().manual_seed(options.seed)
    modes = [part.split(":") for part in options.mode.split(",")]
    streams = [
        iter(
            DataLoader(
                Batches(
                    out,
                    options.batch,
                    options.seed,
                    mode,
                    options.told,
                    options.easy,
                    options.large,
                ),
                batch_size=None,
                num_workers=max(0, options.workers // len(modes)),
                prefetch_factor=4 if options.workers else None,
            )
        )
        for mode, *_ in modes
    ]
    shares = torch.tensor([float(part[1]) if len(part) > 1 else 1.0 for part in modes])
    step, last, over = 0, time.time(), False
    while not over:
        progress = min(1.0, (time.time() - began) / 60 / options.minutes)
        rate = options.rate * (options.end / options.rate) ** progress
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 200)
        stream = streams[int(torch.multinomial(shares, 1, generator=generator))]
        batch = next(stream).to(device)
        draw = float(torch.rand((), generator=generator))
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = step_loss(nano, batch, options, draw)
        for stepper in steppers:
            stepper.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(nano.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        step += 1
        losses.append(loss.detach())
        over = time.time() - began > options.minutes * 60 or step >= options.steps
        if over or step % options.every == 0:
            line = {
                "step": step,
                "minutes": round((time.time() - began) / 60, 2),
                "loss": round(float(torch.stack(losses).mean()), 4),
                "pictures_a_second": round(len(losses) * options.batch / (time.time() - last)),
                **evaluate(nano, tests, device),
            }
            print(json.dumps(line), flush=True)
            log.append(json.dumps(line) + "\n")
            last, losses = time.time(), []
    saved = [stepper.state_dict() for stepper in steppers]
    torch.save({"model": model.state_dict(), "optimizers": saved}, out / "state.pt")
    (out / "log.jsonl").write_text("".join(log))
    model.half().save_pretrained(out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", type=Path, help="the folder of the leg before")
    parser.add_argument(
        "--fresh", action="store_true", help="without the moments of the leg before"
    )
    parser.add_argument("--minutes", type=float, default=8, help="stop and save after this long")
    parser.add_argument("--steps", type=int, default=10**9, help="or after this many steps")
    parser.add_argument("--mode", default="captions", help="captions, whole, holes: MODE:SHARE,…")
    parser.add_argument("--easy", action="store_true", help="small pictures with few things")
    parser.add_argument("--large", type=float, default=0.0, help="share of batches of large ones")
    parser.add_argument("--batch", type=int, default=128, help="pictures a batch")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at first")
    parser.add_argument("--end", type=float, default=1e-3, help="and at the end of the leg")
    parser.add_argument("--told", type=float, default=0.25, help="share of pictures described")
    parser.add_argument("--early", type=float, default=0.0, help="weight of layer 0's early exit")
    parser.add_argument("--pull", type=float, default=0.0, help="weight of layer 0's pull")
    parser.add_argument("--ranked", type=float, default=0.0, help="holes made by A_v⁰ itself")
    parser.add_argument("--every", type=int, default=1000, help="steps between evaluations")
    parser.add_argument("--tests", type=int, default=128, help="held-out pictures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    train(parser.parse_args())


if __name__ == "__main__":
    main()

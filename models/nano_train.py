"""Trains the nano checkpoint: dense captions first, then many questions a picture.

A training sequence is a picture's prompt prefix and several segments, each a question with its
answer. A segment sees the prefix and itself, and its positions start where the prefix ends, so that
each is exactly what a request for it alone would be.

    python models/nano_train.py OUT --minutes 9 [--resume OUT/state.pt]
"""

import argparse
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path

import nano_scenes as scenes
import numpy as np
import torch
from nano_batches import TEXT, Batch, Batches, easy_pictures, fitted, take
from nano_checkpoint import SYSTEM, write_folder
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_vision,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Nano(nn.Module):
    """The checkpoint's own weights with a forward pass made for packed batches of one size."""

    def __init__(self, model: Qwen2VLForConditionalGeneration, tokenizer: Tokenizer) -> None:
        """Train `model`'s weights in place."""
        super().__init__()
        self.model = model
        self.vision_block, self.text_block = vision_block, text_block
        start = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
        self.register_buffer("before", torch.tensor(encode(start)), persistent=False)
        self.register_buffer("after", torch.tensor(encode("<|vision_end|>")), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        segments: Tensor,
        places: Tensor,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, TEXT, V] for pictures uint8 [B, H, W, 3] and packed segments, and layer 0's own.

        Of the visual tokens only `kept` int64 [B, K] are left, at their own positions.
        """
        batch, height, width, _ = images.shape
        rows, columns = height // 28, width // 28
        text = self.model.model.language_model
        visual = self.vision(images)
        count = rows * columns
        if kept is None:
            kept = torch.arange(count, device=images.device).expand(batch, -1)
        else:
            visual = visual.gather(1, kept[..., None].expand(-1, -1, visual.shape[-1]))
        before, after = len(self.before), len(self.after)
        prefix = before + kept.shape[1] + after
        spare = -(prefix + ids.shape[1]) % 8
        ids, segments, places = (
            functional.pad(part, (0, spare)) for part in (ids, segments, places)
        )
        embeds = torch.cat(
            [
                text.embed_tokens(self.before).expand(batch, -1, -1).to(visual.dtype),
                visual,
                text.embed_tokens(self.after).expand(batch, -1, -1).to(visual.dtype),
                text.embed_tokens(ids).to(visual.dtype),
            ],
            dim=1,
        )
        device = images.device
        jump = before + max(rows, columns)
        grid = torch.stack([torch.zeros_like(kept), kept // columns, kept % columns]) + before
        head = torch.arange(before, device=device).expand(3, batch, -1)
        tail = (jump + torch.arange(after, device=device)).expand(3, batch, -1)
        asked = (jump + after + places).expand(3, -1, -1)
        positions = torch.cat([head, grid, tail, asked], dim=2)
        segment = torch.cat([segments.new_zeros(batch, prefix), segments], dim=1)
        real = torch.cat([segments.new_ones(batch, prefix), segments], dim=1) > 0
        order = torch.arange(segment.shape[1], device=device)
        own = segment[:, None, :] == segment[:, :, None]
        shared = (segment[:, None, :] == 0) & real[:, None, :]
        mask = (own | shared) & (order[None, :] <= order[:, None])
        first, last = (
            self.model.lm_head(text.norm(hidden[:, prefix : prefix + TEXT]))
            for hidden in self.language(embeds, positions, mask[:, None])
        )
        return last, first

    def vision(self, images: Tensor) -> Tensor:
        """Visual tokens [B, N, H] of pictures uint8 [B, H, W, 3]."""
        batch, height, width, _ = images.shape
        high, wide = height // 14, width // 14
        tower = self.model.model.visual
        pixels = ((images.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)
        pixels = pixels.reshape(batch, 3, high // 2, 2, 14, wide // 2, 2, 14)
        pixels = pixels.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, high * wide, -1)
        kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
        hidden = functional.linear(pixels, kernel)
        place = torch.stack(
            torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij"), dim=-1
        ).to(images.device)
        place = place.reshape(high // 2, 2, wide // 2, 2, 2).permute(0, 2, 1, 3, 4).reshape(-1, 2)
        cos, sin = tower.rotary_pos_emb(hidden, place)
        for block in tower.blocks:
            hidden = self.vision_block(block, hidden, cos, sin)
        merger = tower.merger
        return merger.mlp(merger.ln_q(hidden).reshape(batch, high * wide // 4, -1))

    def language(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States after layer 0 and after the last, over a packed batch; mask bool [B, 1, T, T]."""
        text = self.model.model.language_model
        cos, sin = text.rotary_emb(embeds, positions)
        states = [embeds]
        for layer in text.layers:
            states.append(self.text_block(layer, states[-1], cos, sin, mask))
        return states[1], states[-1]


def vision_block(block: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One layer of the vision tower over pictures of one size, [B, P, C]."""
    query, key, value = (
        block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)
    )
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )
    hidden = hidden + block.attn.proj(mixed.transpose(1, 2).flatten(2))
    return hidden + block.mlp(block.norm2(hidden))


def text_block(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    """One layer of the language model over a packed batch, [B, T, H]."""
    attention = layer.self_attn
    states = layer.input_layernorm(hidden)
    query, key, value = (
        project(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, cos.to(query.dtype), sin.to(query.dtype))
    groups = attention.num_key_value_groups
    mixed = functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=mask,
    )
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def pictures_of(batch: Batch, easy: Tensor, device: str, blur: bool) -> Tensor:
    """A batch's pictures uint8 [B, H, W, 3]; `blur` sometimes resizes them as real ones are."""
    if batch.kind == "easy":
        images = easy[batch.drawing[0].to(easy.device)].to(device)
        return images.flip(2) if blur and torch.rand(()) < 0.5 else images
    images = scenes.draw(
        *(part.to(device, non_blocking=True) for part in batch.drawing), batch.size
    )
    targets = [fitted(batch.size)] if batch.size != fitted(batch.size) else []
    if blur and torch.rand(()) < 0.2:
        factor = 0.85 + 0.3 * float(torch.rand(()))
        height, width = batch.size
        targets = [(int(height * factor), int(width * factor)), fitted(batch.size)]
    floats = images.permute(0, 3, 1, 2).float()
    for target in targets:
        floats = functional.interpolate(
            floats, target, mode="bicubic", antialias=True, align_corners=False
        )
    return floats.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def holes(batch: Batch, keep: float) -> Tensor:
    """Visual tokens to keep, int64 [B, K] ascending, about a share `keep` of all.

    Random, denser around some things than around others. The tokens in the middle of things stay,
    so that every question can still be answered.
    """
    rows, columns = (side // 28 for side in fitted(batch.size))
    chances = torch.rand(len(batch.ids), rows * columns)
    least = 1
    if batch.kind != "easy":
        middles = batch_middles(batch)
        strength = torch.rand(middles.shape) * random.uniform(0, 3)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                row = (middles // columns + down).clamp(0, rows - 1)
                column = (middles % columns + right).clamp(0, columns - 1)
                chances.scatter_add_(1, row * columns + column, strength * torch.rand(row.shape))
        chances.scatter_(1, middles, 100 + torch.rand(middles.shape))
        least = int((chances >= 100).sum(1).max())
    return chances.topk(max(least, int(keep * chances.shape[1]))).indices.sort().values


def batch_middles(batch: Batch) -> Tensor:
    """The visual token in the middle of each tile and bar, int64 [B, M]; some more than once."""
    _, rectangles, _, placed, _ = batch.drawing
    tiles = placed[..., 1:].float() + scenes.TILE / 2
    tiles = torch.where(placed[..., :1] < 0, tiles[:, :1], tiles)
    bars = torch.stack(
        [rectangles[..., 0] + rectangles[..., 2], rectangles[..., 1] + rectangles[..., 3]], dim=-1
    )
    bars = torch.where(rectangles[..., 2:3] == 0, 2 * tiles[:, :1], bars.float())[:, 1:]
    points = torch.cat([tiles, bars / 2], dim=1)
    rows, columns = (side // 28 for side in fitted(batch.size))
    grid = torch.tensor([rows, columns])
    cells = (
        (points / torch.tensor(batch.size) * grid).long().clamp(min=torch.tensor(0), max=grid - 1)
    )
    return cells[..., 0] * columns + cells[..., 1]


@torch.no_grad()
def evaluate(
    nano: Nano, batches: list[Batch], easy: Tensor, device: str
) -> dict[str, tuple[float, int]]:
    """Share of answers whose every token (stop included) is the model's first choice, by task."""
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        images = pictures_of(batch, easy, device, blur=False)
        ids, segments, places = (
            part.to(device) for part in (batch.ids, batch.segments, batch.places)
        )
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            best = nano(images, ids, segments, places)[0].argmax(-1).cpu()
        hit = (best == batch.targets) | (batch.targets == -100)
        for row, used in enumerate(batch.labels):
            for number, (task, scope) in enumerate(used, start=1):
                good = bool(hit[row][batch.segments[row] == number].all())
                right[task].append(good)
                if task != "caption":
                    right["easy" if batch.kind == "easy" else f"{batch.kind} {scope}"].append(good)
    return {task: (float(np.mean(hits)), len(hits)) for task, hits in sorted(right.items())}


def train(options: argparse.Namespace) -> None:
    """Train until the time is up or the steps are done; save weights and state."""
    began = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    out: Path = options.out
    model = write_folder(out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    nano = Nano(model, tokenizer).to(device)
    optimizer = torch.optim.AdamW(
        nano.parameters(),
        lr=options.rate,
        betas=(0.9, 0.98),
        weight_decay=0.02,
        fused=device == "cuda",
    )
    step = 0
    if options.resume:
        if options.resume.is_dir():
            trained = Qwen2VLForConditionalGeneration.from_pretrained(
                options.resume, dtype=torch.float32
            )
            model.load_state_dict(trained.state_dict())
            step = options.start
        else:
            state = torch.load(options.resume, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
    began_at = step
    easy = easy_pictures("train").to(device)
    easy_test = easy_pictures("test").to(device)
    tests = take(Batches(out, 64, 7, "test", 8, False), options.tests)
    if options.compile:
        nano.vision_block = torch.compile(vision_block, dynamic=True)
        nano.text_block = torch.compile(text_block, dynamic=True)
    stages = [(options.warm // 3, 2, True), (options.warm, 8, True), (options.steps, 8, False)]
    log = []
    last, losses = time.time(), []
    for until, sprites, captions in stages:
        if step >= until:
            continue
        data = Batches(out, options.batch, 1000 + step, "train", sprites, captions, options.told)
        loader = DataLoader(
            data,
            batch_size=None,
            num_workers=options.workers,
            prefetch_factor=4 if options.workers else None,
        )
        for batch in loader:
            rate = options.rate * min(1, (step - began_at + 1) / 200) * decay(step, options.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            images = pictures_of(batch, easy, device, blur=True)
            ids, segments, places, targets, asked = (
                part.to(device, non_blocking=True)
                for part in (batch.ids, batch.segments, batch.places, batch.targets, batch.asked)
            )
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                kept = None
                if random.random() < options.drop:
                    kept = holes(batch, random.uniform(options.least, 0.9)).to(device)
                logits, early = nano(images, ids, segments, places, kept)
            loss = entropy(logits, targets) + options.ask * entropy(logits, asked)
            if options.early:
                exits = entropy(early, targets) + entropy(early, asked)
                loss = loss + options.early * exits
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(nano.parameters(), 1.0)
            optimizer.step()
            step += 1
            losses.append(loss.detach())
            over = time.time() - began > options.minutes * 60
            if step % options.every == 0 or step >= options.steps or over:
                figures = evaluate(nano, tests, easy_test, device)
                spent = time.time() - last
                line = {
                    "step": step,
                    "loss": round(float(torch.stack(losses).mean()), 4),
                    "pictures_a_second": round(len(losses) * options.batch / spent),
                    "minutes": round((time.time() - began) / 60, 2),
                    **{task: round(share, 3) for task, (share, _) in figures.items()},
                }
                print(json.dumps(line), flush=True)
                log.append(line)
                last, losses = time.time(), []
            if step >= until or over:
                break
        if time.time() - began > options.minutes * 60:
            break
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step},
        out / "state.pt",
    )
    (out / f"log-{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    model.half().save_pretrained(out)


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits [B, T, V] where targets [B, T] are given."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def decay(step: int, steps: int) -> float:
    """Cosine from 1 to 0 over the whole training."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop and save after this long")
    parser.add_argument(
        "--steps", type=int, default=24000, help="length of the learning-rate decay"
    )
    parser.add_argument("--warm", type=int, default=1500, help="steps of captions alone")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=500, help="steps between evaluations")
    parser.add_argument("--tests", type=int, default=20, help="batches of 64 held-out pictures")
    parser.add_argument("--drop", type=float, default=0.0, help="share of batches with holes")
    parser.add_argument("--least", type=float, default=0.4, help="the smallest share kept then")
    parser.add_argument("--told", type=float, default=0.25, help="share of pictures described")
    parser.add_argument(
        "--ask", type=float, default=0.0, help="weight of the questions' own tokens"
    )
    parser.add_argument("--early", type=float, default=0.0, help="weight of layer 0's early exit")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", type=Path, help="state.pt, or a checkpoint folder and --start")
    parser.add_argument("--start", type=int, default=0, help="the step that a resumed folder is at")
    train(parser.parse_args())


if __name__ == "__main__":
    main()

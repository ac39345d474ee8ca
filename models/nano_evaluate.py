"""Accuracy of a Qwen2-VL checkpoint on JSON Lines questions, whole or with visual tokens dropped.

    python models/nano_evaluate.py models/nano DATA.jsonl [DATA.jsonl ...] --keep 1,0.5,0.25,0.1

An answer counts if every token of it, and the end of turn after it, is the model's first choice
given those before: just what greedy decoding writes, which `--check N` confirms with `generate`.
Dropped tokens are those that layer 0 looks at least from the question, or random ones; the others
keep their positions.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb, repeat_kv


@dataclass(slots=True)
class Item:
    """A question ready to run: its picture's patches, token ids, and where its parts are."""

    record: dict[str, str]
    pixels: Tensor
    grid: tuple[int, int]
    prompt: list[int]
    answer: list[int]
    first_visual: int
    visual: int
    question_end: int


class Reader:
    """Turns records into items with the checkpoint's own tokenizer, template and processor."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self.image_token = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.end_token = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._pictures: dict[Path, tuple[Tensor, tuple[int, int]]] = {}

    def picture(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        """A picture's patches and its grid in patches (rows, columns)."""
        if path not in self._pictures:
            found = self.processor(images=[Image.open(path).convert("RGB")], return_tensors="pt")
            _, rows, columns = found["image_grid_thw"][0].tolist()
            self._pictures[path] = (found["pixel_values"], (rows, columns))
        return self._pictures[path]

    def item(self, folder: Path, record: dict[str, str]) -> Item:
        """Render one record's prompt and answer to tokens."""
        pixels, grid = self.picture(folder / record["image"])
        content = [{"type": "image"}, {"type": "text", "text": record["question"]}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        visual = grid[0] * grid[1] // 4
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        start = prompt.index(self.image_token)
        prompt = prompt[:start] + [self.image_token] * visual + prompt[start + 1 :]
        answer = self.tokenizer(record["answer"], add_special_tokens=False)["input_ids"]
        end = prompt.index(self.end_token, start + visual)
        return Item(record, pixels, grid, prompt, [*answer, self.end_token], start, visual, end)


def positions(item: Item, length: int) -> Tensor:
    """The m-rope positions [3, length] of an item's prompt, answer and padding."""
    rows, columns = item.grid[0] // 2, item.grid[1] // 2
    before = torch.arange(item.first_visual).expand(3, -1)
    seen = torch.stack(
        [
            torch.zeros(item.visual, dtype=torch.int64),
            torch.arange(rows).repeat_interleave(columns),
            torch.arange(columns).repeat(rows),
        ]
    )
    rest = length - item.first_visual - item.visual
    after = torch.arange(rest).expand(3, -1) + item.first_visual + max(rows, columns)
    return torch.cat([before, seen + item.first_visual, after], dim=1)


@torch.no_grad()
def probe(model: Qwen2VLForConditionalGeneration, embeds: Tensor, places: Tensor, items: list[Item]) -> list[Tensor]:  # fmt: skip
    """For each item, the layer-0 attention from its question's tokens to its visual tokens."""
    text = model.model.language_model
    attention = text.layers[0].self_attn
    states = text.layers[0].input_layernorm(embeds)
    query, key = (
        project(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *text.rotary_emb(embeds, places))
    scores = query @ repeat_kv(key, attention.num_key_value_groups).mT * attention.scaling
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~causal, float("-inf")).softmax(-1).mean(1)
    found = []
    for row, item in zip(weights, items, strict=True):
        stop = item.first_visual + item.visual
        found.append(row[stop + 1 : item.question_end, item.first_visual : stop].mean(0))
    return found


@torch.no_grad()
def run_batch(
    model: Qwen2VLForConditionalGeneration,
    items: list[Item],
    keeps: list[float],
    generator: torch.Generator,
) -> dict[tuple[str, float], list[bool]]:
    """Whether each item is answered right, by (ranking, share kept)."""
    device = model.device
    length = max(len(item.prompt) + len(item.answer) for item in items)
    ids = torch.zeros(len(items), length, dtype=torch.int64)
    for row, item in zip(ids, items, strict=True):
        row[: len(item.prompt) + len(item.answer)] = torch.tensor(item.prompt + item.answer)
    places = torch.stack([positions(item, length) for item in items], dim=1).to(device)
    grid = torch.tensor([[1, *item.grid] for item in items], device=device)
    pixels = torch.cat([item.pixels for item in items]).to(device, model.dtype)
    visual = model.model.visual(pixels, grid_thw=grid).pooler_output
    embeds = model.get_input_embeddings()(ids.to(device))
    start, count = items[0].first_visual, items[0].visual
    embeds[:, start : start + count] = visual.view(len(items), count, -1)

    outcome: dict[tuple[str, float], list[bool]] = {}
    relevance = probe(model, embeds, places, items)
    rankings = {
        "attention": relevance,
        "random": [torch.rand(count, generator=generator).to(device) for _ in items],
    }
    for name, scores in rankings.items():
        for keep in keeps:
            kept = max(1, round(keep * count))
            chosen = torch.stack([score.topk(kept).indices.sort().values for score in scores])
            index = torch.cat(
                [
                    torch.arange(start, device=device).expand(len(items), -1),
                    start + chosen,
                    torch.arange(start + count, length, device=device).expand(len(items), -1),
                ],
                dim=1,
            )
            hidden = model.model.language_model(
                inputs_embeds=embeds.gather(1, index[..., None].expand(-1, -1, embeds.shape[-1])),
                position_ids=places.gather(2, index.expand(3, -1, -1)),
                use_cache=False,
            ).last_hidden_state
            best = model.lm_head(hidden).argmax(-1).cpu()
            hits = []
            for row, item in zip(best, items, strict=True):
                at = len(item.prompt) - count + kept - 1
                hits.append(row[at : at + len(item.answer)].tolist() == item.answer)
            outcome[name, keep] = hits
    return outcome


def batches(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Items in batches of one grid each."""
    by_grid: dict[tuple[int, int], list[Item]] = defaultdict(list)
    for item in items:
        by_grid[item.grid].append(item)
    for group in by_grid.values():
        group.sort(key=lambda item: len(item.prompt))
        for at in range(0, len(group), size):
            yield group[at : at + size]


@torch.no_grad()
def generated(model: Qwen2VLForConditionalGeneration, reader: Reader, item: Item) -> list[int]:
    """What `generate` writes, greedily."""
    device = model.device
    ids = torch.tensor([item.prompt], device=device)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == reader.image_token).int(),
        pixel_values=item.pixels.to(device, model.dtype),
        image_grid_thw=torch.tensor([[1, *item.grid]], device=device),
        max_new_tokens=len(item.answer) + 2,
        do_sample=False,
    )
    return written[0, ids.shape[1] :].tolist()


def table(hits: dict[str, dict[tuple[str, float], list[bool]]]) -> str:
    """A Markdown table of accuracies in percent, a row for each group."""
    columns = list(next(iter(hits.values())))
    head = [f"{name} {keep:.0%}" for name, keep in columns]
    lines = ["| group | n | " + " | ".join(head) + " |", "|---|---|" + "---|" * len(columns)]
    for group, outcome in sorted(hits.items()):
        shares = [100 * sum(outcome[column]) / len(outcome[column]) for column in columns]
        cells = " | ".join(f"{share:.1f}" for share in shares)
        lines.append(f"| {group} | {len(outcome[columns[0]])} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, nargs="+", help="JSON Lines files")
    parser.add_argument("--keep", default="1,0.5,0.25,0.1", help="shares of visual tokens to keep")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="questions of each file, at most")
    parser.add_argument("--check", type=int, default=0, help="questions to compare with generate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        args.checkpoint, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.to(device).eval()
    reader = Reader(args.checkpoint)
    generator = torch.Generator().manual_seed(args.seed)
    keeps = [float(part) for part in args.keep.split(",")]
    hits: dict[str, dict[tuple[str, float], list[bool]]] = defaultdict(lambda: defaultdict(list))
    items: list[Item] = []
    for path in args.data:
        lines = path.read_text(encoding="utf-8").splitlines()[: args.limit]
        items += [reader.item(path.parent, json.loads(line)) for line in lines]
    for batch in batches(items, args.batch):
        for column, good in run_batch(model, batch, keeps, generator).items():
            for item, hit in zip(batch, good, strict=True):
                record = item.record
                hits[record["task"]][column].append(hit)
                if record["task"] != "easy-vqa":
                    hits[f"({record['scope']} scenes and charts)"][column].append(hit)
                hits["(all)"][column].append(hit)
    print(table(hits))
    if args.check:
        step = max(1, len(items) // args.check)
        sample = items[::step][: args.check]
        same = 0
        for item in sample:
            whole = run_batch(model, [item], [1.0], generator)["attention", 1.0][0]
            same += whole == (generated(model, reader, item)[: len(item.answer)] == item.answer)
        print(f"generate agrees on {same} of {len(sample)} questions")


if __name__ == "__main__":
    main()

"""What transformers gives for a bundle's graphs, put as their operators take and give it."""

from typing import Any

import numpy as np

from foveate.bundle.reader import Bundle
from foveate.export.parity import Arrays, Case
from foveate.export.reference import pictures, reference, vision_cases
from foveate.families.base import Family
from foveate.modeling.base import TorchFamily
from foveate.modeling.ranker import Ranker
from foveate.runtime.language.static_decoder import BEST
from foveate.runtime.load import read_family, read_tokenizer


def checkpoint_cases(
    torch_half: TorchFamily, model: Any, ranker: Ranker, bundle: Bundle
) -> list[Case]:
    """What transformers gives for each graph of a bundle, which may still lack them.

    Args:
        torch_half: The model's family.
        model: Loaded with eager attention.
        ranker: What ranks.
        bundle: Its manifest, tokenizer and chat template.
    """
    tokenizer = read_tokenizer(bundle)
    plain = read_family(bundle, tokenizer, levels=False)
    cases = reference(torch_half, model, ranker, plain)
    if bundle.manifest.operators == "standard":
        return cases
    return contrib_cases(cases, read_family(bundle, tokenizer))


def contrib_cases(cases: list[Case], family: Family) -> list[Case]:
    """A case for each run of the vision graph, a cache without room to spare for the decoder, and the merge.

    Args:
        cases: What `reference` gave.
        family: The one of the reference, made with `levels`.
    """
    embeds = [case.expected["visual_embeds"] for case in cases if case.role == "vision"]
    put = vision_cases(family.prepare(pictures()), np.concatenate(embeds))
    for case in cases:
        if case.role == "decoder":
            put.append(decoder_case(case))
            if case.feeds["past.0.key"].shape[2]:
                put.append(twice(put[-1]))
        elif case.role == "compressor":
            put += [compressor_case(case), merge_case(case)]
        elif case.role != "vision":
            put.append(case)
    return put


def compressor_case(case: Case) -> Case:
    """The same with visual tokens first and text after; what it keeps is checked as of any compressor."""
    given, check = case.feeds, case.check
    visual, instruction = len(given["visual_index"]), given["instruction_rows"]
    places = np.concatenate([given["visual_index"], given["text_index"]])
    assert check is not None
    same = {name: given[name] for name in ("visual_embeds", "text_embeds", "keep")}

    def check_rows(feeds: Arrays, outputs: Arrays) -> str | None:
        """The check of the case, on what it knows."""
        rows, positions = outputs["kept_rows"], outputs["kept_position_ids"].T[:, None]
        kept = {"kept_indices": rows[rows < visual], "kept_position_ids": positions}
        return check({**given, **{name: feeds[name] for name in same}}, {**outputs, **kept})

    feeds = {
        **same,
        "places": places,
        "position_ids": given["position_ids"].T[places],
        "instruction_rows": instruction + visual,
        "instruction_weights": np.full(len(instruction), 1 / len(instruction), np.float32),
    }
    return Case("compressor", feeds, case.expected, check_rows)


def merge_case(case: Case) -> Case:
    """The compressor's prompt with nothing dropped."""
    text, visual = case.feeds["text_embeds"], case.feeds["visual_embeds"]
    order = np.argsort(np.concatenate([case.feeds["text_index"], case.feeds["visual_index"]]))
    feeds = {"text_embeds": text, "visual_embeds": visual, "order": order.astype(np.int64)}
    return Case("merge", feeds, {"inputs_embeds": np.concatenate([text, visual])[order][None]})


def decoder_case(case: Case) -> Case:
    """The same step over a cache of just the length that it fills."""
    embeds, places = case.feeds["inputs_embeds"], case.feeds["position_ids"][:, 0]
    count, past = embeds.shape[1], case.feeds["past.0.key"].shape[2]
    cache = {
        name: np.pad(states, ((0, 0), (0, 0), (0, count), (0, 0)))
        for name, states in case.feeds.items()
        if name.startswith("past.")
    }
    feeds = {
        "inputs_embeds": embeds,
        "position_ids": np.pad(places.T, ((past, 0), (0, 0))),
        "seqlens_k": np.array([past + count - 1], np.int32),
        "total_sequence_length": np.array([past + count], np.int32),
        "last": np.array([count - 1], np.int64),
        **cache,
    }
    return Case("decoder", feeds, case.expected, check_best)


def twice(case: Case) -> Case:
    """The decoder's step for two sequences that are the same."""
    once = ("position_ids", "total_sequence_length", "last")
    feeds, expected = (
        {name: array if name in once else np.concatenate([array] * 2) for name, array in arrays}
        for arrays in (case.feeds.items(), case.expected.items())
    )
    return Case("decoder", feeds, expected, check_best)


def check_best(feeds: Arrays, outputs: Arrays) -> str | None:
    """The decoder must name the token with the highest logit."""
    best = outputs["logits"].argmax(axis=1)
    if any(not np.array_equal(outputs[name], best) for name in ("best", BEST)):
        return "the token named as best has not the highest logit"
    return None

"""What quantization cost a bundle, as its export noted it: as plain data, and as text for people."""

from typing import Any

from foveate.bundle.manifest_json import parse
from foveate.bundle.reader import Bundle
from foveate.bundle.reading import reading
from foveate.terminal import plural, size, table

ROLE = "quantization"
FILE = "quantization.json"


def cost_facts(bundle: Bundle) -> dict[str, Any] | None:
    """What quantization cost a bundle; None where its graphs are not quantized.

    Raises:
        BundleError: The file does not hold that.
    """
    if ROLE not in bundle.manifest.files:
        return None
    path = bundle.file(ROLE)
    with reading(path, "what quantization cost"):
        facts: dict[str, Any] = parse(path.read_bytes())
        describe_cost(facts)
    return facts


def describe_cost(facts: dict[str, Any]) -> str:
    """What quantization cost, for people."""
    rows = [["", "size", "", "difference from transformers", "", "matrix products"]]
    for role, one in facts["graphs"].items():
        sizes, parity = one["bytes"], one["parity"]
        left = f", {len(one['left'])} left in {facts['base']}" if one["left"] else ""
        shrunk = f"{size(sizes['before'])} → {size(sizes['after'])}"
        ratio = f"{sizes['after'] / sizes['before']:.0%}"
        moved = f"{parity['before']:.1e} → {parity['after']:.1e}"
        rows.append(
            [role, shrunk, ratio, moved, "", f"{one['products']} in {facts['precision']}{left}"]
        )
    lines = [f"quantized to {facts['precision']} on {facts['base']}", table(rows)]
    if facts["calibration"]:
        lines.append(f"ranges from {_describe_data(facts['calibration'])}")
    if facts["evaluation"]:
        data = _describe_data(facts["evaluation"])
        lines.append(f"right answers before and after, with 95 % intervals, {data}")
        scores = (
            (_keep(row["keep"]), f"{_score(row['before'])} → {_score(row['after'])}")
            for row in facts["answers"]
        )
        lines.append(table(scores))
    else:
        lines.append("right answers: not counted; give --evaluate DATA.jsonl with answers")
    return "\n".join(lines)


def _keep(keep: float | str) -> str:
    """How much was kept."""
    return f"keep {keep}" if isinstance(keep, str) else f"keep {100 * keep:g} %"


def _describe_data(facts: dict[str, Any]) -> str:
    """The records that were used, in a clause."""
    lost = facts["unreadable"]
    noted = f", {len(lost)} unreadable ({', '.join(lost[:3])}{' …' if len(lost) > 3 else ''})"
    return f"{plural(facts['used'], 'record')} of {facts['data']}{noted if lost else ''}"


def _score(facts: dict[str, Any]) -> str:
    """Right answers and their interval."""
    low, high = facts["interval"]
    return f"{facts['right']} of {facts['n']} ({low:.1f}–{high:.1f} %)"

"""A video on a sheet: for each ranking and keep a contact sheet of its frames."""

from PIL import Image

from foveate.calibration.drawing.entry import Scale, SheetEntry, result_lines
from foveate.runtime.contact_sheet import Ranked, frame_grid, header, legend
from foveate.runtime.lettering import Line


def film_blocks(entry: SheetEntry) -> list[Image.Image]:
    """The blocks of a video's sheet, one under the other."""
    blocks = []
    for ranking in entry.rankings:
        scale = Scale.of(ranking.scores)
        for kept in ranking.kept:
            chosen = entry.chosen(kept)
            ranked = Ranked(entry.visual, scale.values, chosen, scale.paint)
            lines = [
                Line(f"{ranking.name}: {ranking.meaning}"),
                *result_lines(entry, kept, len(kept.indices)),
            ]
            blocks += [header(lines), frame_grid(entry.pictures, ranked, entry.seconds)]
        blocks.append(legend(scale.paint, scale.least, (scale.ends[0], scale.ends[-1])))
    return blocks

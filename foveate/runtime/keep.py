"""`keep`: how many visual tokens a request wants to keep."""

import math
from numbers import Integral, Real

from foveate.errors import KeepError


def kept_count(keep: object, total: int) -> int:
    """How many of `total` visual tokens `keep` asks for.

    Args:
        keep: A ratio (a real number that is no integer type) in (0, 1], or a count (an integer) from
            1 to `total`. A ratio keeps at least one token and rounds halves up.
        total: Visual tokens of the request.

    Raises:
        KeepError: Any other value.
    """
    fix = "give a ratio in (0, 1] as a float, or a count of tokens as an int"
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise KeepError(f"keep is {keep!r}; {fix}")
    if isinstance(keep, Integral):
        count = int(keep)
        if not 1 <= count <= total:
            raise KeepError(f"keep is {count} tokens and the request has {total}; {fix}")
        return count
    ratio = float(keep)
    if not (math.isfinite(ratio) and 0 < ratio <= 1):
        raise KeepError(f"keep is {ratio}; {fix}")
    return max(1, math.floor(total * ratio + 0.5))


def parse_keep(text: str) -> float | int:
    """Read `keep` from a command line: "0.25" is a ratio, "300" a count, "1" all tokens.

    Raises:
        KeepError: No number.
    """
    try:
        return 1.0 if text.strip() == "1" else int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise KeepError(
            f"keep is {text!r}; give a ratio such as 0.25, a count such as 300, or 1 for all"
        ) from None

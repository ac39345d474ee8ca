"""Buckets: the few sizes that calls of any size are filled up to.

Libraries plan kernels anew for a size that they have not seen (cuDNN's attention: tens of milliseconds),
and a CUDA graph is of one size.
"""

STEPS = 32


def rounded(count: int, unit: int) -> int:
    """`count` up to the next multiple of `unit`."""
    return -(-count // unit) * unit


def bucket(count: int, unit: int) -> int:
    """What `count` is filled up to: multiples of `unit`, of more and more beyond `STEPS` of them.

    So what fills up is little, at most a sixteenth beyond the first steps, and buckets stay few.
    """
    while count > STEPS * unit:
        unit *= 2
    return rounded(count, unit)

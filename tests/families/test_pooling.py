"""Grids of tokens pooled to smaller ones."""

import numpy as np
import pytest

from foveate.families.pooling import pool_grid


def test_a_whole_number_pools_blocks() -> None:
    grid = pool_grid(4, 6, 6)
    assert (grid.rows, grid.columns) == (2, 3)
    assert sorted(grid.sources[0].tolist()) == [0, 1, 6, 7]
    assert grid.weights == pytest.approx(np.full((6, 4), 0.25))


@pytest.mark.parametrize("size", [(27, 27), (14, 14), (3, 40), (1, 9), (7, 5)])
def test_any_count_gives_a_mean_over_the_whole_picture(size: tuple[int, int]) -> None:
    rows, columns = size
    down, across = np.indices(size).reshape(2, -1) + 0.5
    for most in (1, 2, 3, 5, 19, 49, 98, rows * columns, 2000):
        grid = pool_grid(*size, most)
        count = grid.rows * grid.columns
        assert 1 <= count <= min(most, rows * columns)
        assert count >= min(most, rows * columns) * 0.5
        assert len(grid.sources) == len(grid.weights) == count
        assert grid.weights.sum(1) == pytest.approx(np.ones(count), abs=1e-6)
        # Each token stands for its own part: a slope is pooled to the middles of the parts, and every
        # token of the larger grid counts as much in all as any other.
        taken = np.zeros(rows * columns)
        np.add.at(taken, grid.sources, grid.weights)
        assert taken == pytest.approx(np.full(rows * columns, count / (rows * columns)), abs=1e-5)
        place_down = (grid.weights * down[grid.sources]).sum(1).reshape(grid.rows, grid.columns)
        place_across = (grid.weights * across[grid.sources]).sum(1).reshape(grid.rows, grid.columns)
        assert (np.diff(place_down, axis=0) > 0).all()
        assert (np.diff(place_across, axis=1) > 0).all()

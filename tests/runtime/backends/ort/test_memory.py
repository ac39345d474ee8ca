"""Memory that onnxruntime allocated: views of it, and what is written to it."""

import numpy as np
import pytest

from foveate.errors import BackendError
from foveate.runtime.backends.ort.memory import SMALL, OrtMemory, allocating, upload, zeros
from foveate.runtime.tensors import DeviceTensor


def test_views_of_memory() -> None:
    whole = upload(np.arange(12, dtype=np.int64), "int64", "cpu")
    part = whole.viewed((2, 3), 6)
    assert part.numpy().tolist() == [[6, 7, 8], [9, 10, 11]]
    assert part.address == whole.address + 48
    assert part.room == 6 and part.shape == (2, 3)
    assert (part.nbytes, part.device) == (48, "cpu")
    whole.write(np.arange(12, dtype=np.int64)[::-1])
    assert part.numpy().tolist() == [[5, 4, 3], [2, 1, 0]]


def test_rows_of_a_tensor() -> None:
    whole = upload(np.arange(24, dtype=np.int64).reshape(4, 3, 2), "int64", "cpu")
    for number in range(4):
        row = whole.row(number)
        assert row.numpy().tolist() == [whole.numpy()[number].tolist()]
        assert row.shape == (1, 3, 2)


@pytest.mark.parametrize("size", [8, SMALL])
def test_what_is_there_already_is_not_written_again(size: int) -> None:
    tensor = zeros((size,), "int64", "cpu")
    memory = tensor.memory
    assert isinstance(memory, OrtMemory)
    tensor.write(np.arange(size))
    tensor.numpy()[:] = -1
    tensor.write(np.arange(size))
    small = size * 8 <= SMALL
    assert (tensor.numpy() == (-1 if small else np.arange(size))).all()
    tensor.write(np.arange(size) + 1)
    assert (tensor.numpy() == np.arange(size) + 1).all()


def test_a_type_that_a_library_lacks_is_read_as_another() -> None:
    narrow = upload(np.arange(4, dtype=np.int32), "int32", "cpu")
    wide = DeviceTensor(narrow.memory, (2, 2), "int32", reads_as="int64")
    assert (wide.numpy().dtype, wide.numpy().tolist()) == (np.int64, [[0, 1], [2, 3]])
    assert wide.row(1).numpy().tolist() == [[2, 3]]
    assert wide.row(1).numpy().dtype == np.int64


def test_memory_that_there_is_not() -> None:
    with (
        pytest.raises(BackendError, match=r"3 MiB on the cuda could not .*: keep fewer visual"),
        allocating(3 << 20, "cuda"),
    ):
        raise RuntimeError("Failed to allocate memory for requested buffer\nof 3145728 bytes")

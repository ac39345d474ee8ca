"""Bundles with a number that is not finite among their weights, made from good ones in no time."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx

from foveate.bundle.embeddings_file import read_table
from foveate.bundle.reader import Bundle


def copied(bundle: Bundle, folder: Path, role: str) -> Path:
    """A bundle's hard links in `folder`, but for the file of a role, which is a copy; its path."""
    shutil.copytree(bundle.root, folder, copy_function=os.link)
    path = folder / bundle.manifest.files[role].path
    path.unlink()
    shutil.copyfile(bundle.file(role), path)
    return path


def poison_word(bundle: Bundle, folder: Path, token: int, value: float = np.nan) -> Path:
    """A bundle in whose embedding table a token's row is `value`; load it without checksums."""
    path = copied(bundle, folder, "embeddings")
    entry, begin = read_table(path, bundle.manifest.model)
    kind = np.dtype({"F32": np.float32, "F16": np.float16}[entry.dtype])
    table = np.memmap(path, kind, "r+", begin, entry.shape)
    table[token] = value
    table.flush()
    return folder


def poison_weight(bundle: Bundle, folder: Path, role: str, part: str = "") -> Path:
    """A bundle in whose graph of a role one float32 number of a matrix is NaN.

    Args:
        bundle: A good one.
        folder: Where it goes.
        role: The graph.
        part: Of the weight's name; the first matrix with it is taken.
    """
    graph = onnx.load(bundle.file(role), load_external_data=False).graph
    (first, *_) = (
        one
        for one in graph.initializer
        if part in one.name and len(one.dims) == 2 and one.data_type == onnx.TensorProto.FLOAT
    )
    where = {entry.key: entry.value for entry in first.external_data}
    path = folder / where["location"]
    (data,) = (key for key, one in bundle.manifest.files.items() if one.path == where["location"])
    copied(bundle, folder, data)
    begin = int(where.get("offset", 0))
    values = np.memmap(path, np.float32, "r+", begin, tuple(first.dims))
    values[3, 5] = np.nan
    values.flush()
    return folder

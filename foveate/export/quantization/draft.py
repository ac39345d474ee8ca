"""A bundle's graphs before they are sealed, run as a pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from msgspec.structs import replace

from foveate.bundle.manifest import EMBEDDINGS, FileEntry, Manifest, Precision, Quantized
from foveate.bundle.reader import Bundle
from foveate.export import embeddings
from foveate.runtime.backends.base import standard_roles
from foveate.runtime.backends.ort.backend import OrtBackend
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Draft:
    """Graphs in a folder, each as `ROLE.onnx`, and the embedding table beside them.

    Attributes:
        texts: The bundle to be: what its manifest is to say, its tokenizer and its chat template.
        folder: The folder.
        precision: What the graphs compute in.
    """

    texts: Bundle
    folder: Path
    precision: Precision

    @property
    def manifest(self) -> Manifest:
        """What the bundle is to say of the graphs."""
        return self.texts.manifest

    @property
    def to(self) -> Quantized:
        """What the bundle's graphs are to be quantized to."""
        return cast(Quantized, self.manifest.precision)

    @property
    def table(self) -> Path:
        """The embedding table."""
        return self.folder / embeddings.FILE

    def graph(self, role: str) -> Path:
        """A role's graph."""
        return self.folder / f"{role}.onnx"

    def weights(self, role: str) -> Path:
        """A role's weights."""
        return self.folder / f"{role}.onnx.data"

    def bytes(self, role: str) -> int:
        """The size of a role's graph and weights."""
        return self.graph(role).stat().st_size + self.weights(role).stat().st_size

    def open(self, others: Mapping[str, OnnxEngine] | None = None) -> Pipeline:
        """Open the graphs on the CPU, `others` in place of some.

        Raises:
            BackendError: onnxruntime cannot open one.
        """
        entry = FileEntry(path=embeddings.FILE, sha256="0" * 64, bytes=self.table.stat().st_size)
        manifest = replace(self.manifest, files={EMBEDDINGS: entry})
        bundle = Bundle(self.folder, manifest)
        options, others = OnnxOptions(precision=self.precision), others or {}
        engines = {
            role: others.get(role) or OnnxEngine(self.graph(role), options)
            for role in standard_roles(bundle)
        }
        backend = OrtBackend(bundle, engines, EmbeddingTable(bundle), "cpu")
        tokenizer = read_tokenizer(self.texts)
        family = read_family(self.texts, tokenizer)
        return Pipeline(bundle, backend, backend.decoder(), family, tokenizer)

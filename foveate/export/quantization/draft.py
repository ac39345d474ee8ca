"""A bundle's graphs before they are sealed, run as a pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from tokenizers import Tokenizer

from foveate.bundle.manifest import FileEntry, Manifest, Precision
from foveate.bundle.reader import Bundle
from foveate.export import embeddings
from foveate.families.base import Family
from foveate.runtime.backends.ort.backend import ROLES, OrtBackend
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions
from foveate.runtime.embeddings import EmbeddingTable
from foveate.runtime.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Draft:
    """Graphs in a folder, each as `ROLE.onnx`, and the embedding table beside them.

    Attributes:
        folder: The folder.
        manifest: What the bundle is to say of them; it lists no files yet.
        family: The model family.
        tokenizer: The tokenizer.
    """

    folder: Path
    manifest: Manifest
    family: Family
    tokenizer: Tokenizer

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

    def open(
        self, precision: Precision, others: Mapping[str, OnnxEngine] | None = None
    ) -> Pipeline:
        """Open the graphs on the CPU, `others` in place of some.

        Raises:
            BackendError: onnxruntime cannot open one.
        """
        entry = FileEntry(path=embeddings.FILE, sha256="0" * 64, bytes=self.table.stat().st_size)
        manifest = replace(self.manifest, files={embeddings.ROLE: entry})
        bundle = Bundle(self.folder, manifest)
        engines = dict(others or {})
        for role in ROLES:
            if role not in engines:
                engines[role] = OnnxEngine(self.graph(role), OnnxOptions(precision=precision))
        backend = OrtBackend(bundle, engines, EmbeddingTable(bundle), "cpu")
        return Pipeline(bundle, backend, backend.decoder(), self.family, self.tokenizer)

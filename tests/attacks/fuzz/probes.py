"""How mutated files of each kind are made, and what reads them: a probe for each kind."""

import hashlib
import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import onnx
from PIL import Image

from foveate.bundle.manifest_json import decode, encode, parse, seal
from foveate.bundle.reader import Bundle, file_entry
from foveate.runtime import Pipeline
from foveate.runtime.backends.ort.session import OnnxEngine, OnnxOptions
from foveate.runtime.load import read_family, read_tokenizer
from foveate.runtime.media.pictures import open_picture
from foveate.runtime.media.video import read_video
from tests.attacks.fuzz.graphs import mutate_graph
from tests.attacks.fuzz.mutations import dumps, mutate_bytes, mutate_json
from tests.attacks.fuzz.worker import Case, Probe

PROMPT = "What is in the picture?"
HONOURED = ("generation", "limits", "preprocessing", "compressor")
"""Fields of the manifest that rightly change an answer."""
ASKED = 8
"""Of the manifests that are read, one in so many is asked."""


def picture() -> Image.Image:
    """A drawn picture, the same always."""
    rows, columns = np.mgrid[0:84, 0:112]
    channels = (rows * 3, columns * 2, (rows // 14 + columns // 14) % 2 * 255)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def answer(pipe: Pipeline) -> list[int]:
    """A short answer about the picture."""
    found = pipe.generate(PROMPT, images=[picture()], max_new_tokens=3, ignore_eos=True)
    return [int(token) for token in found.token_ids]


class BundleProbe:
    """A bundle with mutated files, linked to those that stay as they are."""

    def __init__(self, folder: Path) -> None:
        """Take the bundle's own answer."""
        self.bundle = Bundle.open(folder)
        self.manifest = (folder / "manifest.json").read_bytes()
        with Pipeline.load(folder, device="cpu", threads=1) as pipe:
            self.answer = answer(pipe)

    def copy(self, case: Case, *names: str) -> Path:
        """A copy of the bundle without some files."""
        root = case.folder / "bundle"
        root.mkdir()
        for path in self.bundle.root.iterdir():
            if path.name not in names:
                os.link(path, root / path.name)
        return root

    def vouched(self, case: Case, role: str, content: bytes) -> Path:
        """A copy of the bundle with another content of a role, and a manifest that agrees to it."""
        name = self.bundle.file(role).name
        root = self.copy(case, name, "manifest.json")
        (root / name).write_bytes(content)
        files = {**self.bundle.manifest.files, role: file_entry(root, name)}
        manifest = msgspec.structs.replace(self.bundle.manifest, files=files)
        (root / "manifest.json").write_bytes(encode(manifest))
        return root


class Manifests(BundleProbe):
    """Mutated manifests, most of them with the right checksum of themselves."""

    def __init__(self, folder: Path) -> None:
        """Read the document that is mutated."""
        super().__init__(folder)
        self.document = json.loads(self.manifest)
        del self.document["checksum"]
        self.loads = 0

    def __call__(self, case: Case) -> None:
        """Mutate, and read stage by stage; a few of those that are read are asked."""
        data = self.mutated(case.random)
        case.reach("JSON")
        try:
            parse(data)
        except (ValueError, RecursionError):
            decode(data, case.folder)
            raise
        case.reach("fields")
        manifest = decode(data, case.folder / "manifest.json")
        root = self.copy(case, "manifest.json")
        (root / "manifest.json").write_bytes(data)
        case.reach("files")
        bundle = Bundle.open(root, checksums=manifest.files != self.bundle.manifest.files)
        case.reach("texts")
        read_family(bundle, read_tokenizer(bundle))
        self.loads += 1
        same = {
            name: getattr(manifest, name) == getattr(self.bundle.manifest, name)
            for name in manifest.__struct_fields__
        }
        if all(same.values()):
            case.equal = True
            return
        if self.loads % ASKED:
            case.stage = "texts, not asked"
            return
        case.reach("answer")
        with Pipeline.load(root, device="cpu", threads=1, checksums=False) as pipe:
            found = answer(pipe)
        case.equal = found == self.answer
        if not case.equal and all(same[name] for name in HONOURED):
            raise AssertionError(f"another answer, {found}")

    def mutated(self, random: Random) -> bytes:
        """A mutated manifest."""
        document = mutate_json(self.document, random)
        if random.random() < 0.02:
            return dumps(document, random)
        if not isinstance(document, dict):
            return dumps(document, random)
        data = dumps({**document, "checksum": "0" * 64}, random)
        if b"0" * 64 in data and random.random() < 0.95:
            data = seal(data)
        return data


class Graphs(BundleProbe):
    """Mutated graphs behind a manifest that agrees to them."""

    def __init__(self, folder: Path) -> None:
        """Parse the graphs that are mutated."""
        super().__init__(folder)
        self.models = {
            role: onnx.load(self.bundle.file(role), load_external_data=False)
            for role in self.bundle.manifest.graphs
        }

    def __call__(self, case: Case) -> None:
        """Mutate a graph's structure or its bytes; read it, open it in onnxruntime, and ask."""
        random = case.random
        role = random.choice(list(self.models))
        if random.random() < 0.3:
            content = mutate_bytes(self.bundle.file(role).read_bytes(), random)
        else:
            content = mutate_graph(self.models[role], random)
        root = self.vouched(case, role, content)
        case.reach("bundle")
        bundle = Bundle.open(root)
        case.reach("onnxruntime")
        options = OnnxOptions(threads=1, frugal=True)
        engine = OnnxEngine(bundle.file(role), options)
        case.reach("promises")
        bundle.check_graph(role, engine.inputs, engine.outputs)
        engine.close()
        case.reach("answer")
        with Pipeline.load(root, device="cpu", threads=1, checksums=False) as pipe:
            case.equal = answer(pipe) == self.answer


class Texts(BundleProbe):
    """Mutated tokenizers, chat templates and embedding tables behind a manifest that agrees to them."""

    def __call__(self, case: Case) -> None:
        """Mutate one, and read what it became."""
        random = case.random
        role = random.choice(("tokenizer", "tokenizer", "chat_template", "embeddings"))
        content = self.bundle.file(role).read_bytes()
        if role == "tokenizer" and random.random() < 0.8:
            content = dumps(mutate_json(json.loads(content), random), random)
        elif role == "embeddings" and random.random() < 0.8:
            content = mutate_safetensors(content, random)
        else:
            content = mutate_bytes(content, random)
        root = self.vouched(case, role, content)
        case.reach(f"{role}: bundle")
        bundle = Bundle.open(root)
        case.reach(f"{role}: texts")
        read_family(bundle, read_tokenizer(bundle))
        case.reach(f"{role}: answer")
        with Pipeline.load(root, device="cpu", threads=1, checksums=False) as pipe:
            case.equal = answer(pipe) == self.answer


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """A safetensors file with another header, whose length is right."""
    size = int.from_bytes(content[:8], "little")
    document = json.loads(content[8 : 8 + size])
    header = dumps(mutate_json(document, random), random)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


class Pictures:
    """Mutated pictures of the formats that are read."""

    def __init__(self, folder: Path) -> None:
        """Encode the picture in each format."""
        self.files = {}
        for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"):
            data = io.BytesIO()
            picture().save(data, name)
            self.files[name] = data.getvalue()
        self.pixels = {
            name: np.asarray(open_picture(data).convert("RGB")) for name, data in self.files.items()
        }

    def __call__(self, case: Case) -> None:
        """Mutate bytes, or chunks of a PNG with the right checksum."""
        name = case.random.choice(["PNG", "PNG", *self.files])
        data = self.files[name]
        resealed = name == "PNG" and case.random.random() < 0.7
        data = mutate_png(data, case.random) if resealed else mutate_bytes(data, case.random)
        case.reach(name)
        pixels = np.asarray(open_picture(data).convert("RGB"))
        case.equal = np.array_equal(pixels, self.pixels[name])
        checked = name == "PNG" and not resealed
        if checked and not case.equal:
            raise AssertionError("other pixels, though each chunk has a checksum")


def mutate_png(data: bytes, random: Random) -> bytes:
    """A PNG whose chunks are changed, moved or repeated; their checksums are right."""
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    index = random.randrange(len(chunks))
    kind, body = chunks[index]
    change = random.randrange(4)
    if change == 0:
        del chunks[index]
    elif change == 1:
        chunks.insert(random.randrange(len(chunks) + 1), chunks[index])
    elif change == 2:
        names = (
            b"tEXt",
            b"zTXt",
            b"iCCP",
            b"eXIf",
            b"acTL",
            b"fcTL",
            b"PLTE",
            b"tRNS",
            b"IDAT",
            b"XXXX",
        )
        chunks.insert(index, (random.choice(names), random.randbytes(random.choice((0, 3, 60)))))
    else:
        chunks[index] = kind, mutate_bytes(body, random) if body else b"\0"
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


class Videos:
    """Mutated video files."""

    def __init__(self, folder: Path) -> None:
        """Encode a short clip in each container."""
        import av

        self.files = {}
        for suffix, codec in (
            ("mp4", "mpeg4"),
            ("mkv", "mpeg4"),
            ("avi", "mjpeg"),
            ("webm", "libvpx"),
        ):
            data = io.BytesIO()
            with av.open(data, "w", format={"mkv": "matroska"}.get(suffix, suffix)) as container:
                stream: Any = container.add_stream(codec, rate=4)
                stream.width, stream.height = 56, 56
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                for level in range(8):
                    array = np.full((56, 56, 3), level * 30, np.uint8)
                    frame = av.VideoFrame.from_ndarray(array, format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            self.files[suffix] = data.getvalue()
        self.frames = {name: self.read(folder, name, data) for name, data in self.files.items()}

    def __call__(self, case: Case) -> None:
        """Mutate bytes, and read what frames there are."""
        name = case.random.choice(list(self.files))
        case.reach(name)
        frames = self.read(case.folder, name, mutate_bytes(self.files[name], case.random))
        case.equal = frames == self.frames[name]

    @staticmethod
    def read(folder: Path, name: str, data: bytes) -> list[str]:
        """A digest of each frame."""
        path = folder / f"clip.{name}"
        path.write_bytes(data)
        return [hashlib.sha256(frame.tobytes()).hexdigest() for frame in read_video(path)]


class Checkpoints:
    """Mutated files of a checkpoint, read as export reads them before it traces a graph."""

    def __init__(self, folder: Path) -> None:
        """Read the checkpoint as it is; torch is imported here."""
        self.model: Any = None
        from foveate.bundle.manifest import Manifest
        from foveate.export.exporter import ExportOptions, describe, load, write_texts
        from foveate.families import settings_from_checkpoint
        from foveate.modeling.checkpoint import DTYPES, Checkpoint
        from foveate.modeling.families import torch_family

        def read(root: Path, scratch: Path, reach: Callable[[str], object]) -> Manifest:
            """What an export's manifest would say."""
            options = ExportOptions()
            reach("open")
            checkpoint = Checkpoint.open(root)
            reach("texts")
            tokenizer = checkpoint.tokenizer()
            write_texts(checkpoint, tokenizer, options, scratch)
            reach("settings")
            settings = settings_from_checkpoint(checkpoint.family, root)
            reach("weights")
            family = torch_family(checkpoint.family)
            files = [root / name for name in ("config.json", "model.safetensors")]
            unchanged = all(path.samefile(folder / path.name) for path in files)
            if not unchanged or not self.model:
                model = load(family, checkpoint, options, DTYPES["fp32"], str(scratch))
                self.model = self.model or model
            reach("description")
            model = self.model if unchanged else model
            return describe(family, checkpoint, model, tokenizer, options, settings, compressor)

        from foveate.export.exporter import choose_compressor

        compressor = choose_compressor(ExportOptions())[1]
        self.read, self.root = read, folder
        with tempfile.TemporaryDirectory() as scratch:
            self.manifest = read(folder, Path(scratch), str)

    def __call__(self, case: Case) -> None:
        """Mutate one file, by its structure or its bytes."""
        random = case.random
        files = sorted(path.name for path in self.root.iterdir())
        name = random.choice(files)
        content = (self.root / name).read_bytes()
        if name.endswith(".json") and random.random() < 0.8:
            content = dumps(mutate_json(json.loads(content), random), random)
        elif name.endswith(".safetensors") and random.random() < 0.8:
            content = mutate_safetensors(content, random)
        else:
            content = mutate_bytes(content, random)
        root, scratch = case.folder / "checkpoint", case.folder / "scratch"
        root.mkdir()
        scratch.mkdir()
        for other in files:
            if other != name:
                os.link(self.root / other, root / other)
        (root / name).write_bytes(content)
        found = self.read(root, scratch, lambda stage: case.reach(f"{name}: {stage}"))
        case.equal = found == self.manifest


PROBES: dict[str, Callable[[Path], Probe]] = {
    "manifests": Manifests,
    "graphs": Graphs,
    "texts": Texts,
    "checkpoints": Checkpoints,
    "pictures": Pictures,
    "videos": Videos,
}

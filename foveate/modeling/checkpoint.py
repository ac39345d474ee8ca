"""A transformers checkpoint folder, read far enough to export it."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from tokenizers import Tokenizer

from foveate import families
from foveate.bundle.generation import Generation
from foveate.errors import CheckpointError, UnsupportedFamilyError
from foveate.families.base import CheckpointForm
from foveate.families.settings_file import read_json
from foveate.modeling.checkpoint_template import FILE as TEMPLATE_FILE
from foveate.modeling.checkpoint_template import read_template
from foveate.modeling.checkpoint_tokenizer import named_tokens, read_tokenizer
from foveate.modeling.common_fields import TOKENIZER, describe_quantization
from foveate.modeling.fields import check_fields, read_as
from foveate.modeling.generation_fields import GENERATION, Tokens, as_list, generation_settings

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
TOKENIZER_FILE = "tokenizer_config.json"
FOREIGN = {
    "adapter_config.json": "an adapter of another model's weights; merge it into them (PEFT's "
    "merge_and_unload), save the result with its tokenizer and processor, and export that",
}
"""Files of what is no whole checkpoint."""
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder and what its config.json says.

    Attributes:
        root: The folder.
        name: How the user named it: a path or a hub id.
        config: config.json.
        family: Foveate's name of the model family.
    """

    root: Path
    name: str
    config: dict[str, Any]
    family: str

    @classmethod
    def open(cls, source: str | Path) -> "Checkpoint":
        """Open a local folder, or fetch a hub id where there is a network.

        Raises:
            CheckpointError: No such folder or hub id, no readable config.json in it, or weights that are
                quantized or an adapter's.
            UnsupportedFamilyError: A family that Foveate does not know.
        """
        root = Path(source)
        if not root.is_dir():
            root = fetch(str(source))
        refuse_foreign(root)
        config = read_json(root / CONFIG_FILE)
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise CheckpointError(
                f"{root / CONFIG_FILE}: no model_type; is this a checkpoint folder?"
            )
        try:
            family = families.from_model_type(model_type)
        except UnsupportedFamilyError as error:
            raise UnsupportedFamilyError(f"{root / CONFIG_FILE}: {error}") from None
        checkpoint = cls(root, str(source), config, family)
        for folder in checkpoint.form.weights:
            refuse_foreign(root / folder)
        checkpoint._refuse_quantized()
        return checkpoint

    @property
    def form(self) -> CheckpointForm:
        """How the family's checkpoints are laid out."""
        return families.checkpoint_form(self.family)

    @property
    def text_root(self) -> Path:
        """The folder of the tokenizer, the chat template and generation_config.json."""
        return self.root / self.form.text

    def beside_text(self, file: str) -> str:
        """A file of `text_root` as a path from the checkpoint's folder."""
        return str(PurePosixPath(self.form.text) / file)

    def shown(self, file: str) -> str:
        """A file as the user would name it."""
        return str(Path(self.name) / file)

    def section(self, file: str) -> dict[str, Any]:
        """A JSON file that may be absent, empty then.

        Raises:
            CheckpointError: It is there and cannot be read.
        """
        return read_json(self.root / file) if (self.root / file).is_file() else {}

    def chat_template(self) -> str:
        """The Jinja chat template, from wherever transformers takes it; see `read_template`.

        Raises:
            CheckpointError: There is none that the family can use, or it is no template.
        """
        own = read_template(self.text_root)
        template = self.form.template(own, self.tokenizer)
        if template is None:
            raise CheckpointError(
                f"{self.text_root}: no chat template{'' if own is None else ' with places for pictures'}; "
                f"save one as {TEMPLATE_FILE} in this folder"
            )
        return template

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, with tokens that stand beside tokenizer.json; see `read_tokenizer`.

        Raises:
            CheckpointError: It cannot be read, or its settings cannot be honoured.
        """
        file = self.beside_text(TOKENIZER_FILE)
        check_fields(self.section(file), TOKENIZER, self.shown(file))
        return read_tokenizer(self.text_root)

    def special_tokens(self) -> dict[str, str]:
        """The texts of special tokens by their fields' names, such as "bos_token".

        Raises:
            CheckpointError: A field that holds something else.
        """
        return named_tokens(self.text_root)

    def generation(self, vocabulary: int | None = None) -> Generation:
        """How the checkpoint wants its text generated.

        Args:
            vocabulary: How many tokens the model has; None leaves unchecked whether it has all.

        Raises:
            CheckpointError: A setting that cannot be honoured, or no token that ends an answer.
        """
        file = self.beside_text(GENERATION_FILE)
        held, shown = self.section(file), self.shown(file)
        check_fields(held, GENERATION, shown)
        return generation_settings(held, self.stops(), vocabulary, shown)

    def stops(self) -> list[int]:
        """The tokens that end an answer: of generation_config.json, else config.json, else its text part.

        Those that the family always has beside them come last.

        Raises:
            CheckpointError: None is named.
        """
        generation, config = map(self.beside_text, (GENERATION_FILE, CONFIG_FILE))
        text = self.config.get("text_config")
        places = {
            self.shown(generation): self.section(generation),
            self.shown(config): self.section(config),
            f"{self.shown(CONFIG_FILE)}: text_config": text if isinstance(text, dict) else {},
        }
        stops: list[int] = []
        for place, section in places.items():
            held = section.get("eos_token_id") or []
            stops = stops or as_list(read_as(Tokens, held, f"{place}: eos_token_id"))
        if self.form.ends:
            ends = map(self.tokenizer().token_to_id, self.form.ends)
            stops = list(dict.fromkeys([*stops, *(end for end in ends if end is not None)]))
        if not stops:
            raise CheckpointError(
                f"{self.name}: no eos_token_id in {generation} or {config}; generation could not stop"
            )
        return stops

    def _refuse_quantized(self) -> None:
        """CheckpointError for weights that are quantized."""
        text = self.config.get("text_config")
        parts = {CONFIG_FILE: self.config, f"{CONFIG_FILE}: text_config": text}
        folders = [PurePosixPath(folder) for folder in self.form.weights]
        parts |= {str(one / CONFIG_FILE): self.section(str(one / CONFIG_FILE)) for one in folders}
        for place, part in parts.items():
            for field in ("quantization_config", "compression_config"):
                if isinstance(part, dict) and part.get(field) is not None:
                    raise CheckpointError(
                        f"{self.shown(place)}: {field} says {describe_quantization(part[field])}"
                    )
        for file in (str(one / name) for one in folders for name in QUANTIZATION_FILES):
            if (self.root / file).is_file():
                raise CheckpointError(
                    f"{self.shown(file)} says {describe_quantization(read_json(self.root / file))}"
                )


def refuse_foreign(folder: Path) -> None:
    """CheckpointError for a folder of what is no whole checkpoint."""
    for file, problem in FOREIGN.items():
        if (folder / file).is_file():
            raise CheckpointError(f"{folder / file}: {problem}")


def release(model: torch.nn.Module) -> None:
    """Free a model's weights even where others (onnxscript's rewrite rules do) still hold the model."""
    for weight in model.parameters():
        weight.data = torch.empty(0, dtype=weight.dtype)


def fetch(name: str) -> Path:
    """Download a hub id's files.

    Raises:
        CheckpointError: No such folder and no such hub id within reach.
    """
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"{name}: no such folder; give a checkpoint folder or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(
            f"{name}: no such folder, and the hub gave nothing ({type(error).__name__}); "
            "download the checkpoint and give its folder"
        ) from error

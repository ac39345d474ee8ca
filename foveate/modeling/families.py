"""The families' torch halves by name. A new one is a file here and a line in _FAMILIES."""

from importlib import import_module
from typing import cast

from foveate.errors import UnsupportedFamilyError
from foveate.modeling.base import TorchFamily

_FAMILIES = {
    "llava_onevision": ("foveate.modeling.llava_onevision", "TorchLlavaOnevision"),
    "qwen2_vl": ("foveate.modeling.qwen2_vl", "TorchQwen2VL"),
    "vila": ("foveate.modeling.vila", "TorchVila"),
}


def torch_family(name: str) -> TorchFamily:
    """The torch half of the family `name`, imported when it is first asked for.

    Raises:
        UnsupportedFamilyError: No such family.
    """
    if name not in _FAMILIES:
        raise UnsupportedFamilyError(
            f"Foveate knows no family {name!r} in torch; it knows {', '.join(sorted(_FAMILIES))}."
        )
    module, of_class = _FAMILIES[name]
    return cast(TorchFamily, getattr(import_module(module), of_class)())

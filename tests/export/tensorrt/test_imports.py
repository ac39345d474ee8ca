"""What building engines needs to be installed: numpy, and no library that trains or exports models."""

import subprocess
import sys

import pytest

HEAVY = "torch transformers onnx onnx_ir onnxscript onnxruntime tensorrt tensorrt_rtx cuda"


@pytest.mark.parametrize("module", ["build", "opset17", "static"])
def test_importing_needs_none_of_the_heavy_libraries(module: str) -> None:
    code = (
        "import sys\n"
        f"for name in {HEAVY.split()}: sys.modules[name] = None\n"
        f"import foveate.export.tensorrt.{module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_onnx_a_rewriting_says_how_to_get_it() -> None:
    code = (
        "import sys\n"
        "sys.modules['onnx'] = None\n"
        "from pathlib import Path\n"
        "from foveate.errors import MissingDependencyError\n"
        "from foveate.export.tensorrt.opset17 import to_opset17\n"
        "from foveate.export.tensorrt.static import static_graph\n"
        "for rewrite, *options in ((to_opset17,), (static_graph, 8)):\n"
        "    try:\n"
        "        rewrite(Path('graph.onnx'), *options)\n"
        "    except MissingDependencyError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "building with TensorRT before version 10 needs onnx: pip install onnx"
    assert second.startswith("a decoder with a static cache needs onnx: pip install onnx")

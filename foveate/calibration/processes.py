"""The processes that share a run, which `accelerate launch` may start; without it there is one."""

import atexit
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from foveate.errors import BackendError, needed

with needed("calibration needs {}, which is not installed: pip install 'foveate[calibrate]'"):
    import torch  # noqa: F401
    import transformers
    from accelerate import PartialState  # type: ignore[import-untyped]
    from accelerate.utils import gather_object, parse_flag_from_env  # type: ignore[import-untyped]

from foveate.calibration.device import pick_device
from foveate.calibration.progress import Meter
from foveate.calibration.torch_model import TorchModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

ITEM = TypeVar("ITEM")


def join_processes(device: str) -> PartialState:
    """Find the processes of this run, each on a device of its own.

    Args:
        device: "auto", "cpu" or "cuda"; each process gets its own of that kind.

    Raises:
        BackendError: It cannot be had, or the processes do not find each other.
    """
    found = pick_device(device, cuda=not parse_flag_from_env("ACCELERATE_USE_CPU"))
    state = PartialState(cpu=found.type == "cpu", timeout=datetime.timedelta(days=30))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != world:
        raise BackendError(
            f"{world} processes were launched and {state.num_processes} found each other; launch with "
            "`accelerate launch`, which sets them up"
        )
    if world > 1:
        atexit.register(state.destroy_process_group)
    return state


def load_model(
    source: str,
    dtype: str,
    state: PartialState,
    meter: Meter,
    records: int,
    loaded: TorchModel | None = None,
) -> TorchModel:
    """Load a checkpoint on the process's device, and begin to count its share of the records.

    One that is `loaded` already is taken as it is.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    if loaded is None:
        with meter.stage(f"loading {source}"):
            loaded = TorchModel.load(source, dtype, str(state.device))
    meter.start(records, state.num_processes)
    return loaded


@contextlib.contextmanager
def stopping(state: PartialState, meter: Meter, remark: Callable[[], str]) -> Iterator[None]:
    """Say, where an interrupt ends the block, what `remark` returns; only the main process raises it on."""
    try:
        yield
    except KeyboardInterrupt:
        meter.stop(remark())
        if not state.is_main_process:
            raise SystemExit(130) from None
        raise


def gather(items: list[ITEM]) -> list[ITEM]:
    """Every process's items, one process's after the other's; all processes must call it."""
    gathered: list[ITEM] = gather_object(items)
    return gathered

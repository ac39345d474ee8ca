"""CUDA graphs of work that comes again with the same shapes in the same memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from foveate.errors import BackendError
from foveate.runtime.backends.trt.cuda import Gpu

KEPT = 4


class Graphs:
    """Records work that is asked for a second time, and launches the record from the third time on.

    A record holds addresses: its key must hold every shape, value and address that the work uses.

    Attributes:
        refusal: Why the work cannot be recorded; None while it can.
        launched: How often a record was used.
    """

    def __init__(self, gpu: Gpu) -> None:
        """Hold no record yet."""
        self.gpu = gpu
        self.refusal: str | None = None
        self.launched = 0
        self._records: OrderedDict[Hashable, Any] = OrderedDict()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do the work, by a record if there is one.

        Raises:
            BackendError: The work failed.
        """
        if self.launch(key):
            return
        work()
        if self.refusal is not None:
            return
        if key not in self._records:
            self._records[key] = None
            self._shrink()
            return
        try:
            self._records[key] = self.gpu.capture(work)
        except BackendError as error:
            self.refusal = str(error)
            self.clear()

    def launch(self, key: Hashable) -> bool:
        """Do the work by its record; False where there is none.

        Raises:
            BackendError: The work failed.
        """
        record = self._records.get(key)
        if record is None:
            return False
        self._records.move_to_end(key)
        self.gpu.launch(record)
        self.launched += 1
        return True

    def clear(self) -> None:
        """Forget all records."""
        while self._records:
            self._forget(self._records.popitem()[1])

    def _shrink(self) -> None:
        """Forget the records that were not used for longest."""
        while len(self._records) > KEPT:
            self._forget(self._records.popitem(last=False)[1])

    def _forget(self, record: Any) -> None:
        """Free one record, when nothing on the GPU uses it any more."""
        if record is not None:
            self.gpu.synchronize()
            self.gpu.forget(record)

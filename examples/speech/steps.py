"""Steps of a training, one started before the last one's results are looked at."""

from collections.abc import Callable
from typing import Any


class Steps:
    """Hands on what each step measured when the next one has been started.

    Who asks for a number waits for it, and the device then waits for the next batch. So the host
    makes the batch and starts the step while the device is still at the one before it.
    """

    def __init__(self, note: Callable[[Any], None]):
        self._note = note
        self._last: Any = None

    def started(self, measured: Any) -> None:
        """A step will have measured this."""
        last, self._last = self._last, measured
        if last is not None:
            self._note(last)

    def wait(self) -> None:
        """Returns when everything that was started is done and handed on."""
        self.started(None)

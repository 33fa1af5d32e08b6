"""Training on several devices: a process for each, started afresh, so that a script, a notebook and a test can."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from importlib import import_module
from multiprocessing import active_children
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessRaisedException
from typing_extensions import override

from gainmtl_lib.progress import show_progress

_OWN_ERROR = re.compile(r"^(?P<module>gainmtl_lib[\w.]*)\.(?P<name>\w+): (?P<text>.*?)\s*\Z", re.DOTALL)


class FreshProcesses(DDPStrategy):
    """Data-parallel training in spawned processes; their errors arrive as they were raised.

    Lightning's own refuses notebooks for the sake of objects defined in a cell; ours come from modules.
    """

    def __init__(self) -> None:
        super().__init__(start_method="spawn")

    @override
    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self)


class _Launcher(_MultiProcessingLauncher):
    def __init__(self, strategy: DDPStrategy) -> None:
        super().__init__(strategy, start_method="spawn")
        self._shows_progress = bool(logging.getLogger("gainmtl_lib").handlers)  # which a fresh process lacks

    @property
    @override
    def is_interactive_compatible(self) -> bool:
        return True

    @override
    def launch(self, function: Callable, *args: Any, trainer: L.Trainer | None = None, **kwargs: Any) -> Any:
        others = set(active_children())
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except ProcessRaisedException as error:
            raise as_raised(error) from error
        finally:
            # An interruption of this process alone would leave them training.
            for process in set(active_children()) - others:
                process.kill()
                process.join()

    @override
    def _wrapping_function(self, process_idx: int, *args: Any, **kwargs: Any) -> None:
        if self._shows_progress:
            show_progress(logging.INFO if process_idx == 0 else logging.WARNING)
        super()._wrapping_function(process_idx, *args, **kwargs)


def as_raised(error: Exception) -> BaseException:
    """The error of a process, of which only the text arrived, as what it was: one of this project, or Ctrl-C."""
    lines = str(error).splitlines()
    for last in reversed(range(len(lines))):
        if lines[last] == KeyboardInterrupt.__name__:
            return KeyboardInterrupt()
        if own := _OWN_ERROR.match("\n".join(lines[last:])):
            return getattr(import_module(own["module"]), own["name"])(own["text"])
    return error

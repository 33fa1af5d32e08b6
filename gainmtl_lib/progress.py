"""How long work shows that it is alive: log lines on stderr, so that a notebook's stored output stays the same."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def show_progress(level: int = logging.INFO) -> None:
    """Send the library's log lines to stderr and quieten those of its dependencies. Safe to call twice."""
    logger = logging.getLogger("gainmtl_lib")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    own = ("lightning.pytorch", "lightning.fabric", "mmengine")
    for noisy in (*own, "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning's own affair
    # Loader workers are measured, not guessed (benchmarks/training.py); Lightning's advice to use more is wrong here.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen batch norms are


def every(seconds: float) -> Callable[[], bool]:
    """A question to ask inside a loop: have so many seconds passed, since now or since the last yes?"""
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return True

    return due


def counted(items: Iterable[T], total: int, what: str, *, log: logging.Logger, seconds: float = 5.0) -> Iterator[T]:
    """The same items, with a log line every few seconds, ``what: 120 of 700``; short work says nothing."""
    due = every(seconds)
    for done, item in enumerate(items, start=1):
        yield item
        if due():
            log.info("%s: %d of %d", what, done, total)

"""How long work shows that it is alive: log lines on stderr, so that a notebook's stored output stays the same."""

from __future__ import annotations

import logging
import sys
import warnings


def show_progress(level: int = logging.INFO) -> None:
    """Send the library's log lines to stderr and quieten those of its dependencies. Safe to call twice."""
    logger = logging.getLogger("gainmtl_lib")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    for noisy in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "mmengine"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning's own affair
    # Loader workers are measured, not guessed (benchmarks/training.py); Lightning's advice to use more is wrong here.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")

"""What every test may ask for."""

from pathlib import Path

import pytest
import torch
from drawn_data import write_generic

# Tests work on small tensors, where a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture
def generic(tmp_path: Path) -> Path:
    """A sound dataset: train, val and test of three normal and three defective images each."""
    return write_generic(tmp_path / "data")

"""What the processes of one run do together, so that they learn what a single one would.

Each takes its part of every batch. Sums, batch norm and dropout go over the whole batch; a mean over pictures is
weighted by how many of them each process has. A single process has the whole batch, and nothing here changes it.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset

from gainmtl_lib.launch import Launch
from gainmtl_lib.progress import show_progress
from gainmtl_lib.settings import RunSettings

# --- Coming together


def environment(launch: Launch) -> ClusterEnvironment:
    """Lightning's name for who started the processes. A single one is alone, whatever a SLURM session around it has."""
    if launch.launcher == "torchrun":
        return TorchElasticEnvironment()
    if launch.launcher != "slurm":
        return LightningEnvironment()
    warnings.filterwarnings("ignore", "The `srun` command is available")  # Lightning misses it in salloc
    return SLURMEnvironment(auto_requeue=False)


def connect(launch: Launch, settings: RunSettings, device: torch.device) -> None:
    """Bring the processes together; all but the main one fall silent."""
    if not launch.is_main:
        show_progress(logging.ERROR)
    L.Fabric(
        accelerator=device.type, devices=settings.devices, num_nodes=settings.num_nodes, strategy="ddp",
        plugins=[environment(launch)],
    ).launch()  # fmt: skip


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 is the main one."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def gathered(value: Any) -> list[Any]:
    """The value that each process has, in their order."""
    values = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


@contextmanager
def together() -> Iterator[None]:
    """Wait for all at the end. What one cannot do, none goes on from: the first to fail raises, the others leave."""
    error = None
    try:
        yield
    except Exception as failure:
        error = failure
    failed = gathered(error is not None)
    if error is not None and rank() == failed.index(True):
        raise error
    if any(failed):
        raise SystemExit(0)  # a launcher that saw another status would not let the one that failed say why


# --- Parts of a batch


class Part(NamedTuple):
    """Which pictures of a whole batch a process takes."""

    start: int
    stop: int
    size: int  # of the whole batch
    weight: float = 1.0  # of its mean over pictures, so that the processes' mean is that over the whole batch

    @classmethod
    def whole(cls, size: int) -> "Part":
        """All of it."""
        return cls(0, size, size)

    @classmethod
    def of(cls, size: int, rank: int, count: int) -> "Part":
        """Equal parts, as far as the size allows; of fewer pictures than processes each takes all."""
        if size < count:
            return cls.whole(size)
        start, stop = (place * size // count for place in (rank, rank + 1))
        return cls(start, stop, size, (stop - start) * count / size)

    @property
    def places(self) -> slice:
        """Of its pictures in the whole batch."""
        return slice(self.start, self.stop)


class Shared(Dataset[Any]):
    """This process's part of each batch of a dataset that makes whole batches and counts what it shows."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.rank, self.count = dataset, rank(), count()

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        self.dataset.counting = self.rank == 0 or len(keys) >= self.count  # what all show counts once
        return self.dataset.__getitems__(keys[Part.of(len(keys), self.rank, self.count).places])


# --- Numbers of all


def summed(values: Tensor) -> Tensor:
    """Over all processes, element by element; nothing flows back."""
    total = values.detach().clone()
    if count() > 1:
        dist.all_reduce(total)
    return total


class _Summed(torch.autograd.Function):
    """As `summed`, and the gradient of what all processes made of the sum flows back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0])


def mean_weights(selected: Tensor) -> Tensor:
    """By what means over the pictures that each process selected are to be multiplied, bool (K, B) -> (K,).

    The processes' mean, which is what their gradients become, is then the mean over the selected pictures of all.
    """
    own = selected.sum(dim=1).float()
    return own * count() / summed(own).clamp_min(1)


def means(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of each number the mean over the processes."""
    return dict(zip(values, summed(torch.stack([*values.values()])) / count(), strict=True))


def hardest(values: Tensor, quantile: float, *, total: int) -> Tensor:
    """The smallest of all processes' `total` values that is not below the quantile of all, which lies between two."""
    rank = min(total, int(-(-quantile * (total - 1) // 1)) + 1)  # from 1; `torch.quantile` sorts 2^24 at most
    if count() == 1:
        return values.flatten().kthvalue(rank).values
    wanted = total - rank + 1  # from above
    largest = values.flatten().topk(min(wanted, values.numel())).values
    parts = [torch.empty(wanted, device=values.device) for _ in range(count())]
    dist.all_gather(parts, F.pad(largest, (0, wanted - len(largest)), value=-torch.inf))
    return torch.cat(parts).topk(wanted).values[-1]


def rows_of_all(rows: Tensor) -> Tensor:
    """The rows of all processes, (N, D), in the order of the first column, of which each value stands once."""
    joined = torch.cat(gathered(rows.cpu()))
    _, first = np.unique(joined[:, 0].numpy(), return_index=True)
    return joined[first]


# --- Layers that look at the whole batch


def whole_batch(part: Part) -> AbstractContextManager[Any]:
    """While it is entered, batch norm and dropout of a part do what they would do in the whole batch."""
    return _WholeBatch(part) if count() > 1 else nullcontext()


class _WholeBatch(TorchFunctionMode):
    """Stands between a layer and PyTorch's function.

    Batch norm takes its statistics over all processes. Dropout draws for the whole batch, of which each process takes
    its part: their random numbers must stand alike. Lightning's own conversion of batch norms knows GPUs only, drops
    the activation within timm's, and wakes frozen ones.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            func = self._batch_norm
        elif func is F.dropout:
            func = self._dropout
        return func(*args, **kwargs or {})

    def _dropout(self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training:
            return values
        whole = values.new_ones(1).expand(self.part.size, *values.shape[1:])
        like_it = torch.channels_last if values.ndim == 4 and not values.is_contiguous() else torch.contiguous_format
        return values * F.dropout(whole.contiguous(memory_format=like_it), p)[self.part.places]

    def _batch_norm(
        self, values: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor,
        training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training:
            return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
        if values.is_cuda:
            group = dist.group.WORLD
            statistics = running_mean, running_var, eps, momentum
            return SyncBatchNorm.apply(values, weight, bias, *statistics, group, count())  # type: ignore[return-value]
        return _batch_norm_of_all(values, running_mean, running_var, weight, bias, momentum, eps)


def _batch_norm_of_all(
    values: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor, bias: Tensor, momentum: float, eps: float
) -> Tensor:
    """What PyTorch's `SyncBatchNorm`, which wants a GPU, does; of a process without pictures, too."""
    axes, wide = [0, *range(2, values.ndim)], values.float()
    number = float(summed(wide.new_tensor(values.numel() / values.shape[1])))
    mean: Tensor = _Summed.apply(wide.sum(axes, keepdim=True)) / number  # type: ignore[operator]
    centred = wide - mean
    variance: Tensor = _Summed.apply(centred.square().sum(axes, keepdim=True)) / number  # type: ignore[operator]
    with torch.no_grad():
        running_mean.lerp_(mean.flatten(), momentum)
        running_var.lerp_(variance.flatten() * (number / (number - 1)), momentum)
    shape = [1, -1, *[1] * (values.ndim - 2)]
    return (centred * (variance + eps).rsqrt() * weight.view(shape) + bias.view(shape)).to(values.dtype)

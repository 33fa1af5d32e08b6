"""The optimisation by which a patch description network learns a backbone's description of the same pictures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from gainmtl_lib.efficientad.networks import PatchDescriptionNetwork
from gainmtl_lib.efficientad.targets import BackboneTargets
from gainmtl_lib.models.weights import ModelError


class TeacherTraining:
    """Network, optimiser and standardised targets, and how many steps were made.

    Images are uint8, (B, 3, 2H, 2W) for the backbone and (B, 3, H, W) for the network.

    Args:
        network: to be taught, padded.
        targets: on the network's grid.
        learning_rate: Adam's.
        weight_decay: Adam's.
        device: of all tensors.
    """

    def __init__(
        self,
        network: PatchDescriptionNetwork,
        targets: BackboneTargets,
        *,
        learning_rate: float,
        weight_decay: float,
        device: torch.device,
    ) -> None:
        self.device = device
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.targets = targets.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda")
        )
        channels = (1, targets.out_channels, 1, 1)
        self.target_mean, self.target_std = torch.zeros(channels, device=device), torch.ones(channels, device=device)
        self.image_mean, self.image_std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        self.steps = 0

    def measure(self, large: Tensor) -> tuple[int, Tensor, Tensor]:
        """Images in a batch, mean and variance of each channel of their targets, float64 (C,) on the CPU."""
        variance, mean = torch.var_mean(self.targets(self._pixels(large)), dim=(0, 2, 3), correction=0)
        return len(large), mean.double().cpu(), variance.double().cpu()

    def standardise(self, measured: list[tuple[int, Tensor, Tensor]]) -> None:
        """Take the targets' mean and standard deviation from what `measure` gave.

        Raises:
            ModelError: a channel that never changes.
        """
        counts, means, variances = (list(column) for column in zip(*measured, strict=True))
        share = torch.tensor(counts, dtype=torch.float64).unsqueeze(1) / sum(counts)
        mean = (share * torch.stack(means)).sum(dim=0)
        variance = (share * (torch.stack(variances) + (torch.stack(means) - mean).square())).sum(dim=0)
        if useless := int((~(variance > 0)).sum()):  # NaN included
            raise ModelError(
                f"{useless} of the backbone's {len(variance)} target channels never change on these pictures, or are "
                "not finite; the pictures are all the same, or the backbone's weights are damaged"
            )
        self.target_mean = mean.float().view(1, -1, 1, 1).to(self.device)
        self.target_std = variance.sqrt().float().view(1, -1, 1, 1).to(self.device)

    def step(self, large: Tensor, small: Tensor) -> Tensor:
        """One step of the optimiser; the loss before it, a scalar: mean squared difference to the targets."""
        wanted = (self.targets(self._pixels(large)) - self.target_mean) / self.target_std
        described = self.network((self._pixels(small) - self.image_mean) / self.image_std)
        loss = F.mse_loss(described, wanted)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from."""
        return {
            "steps": self.steps,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "target_mean": self.target_mean,
            "target_std": self.target_std,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.target_mean, self.target_std = (state[name].to(self.device) for name in ("target_mean", "target_std"))

    def _pixels(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=True).float().div_(255)

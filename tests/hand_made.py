"""Models whose answer is known: they look at the brightness of one region and at nothing else."""

import torch
import torch.nn.functional as F
from torch import nn

from gainmtl_lib.model import GainOutput

CORNER = (slice(0, 32), slice(0, 32))
WHOLE = (slice(0, 64), slice(0, 64))
CELL = 4
"""Pixels of a map cell; inputs are 64 x 64."""


class Looks(nn.Module):
    """Defective when its region is brighter than `level`. Marks bright pixels as defect, attends where it looks.

    Args:
        region: the pixels it looks at.
        level: mean brightness of the region from which it says defective.
        without: what it decides with a mask suppressed: ``honest`` looks again with the masked pixels black,
            ``ignores`` answers as before, ``fragile`` says normal whatever the mask.
        strategy: which paths it has.
    """

    def __init__(self, region=CORNER, level=0.25, without="honest", strategy="S5", mask_source="localization"):
        super().__init__()
        self.region, self.level, self.without = region, level, without
        self.strategy, self.mask_source, self.map_stride = strategy, mask_source, CELL
        self.counterfactual = nn.Identity() if strategy >= "S5" else None
        self.gain = nn.Parameter(torch.tensor(20.0))
        self.dropout = nn.Dropout()
        self.batches = []

    def forward(self, images, masks=None):
        self.batches.append(len(images))
        brightness = self.dropout(images).mean(1, keepdim=True)  # (B, 1, 64, 64)
        logits, cam = self.decide(brightness)
        output = GainOutput(logits=logits, cam=cam, cls_logits=logits, cls_cam=cam)
        if self.strategy >= "S3":
            looked_at = torch.zeros_like(brightness)
            looked_at[..., self.region[0], self.region[1]] = 1
            output.attention_map = output.effective_attention = F.avg_pool2d(looked_at, CELL)
        if self.strategy >= "S4":
            output.localization_map = brightness
        if masks is not None and self.counterfactual is not None:
            output.cf_logits = self.decide_without(brightness, masks, logits)
        return output

    def decide(self, brightness):
        part = torch.zeros_like(brightness)
        rows, columns = self.region
        part[..., rows, columns] = brightness[..., rows, columns] - self.level
        cam = F.avg_pool2d(part, CELL) * self.gain
        margin = cam.mean((2, 3)) * 64 * 64 / ((rows.stop - rows.start) * (columns.stop - columns.start))
        return torch.cat([torch.zeros_like(margin), margin], 1), cam

    def decide_without(self, brightness, masks, logits):
        if self.without == "honest":
            return self.decide(brightness * (1 - masks))[0]
        normal = torch.tensor([5.0, -5.0]).expand_as(logits)
        return logits if self.without == "ignores" else torch.where(masks.flatten(1).any(1)[:, None], normal, logits)

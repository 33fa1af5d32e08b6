"""From pictures on disk to batches: layouts, the table of samples, splits, transforms, loaders, synthetic surfaces."""

"""Pictures and defect masks drawn by hand, to edit."""

import numpy as np

SIZE = (64, 64)


def rng(seed=0):
    return np.random.default_rng(seed)


def plain(value=120, size=SIZE):
    return np.full((*size, 3), value, np.uint8)


def noisy(seed=0, value=120, size=SIZE, strength=6.0):
    grey = value + strength * rng(seed).standard_normal((*size, 1))
    return np.clip(np.rint(grey + np.zeros(3)), 0, 255).astype(np.uint8)


def box(rows, columns, size=SIZE):
    mask = np.zeros(size, np.bool_)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


def dented(mask, seed=0, value=40, size=SIZE):
    """A noisy picture whose masked pixels are dark."""
    image = noisy(seed, size=size)
    image[mask] = image[mask] // 2 - (60 - value)
    return image


def roughness(image, known=None):
    """Root mean square of the steps between neighbouring pixels of a row, in grey levels."""
    grey = image.mean(axis=-1)
    steps = (grey[:, 1:] - grey[:, :-1])[slice(None) if known is None else known[:, 1:] & known[:, :-1]]
    return float(np.sqrt((steps**2).mean()))


MASKS = {
    "inside": box((20, 32), (22, 40)),
    "at the corner": box((0, 9), (50, 64)),
    "along the border": box((60, 64), (5, 45)),
    "two pieces": box((8, 16), (8, 16)) | box((44, 50), (40, 58)),
    "one pixel": box((30, 31), (30, 31)),
    "a line across": box((31, 33), (0, 64)),
}

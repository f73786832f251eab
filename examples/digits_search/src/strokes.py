"""A preprocessing step: deskew handwriting."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform

SIDE = 8  # pixels


def deskew(images: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Shear images (rows of 64 pixels) upright: fully with ``strength`` 1, not at all with 0.

    The slant is the covariance of x and y divided by the variance of y, both weighted by the pixel values.
    """
    return np.array([_deskew(image.reshape(SIDE, SIDE), strength).ravel() for image in images])


def _deskew(image: np.ndarray, strength: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    y = y - np.average(y, weights=image)
    x = x - np.average(x, weights=image)
    slant = strength * np.average(x * y, weights=image) / np.average(y**2, weights=image)
    return affine_transform(image, [[1, 0], [slant, 1]], offset=[0, slant * y[0, 0]], order=1)

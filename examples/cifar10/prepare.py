"""Read the images and keep them as arrays."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from images import CLASSES, read

source = Path("data", yaml.safe_load(Path("params.yaml").read_text())["prepare"]["source"])
try:
    train_images, train_classes = read(source, "data_batch_*.bin")
    test_images, test_classes = read(source, "test_batch.bin")
except ValueError as error:
    sys.exit(str(error))
np.savez(
    "arrays.npz",
    train_images=train_images,
    train_classes=train_classes,
    test_images=test_images,
    test_classes=test_classes,
    names=(source / CLASSES).read_text().split(),
)
print(f"{len(train_images)} images for training, {len(test_images)} for the test")

"""Read the images and keep them as arrays."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import yaml
from images import CLASSES, keys, read

source = Path("data", yaml.safe_load(Path("params.yaml").read_text())["prepare"]["source"])
try:
    train_images, train_classes = read(source, "data_batch_*.bin")
    test_images, test_classes = read(source, "test_batch.bin")
except ValueError as error:
    sys.exit(str(error))
train_keys, test_keys = np.array(keys(train_images)), np.array(keys(test_images))
new = ~np.isin(test_keys, train_keys)  # an image that is learned tests nothing
np.savez(
    "arrays.npz",
    train_images=train_images,
    train_classes=train_classes,
    train_keys=train_keys,
    test_images=test_images[new],
    test_classes=test_classes[new],
    test_keys=test_keys[new],
    names=(source / CLASSES).read_text().split(),
)
print(f"{len(train_images)} images for training, {new.sum()} for the test; left out {(~new).sum()} that both have")

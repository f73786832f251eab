"""Read the images and save them as arrays."""

from __future__ import annotations

import hashlib
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
hashes = ([hashlib.sha256(image.tobytes()).hexdigest() for image in part] for part in (train_images, test_images))
train_keys, test_keys = map(np.array, hashes)  # equal images have equal keys
new = ~np.isin(test_keys, train_keys)  # exclude training images from the test set
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
print(f"{len(train_images)} training images, {new.sum()} test images; {(~new).sum()} test images dropped as duplicates")

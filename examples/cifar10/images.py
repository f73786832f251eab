"""Images in the binary layout of CIFAR-10: each image is a class byte followed by 3 x 32 x 32 pixel bytes.

Layout and hash: https://www.cs.toronto.edu/~kriz/cifar.html. The files contain no pickles.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pooch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SHAPE = 3, 32, 32  # colours (red, green, blue), rows, columns
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CLASSES = "batches.meta.txt"


def read(folder: Path, pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (n, 32, 32, 3) and classes (n,), uint8; raise ValueError if a file is truncated or none matches."""
    size, batches = 1 + int(np.prod(SHAPE)), sorted(folder.glob(pattern))
    for file in batches:
        if file.stat().st_size % size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, not a multiple of {size}. Download it again.")
    if not batches:
        raise ValueError(f"{folder} contains no file {pattern}. Run: python images.py {folder.name} {folder}")
    rows = np.concatenate([np.fromfile(file, np.uint8) for file in batches]).reshape(-1, size)
    return rows[:, 1:].reshape(-1, *SHAPE).transpose(0, 2, 3, 1), rows[:, 0]


def write(file: Path, images: np.ndarray, classes: np.ndarray) -> None:
    """Write images (n, 32, 32, 3) and classes (n,), both uint8."""
    np.column_stack([classes, images.transpose(0, 3, 1, 2).reshape(len(images), -1)]).tofile(file)


def write_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits, enlarged from 8 x 8 grey to 32 x 32 colour pixels; a fifth is the test set."""
    digits = load_digits()
    enlarged = np.kron(digits.images, np.ones((4, 4))) * (255 / digits.images.max())
    images, classes = np.repeat(enlarged.astype(np.uint8)[..., np.newaxis], 3, axis=-1), digits.target.astype(np.uint8)
    split = train_test_split(images, classes, test_size=0.2, stratify=classes, random_state=0)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "data_batch_1.bin", split[0], split[2])
    write(folder / "test_batch.bin", split[1], split[3])
    (folder / CLASSES).write_text("".join(f"{digit}\n" for digit in digits.target_names))


def download_cifar10(folder: Path, url: str = URL, md5: str = MD5) -> None:
    """Download CIFAR-10 (163 MB), verify its hash and unpack it; the archive stays in pooch's cache."""
    unpack = pooch.Untar(extract_dir=folder.absolute())
    for file in pooch.retrieve(url, f"md5:{md5}", processor=unpack, progressbar=True):
        Path(file).replace(folder / Path(file).name)  # move the file out of the archive's subfolder
    (folder / "cifar-10-batches-bin").rmdir()


SOURCES = {"digits": write_digits, "cifar10": download_cifar10}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SOURCES:
        sys.exit(f"Usage: python images.py {'|'.join(SOURCES)} FOLDER")
    SOURCES[sys.argv[1]](Path(sys.argv[2]))

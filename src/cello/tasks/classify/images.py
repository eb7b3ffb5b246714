"""Images in the format of MNIST (http://yann.lecun.com/exdb/mnist, "idx"), under any of its names."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cello.tasks.errors import InputError

NAME = re.compile(r"images([-.])idx3([-.])ubyte")
"""In the names of files with images; copies of MNIST have a dot where the original has a hyphen."""


def found(folder: Path, start: str) -> list[Path]:
    """Return the files with images whose names begin so."""
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    return [file for file in files if re.match(re.escape(start) + NAME.pattern, file.name)]


def read(path: Path) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Read the images of a file with their labels, which stand in a file beside it.

    Raises:
        InputError: one of the files is not there, not whole, or the two do not belong together.
    """
    if not NAME.search(path.name):
        raise InputError(f"{path}: not images; the name must have 'images-idx3-ubyte' in it")
    images, labels = idx(path, 3), idx(_labels_of(path), 1)
    if len(images) != len(labels):
        raise InputError(f"{path}: {len(images)} images, but {len(labels)} labels beside it")
    yield from zip(images, labels.tolist(), strict=True)


def _labels_of(path: Path) -> Path:
    """Return the file with the labels of some images: it may be packed, or named, otherwise."""
    plain = path.name.removesuffix(".gz")
    names = [
        NAME.sub(f"labels{one}idx1{two}ubyte", plain) + end
        for one, two in ((r"\1", r"\2"), ("-", "-"), (".", "-"))
        for end in (path.name[len(plain) :], "", ".gz")
    ]
    beside = [path.with_name(name) for name in names]
    return next((file for file in beside if file.is_file()), beside[0])


def idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read an array of bytes in the format idx, also with .gz.

    Args:
        path: the file.
        axes: how many axes it must have.

    Raises:
        InputError: there is no such file, or it is not whole.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not a whole gzip file ({error})") from error
    start = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) < start:
        raise InputError(f"{path}: not an idx file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        sizes = " x ".join(map(str, shape))
        raise InputError(f"{path}: {len(content) - start} bytes behind the head, not {sizes}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)

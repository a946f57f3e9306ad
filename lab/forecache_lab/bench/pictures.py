"""The folder of pictures: which objects there are, and what is no picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..generators.reference import TEST_SEED, solids

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
SIDE = 256  # of the sample pictures


@dataclass(frozen=True)
class Picture:
    """One object.

    Attributes:
        name: its path in the folder, without ending, unless another picture has that name.
        path: of the file. digest: SHA-256 of its content.
    """

    name: str
    path: Path
    digest: str

    def load(self) -> Image.Image:
        """The picture, RGBA."""
        with Image.open(self.path) as image:
            return image.convert("RGBA")


@dataclass(frozen=True)
class Folder:
    """What :func:`read_folder` found: ``pictures`` by name; ``skipped``: reason by file."""

    pictures: tuple[Picture, ...]
    skipped: Mapping[str, str]


def read_folder(folder: Path, limit: int | None = None) -> Folder:
    """The pictures in ``folder`` and its sub-folders in the order of their names, at most ``limit`` of them.

    Every file is decoded once. A file that cannot be decoded, that shows nothing (no opaque pixel), or that has the
    content of an earlier one is skipped, and the result names it with the reason.

    Raises:
        UserError: no folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"--images must be a folder of pictures ({', '.join(ENDINGS)}), got {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    found: dict[str, Picture] = {}
    skipped: dict[str, str] = {}
    for path in files:
        if limit is not None and len(found) == limit:
            break
        file = path.relative_to(folder)
        try:
            name = file.with_suffix("").as_posix()
            name = file.as_posix() if name in {each.name for each in found.values()} else name
            picture = Picture(name, path, hashlib.sha256(path.read_bytes()).hexdigest())
            seen = picture.load().getchannel("A").getextrema()[1]
        except Exception as error:  # a torn file fails anywhere in its decoder
            skipped[file.as_posix()] = f"cannot be read ({type(error).__name__}: {error})"
            continue
        if not seen:
            skipped[file.as_posix()] = "shows nothing: all of it is transparent"
        elif picture.digest in found:
            skipped[file.as_posix()] = f"the same file as {found[picture.digest].path.relative_to(folder).as_posix()}"
        else:
            found[picture.digest] = picture
    if not found:
        why = f"; skipped: {', '.join(f'{name}: {reason}' for name, reason in skipped.items())}" if skipped else ""
        raise UserError(f"--images {folder} holds no picture ({', '.join(ENDINGS)}){why}")
    return Folder(tuple(found.values()), skipped)


def write_samples(folder: Path, count: int) -> list[Path]:
    """Write ``count`` pictures of the solids that the reference networks know, none of them seen in training; the
    families in turn, transparent where nothing is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for k in range(count):
        family = solids.FAMILIES[k % len(solids.FAMILIES)]
        grey = solids.picture(solids.solid(TEST_SEED + k, family)[1], SIDE)[0].numpy()
        level = np.rint((grey + 1) / 2 * 255).astype(np.uint8)
        alpha = np.where(grey > -1, 255, 0).astype(np.uint8)
        written.append(folder / f"{k:03d}-{family}.png")
        Image.fromarray(np.dstack([level, level, level, alpha])).save(written[-1])
    return written

"""Files of samples: pictures, videos, latents. Written aside and renamed, so that a file that is there is whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = {"png": ".png", "mp4": ".mp4", "npy": ".npy", "latent": ".safetensors"}
PARTIAL = ".partial"


def write(sample: Any, path: Path, fps: int = 16) -> tuple[int, str]:
    """Write one sample; the suffix says how.

    Args:
        sample: a picture (.png), frames in 0..1 of shape [(F,) H, W, 3] (.npy, .mp4), or a tensor (.safetensors).
        path: of the file.
        fps: frames a second of a video.

    Returns:
        size in bytes, sha256.
    """
    aside = path.with_name(f".{path.stem}{PARTIAL}{path.suffix}")
    try:
        if path.suffix == ".png":
            sample.save(aside)
        elif path.suffix == ".npy":
            np.save(aside, _bytes(sample))
        elif path.suffix == ".mp4":
            _write_video(_bytes(sample), aside, fps)
        else:
            from safetensors.torch import save_file

            save_file({"latent": sample.detach().to("cpu").contiguous()}, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
            content = file.read()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return len(content), hashlib.sha256(content).hexdigest()


def read(path: Path) -> NDArray[Any]:
    """What :func:`write` wrote: frames [F, H, W, 3] of uint8, or the latent in float32."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return np.asarray(load_file(path)["latent"].to(torch.float32).numpy())
    if path.suffix == ".mp4":
        return _read_video(path)
    if path.suffix == ".npy":
        found: NDArray[Any] = np.load(path)
    else:
        with Image.open(path) as opened:
            found = np.asarray(opened.convert("RGB"))
    return found if found.ndim == 4 else found[None]


def unfinished(path: Path) -> bool:
    """Whether a process that was killed had begun to write this file."""
    return path.name.startswith(".") and PARTIAL in path.name


def remove_unfinished(folder: Path) -> None:
    """Remove what workers that were killed had begun to write."""
    for path in filter(unfinished, [*folder.rglob(".*")]):
        path.unlink(missing_ok=True)


def _bytes(frames: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rint(np.clip(np.asarray(frames, dtype=np.float32), 0, 1) * 255).astype(np.uint8))


def _write_video(frames: NDArray[np.uint8], path: Path, fps: int) -> None:
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, quality=8, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    for frame in frames:
        writer.send(frame)
    writer.close()


def _read_video(path: Path) -> NDArray[Any]:
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["source_size"]
    return np.stack([np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3) for frame in reader])

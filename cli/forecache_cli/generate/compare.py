"""How far a sample is from its uncached reference: PSNR, SSIM, LPIPS of pictures and frames; drift of latents."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .output import read

WINDOW = 11  # pixels: 3.5 standard deviations of SSIM's Gaussian to each side


def compare(sample: Path, reference: Path) -> dict[str, Any]:
    """Metrics of one file against another; a metric that is not there is ``None``, and ``absent`` says why.

    Pictures: ``psnr = 10 log10(255^2 / mean (a - b)^2)`` in dB over all frames, SSIM (Wang et al. 2004: Gaussian window
    of 1.5 pixels) and LPIPS (AlexNet) as the mean over the frames. Latents: ``drift = ||a - b|| / ||b||``. Identical
    files have no PSNR; they are ``identical``. Videos are compared as they were compressed.
    """
    a, b = read(sample), read(reference)
    if a.shape != b.shape:
        raise ValueError(f"{sample.name}: shape {a.shape}, but its uncached reference has {b.shape}")
    found: dict[str, Any] = dict.fromkeys(("psnr", "ssim", "lpips", "drift"))
    found |= {"identical": bool(np.array_equal(a, b)), "absent": {}}
    if a.dtype != np.uint8:
        found["absent"] = dict.fromkeys(("psnr", "ssim", "lpips"), "latents, not pictures")
        with np.errstate(divide="ignore", invalid="ignore"):
            drift = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        if np.isfinite(drift):
            found["drift"] = drift
        else:
            found["absent"]["drift"] = "a latent is not finite, or the reference is zero"
        return found
    if found["identical"]:
        found["absent"]["psnr"] = "infinite: identical"
    else:
        found["psnr"] = float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))
    if min(a.shape[1:3]) < WINDOW:
        found["absent"]["ssim"] = f"smaller than its window of {WINDOW} pixels"
    else:
        found["ssim"] = float(np.mean([_ssim(x, y) for x, y in zip(a, b, strict=True)]))
    network, reason = perceptual()
    if network is None:
        found["absent"]["lpips"] = reason
    else:
        found["lpips"] = float(np.mean([_lpips(network, x, y) for x, y in zip(a, b, strict=True)]))
    return found


def _ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    from skimage.metrics import structural_similarity

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    structural: Any = structural_similarity
    return float(structural(a, b, channel_axis=-1, data_range=255, **options))


@functools.cache
def perceptual() -> tuple[Any, str]:
    """LPIPS's network, or why there is none: nothing is downloaded for a metric."""
    try:
        import lpips
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return None, f"the packages lpips and torchvision are needed: {error}"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob("alexnet-*.pth")):
        return None, f"the weights alexnet-*.pth are not in {folder}"
    return lpips.LPIPS(net="alex", verbose=False).eval(), ""


def _lpips(network: Any, a: NDArray[Any], b: NDArray[Any]) -> float:
    x, y = (torch.from_numpy(each.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for each in (a, b))
    with torch.no_grad():
        return float(network(x, y))

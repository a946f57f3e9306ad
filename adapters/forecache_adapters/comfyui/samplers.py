"""What is known of ComfyUI's samplers: how often a step calls the network, and whether it adds noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from forecache import Corrector

# By ComfyUI's names. One call a step, at the step's own sigma; what is in neither list is watched: see Run.
ONE = frozenset((
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "lms", "dpmpp_2m", "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp",
    "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp",
    "er_sde", "sa_solver", "unipc", "unipc_bh2",
))  # fmt: skip
SEVERAL = frozenset((
    "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "seeds_2", "seeds_3", "sa_solver_pece",
))  # fmt: skip
NOISY = ("ancestral", "sde", "lcm", "ddpm", "sa_solver")


def name_of(sampler: Any) -> str:
    """Of the function that a ``KSAMPLER`` holds, as ComfyUI's menu has it, or of a sampler's class."""
    function = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    return str(function).removeprefix("sample_").removesuffix("_function")


def adds_noise(name: str) -> bool:
    """Whether the sampler draws noise within the run, by its name."""
    return any(each in name for each in NOISY)


def refusal(name: str, sigmas: Sequence[float]) -> str | None:
    """Why nothing is forecast in a run of this sampler over these sigmas; ``None``: it can be."""
    if name in SEVERAL:
        return f"sampler {name} calls the network more than once a step"
    if not all(map(math.isfinite, sigmas)):
        return "the sigmas are not all finite"
    moves = [after - before for before, after in pairwise(sigmas)]
    if not moves:
        return "no step: there is one sigma"
    if min(moves) < 0 < max(moves):
        return "the sigmas fall and rise (a restart), and nothing may be forecast across the noise in between"
    if 0 in sigmas[:-1]:
        return "sigma 0 stands before the end of the sigmas, and the velocity there is not known"
    if 0 in moves:
        return "a sigma stands in the sigmas twice, and a step between equals says nothing about those around it"
    return None


def astray(sigma: float, dtype: torch.dtype, sigmas: Sequence[float], i: int, name: str) -> str | None:
    """Why call ``i`` of the network cannot be step ``i`` of a run; ``None``: it is.

    The count says which step it is, and its sigma has to agree: within a tenth of the distance to the sigmas beside it,
    since samplers move the first sigma of a flow from 1 a little down, where the log of its signal is infinite, or
    within what its dtype rounds. A sampler that is not known needs a dtype that tells the steps apart.
    """
    here = f"sampler {name} is at sigma {sigma:.4g} in call {i + 1}"
    if not 0 <= i < len(sigmas) - 1:
        return f"{here}, after the last of its {len(sigmas) - 1} steps"
    beside = min(abs(sigmas[j] - sigmas[i]) for j in (i - 1, i + 1) if j >= 0)
    rounded = torch.finfo(dtype).eps * abs(sigmas[i]) if dtype.is_floating_point else 0.0
    if name not in ONE and rounded > beside / 2:
        return f"sampler {name} is not known, and {str(dtype).removeprefix('torch.')} does not tell its sigmas apart"
    if abs(sigma - sigmas[i]) <= max(0.1 * beside, rounded):
        return None
    return f"{here}, where its sigmas are not"


def euler(sigmas: Sequence[float], cfg: Any) -> Corrector | bool:
    """For Euler's method: the state moves by the derivative, which is what is forecast, over the sigmas.

    ``cfg``: the guider's strength; one that is no number, as a guider of somebody's own may have, counts as none.
    """
    strength = float(cfg) if isinstance(cfg, (int, float)) else 1.0
    return Corrector(tuple(sigmas), end=0.0, strength=strength) if all(sigmas[:-1]) else False

"""What is known of ComfyUI's samplers: how often a step calls the network, and whether it adds noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

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
        return f"off: sampler {name} calls the network more than once a step"
    moves = [after - before for before, after in pairwise(sigmas)]
    if moves and min(moves) < 0 < max(moves):
        return "off: the sigmas fall and rise (a restart), and nothing may be forecast across the noise in between"
    if 0 in sigmas[:-1]:
        return "off: sigma 0 stands before the end of the sigmas, and the velocity there is not known"
    return None


def stands_at(sigma: float, sigmas: Sequence[float], i: int) -> bool:
    """Whether the network is called for step ``i``: within a tenth of the distance to the sigmas beside it.

    Samplers move the first sigma of a flow from 1 a little down, where the log of its signal is infinite.
    """
    if not 0 <= i < len(sigmas) - 1:
        return False
    beside = [abs(sigmas[j] - sigmas[i]) for j in (i - 1, i + 1) if j >= 0 and sigmas[j] != sigmas[i]]
    return abs(sigma - sigmas[i]) <= 0.1 * min(beside, default=0.0)

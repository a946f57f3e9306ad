"""The times of a scheduler's grid."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch

from forecache import Corrector

ONE_STEP = (
    "FlowMatchEulerDiscreteScheduler",
)  # x_{i+1} - x_i is a multiple of dt: a step with dt = 0 asks for nothing
DDIM = ("DDIMScheduler", "CogVideoXDDIMScheduler")


def is_flow(scheduler: Any) -> bool:
    """Whether the model predicts a velocity, and ``sigma`` is its time in ``x = (1 - sigma) x0 + sigma noise``."""
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def grid(scheduler: Any) -> list[float]:
    """The N + 1 times of a scheduler whose timesteps are set.

    Sigmas for a flow-matching model. Timesteps otherwise, and one more, as far behind the last as that is behind its
    own: where the loop ends has no timestep.

    A repeated time says that nothing moves there, and is left to Euler's method alone: others, such as correctors, use
    what the network predicts at it. A last time that is repeated is then put where the step before would lead; where
    others are, the times are the steps' numbers.

    Raises:
        ValueError: a scheduler that calls the network more than once a step, or whose timesteps repeat while it does
            not count its steps.
    """
    name, order = type(scheduler).__name__, getattr(scheduler, "order", 1)
    if order != 1:
        raise ValueError(f"scheduler: {name} calls the network {order} times a step")
    steps = numbers(scheduler.timesteps)
    if is_flow(scheduler) and len(getattr(scheduler, "sigmas", ())) == len(steps) + 1:
        times = numbers(scheduler.sigmas)
        if name in ONE_STEP and not scheduler.config.get("stochastic_sampling"):
            return times
        times = times if len(set(times[-2:])) == 2 else [*times[:-1], behind(times[:-1])]
    elif getattr(scheduler, "num_inference_steps", None) == len(steps) - 1:  # the end has a timestep (SCM)
        times = steps
    else:
        times = [*steps, behind(steps)]
    if all(a != b for a, b in pairwise(times)):
        return times
    if not hasattr(scheduler, "step_index"):
        raise ValueError(f"scheduler: {name} repeats timesteps, its steps cannot be told apart: {steps}")
    return [float(i) for i in range(len(times))]


def corrector(scheduler: Any, first: int, last: int) -> bool | Corrector:
    """For the steps ``first .. last - 1`` of a scheduler whose state moves by what the network puts out, or by a sum of
    that and itself: Euler's method on a flow, and DDIM.

    A flow's sigmas above 1 are none: such a pipeline makes something else of the output before the step, as that of
    Cosmos Predict2 does.
    """
    config = scheduler.config
    if type(scheduler).__name__ in ONE_STEP and not config.get("stochastic_sampling"):
        sigmas = numbers(scheduler.sigmas)
        places, rates = (sigmas if round(max(sigmas), 3) <= 1 else []), None
    else:
        places, rates = ddim(scheduler)
    if len(places) != len(scheduler.timesteps) + 1 or not all(map(math.isfinite, places[first + 1 :])):
        return False
    return Corrector(tuple(places[first : last + 1]), end=places[-1], rates=rates and rates[first:last])


def ddim(scheduler: Any) -> tuple[list[float], tuple[tuple[float, float], ...] | None]:
    """Positions and rates of DDIM without clipping: ``x / alpha`` moves by the differences of ``sigma / alpha`` times
    eps. The positions are infinite where nothing is left of the data; there are none for another scheduler.
    """
    name, config = type(scheduler).__name__, scheduler.config
    clips = config.get("thresholding") or (config.get("clip_sample") and name == "DDIMScheduler")
    if name not in DDIM or clips or not scheduler.num_inference_steps:
        return [], None
    kept = numbers(scheduler.alphas_cumprod)
    places = [int(t) for t in numbers(scheduler.timesteps)]
    after = places[-1] - config.num_train_timesteps // scheduler.num_inference_steps  # as its ``step`` has it
    shares = [*(kept[t] for t in places), kept[after] if after >= 0 else float(scheduler.final_alpha_cumprod)]
    levels = [(math.sqrt(share), math.sqrt(1 - share)) for share in shares]
    form, rates = config.get("prediction_type"), None
    if form == "v_prediction":  # v = alpha eps - sigma x0
        rates = tuple((sigma, alpha) for alpha, sigma in levels[:-1])
    elif form == "sample" and all(sigma for _, sigma in levels[:-1]):
        rates = tuple((1 / sigma, -alpha / sigma) for alpha, sigma in levels[:-1])
    elif form != "epsilon":
        return [], None
    return [sigma / alpha if alpha else math.inf for alpha, sigma in levels], rates


def behind(times: list[float]) -> float:
    """As far behind the last time as that is behind its own."""
    last, before = times[-1], (times[-2:-1] or [times[-1] + 1])[0]
    return 2 * last - before


def numbers(values: Any) -> list[float]:
    """Of a tensor on any device, read at once: each number by itself would wait for a GPU."""
    return [float(value) for value in torch.as_tensor(values).cpu().tolist()]

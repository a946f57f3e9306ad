"""ComfyUI's contract around a sampling run, as far as the nodes meet it. Written for the tests.

A patcher with options, wrappers and attachments that clones copy; weights that are there only while a run goes on; a
guider that makes options of its own for each run and labels every conditioning entry; one batch for several entries or
one for each; entries with an area or an interval, where the other condition gets a copy of an area, label and all.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import torch

from comfyui_tiny import Network

KINDS = ("FLOW", "EPS", "V_PREDICTION")
together: list[Callable[[], bool]] = [lambda: True]  # whether entries fit into one batch now


class Executor:
    """Calls the first of some functions, which calls the next, and so on to the original."""

    def __init__(self, original: Any, owner: Any, wrappers: list[Any]) -> None:
        self.original, self.class_obj, self.wrappers = original, owner, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](Executor(self.original, self.class_obj, self.wrappers[1:]), *args, **kwargs)


def around(kind: str, original: Any, owner: Any, transformer_options: Mapping[str, Any]) -> Executor:
    by_key = transformer_options.get("wrappers", {}).get(kind, {})
    return Executor(original, owner, [each for functions in by_key.values() for each in functions])


def copied(options: Any) -> Any:
    if isinstance(options, dict):
        return {name: copied(value) for name, value in options.items()}
    return list(options) if isinstance(options, list) else options


class Model:
    """``apply_model``: from the sampler's state and sigma to the denoised state."""

    def __init__(self, kind: str, network: Network) -> None:
        self.kind, self.diffusion_model = kind, network

    def apply_model(self, x: Any, t: Any, c_crossattn: Any, control: Any, transformer_options: Any) -> Any:
        run = around("apply_model", self._apply, self, transformer_options)
        return run(x, t, None, c_crossattn, control, transformer_options)

    def _apply(self, x: Any, t: Any, c_concat: Any, context: Any, control: Any, options: Any, **kwargs: Any) -> Any:
        sigma = t.reshape(-1, *[1] * (x.ndim - 1))
        scale = 1 if self.kind == "FLOW" else (sigma**2 + 1) ** 0.5
        out = self.diffusion_model(x / scale, t, context, control, options, **kwargs).float()
        return x / scale**2 - out * sigma / scale if self.kind == "V_PREDICTION" else x - out * sigma


class Patcher:
    """A ``MODEL``."""

    def __init__(self, model: Model) -> None:
        self.model, self.model_options = model, {"transformer_options": {}}
        self.wrappers: dict[str, dict[Any, list[Any]]] = {}
        self.attachments: dict[str, Any] = {}

    def clone(self) -> Patcher:
        new = Patcher(self.model)
        new.model_options = copy.deepcopy(self.model_options)
        new.wrappers = copied(self.wrappers)
        for key, attached in self.attachments.items():
            of_clone = getattr(attached, "on_model_patcher_clone", lambda attached=attached: attached)
            new.attachments[key] = of_clone()
        return new

    def add_wrapper_with_key(self, kind: str, key: Any, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: Any) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def set_attachments(self, key: str, attachment: Any) -> None:
        self.attachments[key] = attachment

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def remove_attachments(self, key: str) -> None:
        self.attachments.pop(key, None)

    def model_dtype(self) -> torch.dtype:
        return torch.float32


class Cond:
    """A tensor that the network is called with."""

    def __init__(self, cond: Any) -> None:
        self.cond = cond


class Hooks:
    """A LoRA of a condition: its strength by share of the run, from a list of pairs."""

    def __init__(self, *keyframes: tuple[float, float]) -> None:
        self.hooks, self.hook_ref, self.keyframes, self.strength = [self], object(), keyframes, 1.0

    def prepare(self, sigma: float) -> None:
        self.strength = [strength for share, strength in self.keyframes if sigma <= 1 - share][-1]


hooks = Hooks


def resolved(positive: list[Any], negative: list[Any], sigmas: Any) -> list[list[dict[str, Any]]]:
    """The entries of a run: labelled; shares of the run as sigmas; each area in both conditions."""
    conds = [
        [{**each, "model_conds": {"c_crossattn": Cond(context)}, "uuid": uuid.uuid4()} for context, each in c]
        for c in (positive, negative)
    ]
    for cond in conds:
        for each in cond:
            each["from"] = sigmas.max() * (1 - each.pop("start_percent", 0.0))
            each["to"] = sigmas.max() * (1 - each.pop("end_percent", 1.0))
    for mine, other in ((conds[0], conds[1]), (conds[1], conds[0])):
        for each in [each for each in mine if "area" in each]:
            if not any(theirs.get("area") == each["area"] for theirs in other):
                other.append({**each, "model_conds": other[0]["model_conds"]})
    return conds


class Control:
    """A ControlNet from one share of a run to another."""

    previous_controlnet = None

    def __init__(self, start: float, end: float) -> None:
        self.timestep_range, self.asked = (1 - start, 1 - end), 0

    def get_control(self, x: Any, t: Any, *_: Any) -> Any:
        self.asked += 1
        return {} if self.timestep_range[1] <= t[0] <= self.timestep_range[0] else None


control = Control


def calc_cond_batch(model: Model, conds: list[Any], x: Any, timestep: Any, model_options: Any) -> list[Any]:
    run = around("calc_cond_batch", _calc_cond_batch, None, model_options["transformer_options"])
    return run(model, conds, x, timestep, model_options)


def _calc_cond_batch(model: Model, conds: list[Any], x: Any, timestep: Any, model_options: Any) -> list[Any]:
    sums, weights = [torch.zeros_like(x) for _ in conds], [torch.full_like(x, 1e-37) for _ in conds]
    left = []
    for k, cond in enumerate(conds):
        for each in cond or ():
            if each["to"] <= timestep[0] <= each["from"]:
                h, w, top, side = each.get("area", (*x.shape[-2:], 0, 0))
                left.append((k, each, (..., slice(top, top + h), slice(side, side + w))))
                if each.get("hooks"):
                    each["hooks"].prepare(float(timestep[0]))
    while left:
        control, hooked, where = left[0][1].get("control"), left[0][1].get("hooks"), left[0][2]
        fit = [
            each for each in left
            if each[1].get("control") is control and each[1].get("hooks") is hooked
            and x[each[2]].shape == x[where].shape
        ][::-1]  # fmt: skip
        batch = fit if together[0]() else fit[:1]
        left = [each for each in left if not any(each is other for other in batch)]
        options = copied(model_options["transformer_options"])
        options["cond_or_uncond"] = [k for k, _, _ in batch]
        options["uuids"] = [each["uuid"] for _, each, _ in batch]
        options["sigmas"] = timestep
        inputs = torch.cat([x[where] for _, _, where in batch])
        context = torch.cat([each["model_conds"]["c_crossattn"].cond.expand(len(x), -1, -1) for _, each, _ in batch])
        times = torch.cat([timestep] * len(batch))
        hint = None if control is None else control.get_control(inputs, times, {}, len(batch), options)
        given = {"c_crossattn": context, "control": hint, "transformer_options": options}
        model.diffusion_model.lora = 0.0 if hooked is None else hooked.strength
        wrapper = model_options.get("model_function_wrapper") or (
            lambda call, at: call(at["input"], at["timestep"], **at["c"])
        )
        out = wrapper(model.apply_model, {"input": inputs, "timestep": times, "c": given})
        for (k, _, where), each in zip(batch, out.chunk(len(batch)), strict=True):
            sums[k][where] += each
            weights[k][where] += 1
    return [total / weight for total, weight in zip(sums, weights, strict=True)]


class Guider:
    """Classifier-free guidance around a patcher, for one run."""

    def __init__(self, patcher: Patcher, positive: Any, negative: Any, cfg: float) -> None:
        self.model_patcher, self.cfg, self.given = patcher, cfg, (positive, negative)
        self.model_options = patcher.model_options

    def __call__(self, x: Any, timestep: Any, model_options: Any, seed: Any = None) -> Any:
        options = self.model_options["transformer_options"]
        return around("predict_noise", self.predict, self, options)(x, timestep, model_options, seed)

    def predict(self, x: Any, timestep: Any, model_options: Any, seed: Any) -> Any:
        conds = [self.conds[0], None if self.cfg == 1 else self.conds[1]]
        cond, uncond = calc_cond_batch(self.model_patcher.model, conds, x, timestep, model_options)
        for function in model_options.get("sampler_post_cfg_function", []):
            function({"model": self.model_patcher.model, "cond": conds[0], "input": x, "sigma": timestep,
                      "model_options": model_options})  # fmt: skip
        return cond if self.cfg == 1 else uncond + self.cfg * (cond - uncond)

    def sample(self, noise: Any, sampler: Any, sigmas: Any, callback: Any) -> Any:
        self.conds = resolved(*self.given, sigmas)
        before, network = self.model_options, self.model_patcher.model.diffusion_model
        self.model_options = copied(before)
        self.model_options["transformer_options"]["wrappers"] = copied(self.model_patcher.wrappers)
        network.loaded = True
        try:
            options = copied(self.model_options)
            options["transformer_options"]["sample_sigmas"] = sigmas
            run = around("sampler_sample", sampler.sample, sampler, options["transformer_options"])
            return run(self, sigmas, {"model_options": options, "seed": 0}, callback, noise)
        finally:
            network.loaded = False
            self.model_options = before


class Sampler:
    """Holds a sampler's function."""

    def __init__(self, function: Any) -> None:
        self.sampler_function = function

    def sample(self, guider: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any) -> Any:
        def asked(x: Any, sigma: Any, **_: Any) -> Any:
            return guider(x, sigma * x.new_ones(len(x)), extra_args["model_options"])

        return self.sampler_function(asked, noise * sigmas[0], sigmas, extra_args=extra_args, callback=callback)


def sample_euler(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any) -> Any:
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        callback({"i": i, "x": x, "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def sample_heun(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any) -> Any:
    for i in range(len(sigmas) - 1):
        d = (x - model(x, sigmas[i])) / sigmas[i]
        callback({"i": i, "x": x, "denoised": x - sigmas[i] * d})
        dt, after = sigmas[i + 1] - sigmas[i], x + d * (sigmas[i + 1] - sigmas[i])
        x = after if sigmas[i + 1] == 0 else x + (d + (after - model(after, sigmas[i + 1])) / sigmas[i + 1]) / 2 * dt
    return x


def model(kind: str = "FLOW", **options: Any) -> tuple[Patcher, Network]:
    """A patcher and its network."""
    network = Network(**options)
    return Patcher(Model(kind, network)), network


def sample(
    patcher: Any, noise: Any, positive: Any, negative: Any, *, steps: int = 20, cfg: float = 4.0,
    sampler: Any = "euler", denoise: float = 1.0, callback: Any = None, sigmas: Any = None,
) -> Any:  # fmt: skip
    """One run from ``noise``; entries are pairs of a context and options."""
    grid = torch.linspace(1.0, 0.0, round(steps / denoise) + 1)[-steps - 1 :]
    if patcher.model.kind != "FLOW":
        grid = grid**3 * 14.6
    grid = grid if sigmas is None else torch.tensor(sigmas)
    function = {"euler": sample_euler, "heun": sample_heun}.get(sampler, sampler)
    told = callback or (lambda i: None)
    return Guider(patcher, positive, negative, cfg).sample(noise, Sampler(function), grid, lambda at: told(at["i"]))

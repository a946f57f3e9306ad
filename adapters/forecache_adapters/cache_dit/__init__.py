"""cache-dit >= 1.5: forecasts inside DBCache, for every model that cache-dit knows, without a patch.

::

    from cache_dit import DBCacheConfig, steps_mask
    from forecache_adapters import cache_dit as adapter

    cache_config = DBCacheConfig(num_inference_steps=28, steps_computation_mask=steps_mask(total_steps=28))
    handle = adapter.enable(pipe, cache_config)  # or a transformer by itself
    image = pipe(prompt).images[0]
    print(handle.shares)  # by context and stream: which rule served which share of the skipped steps
    adapter.disable(pipe)

cache-dit decides which steps compute and keeps its first and last blocks computed; what is forecast in between is the
residual of the middle blocks (``calibrator_cache_type="residual"``) or their output (``"hidden_states"``), of the image
and of the text stream, each branch of a separate guidance by itself. ``cache_dit.summary`` names the rule.

Each list of blocks may have its own rule: ``options={"params_modifiers": [ParamsModifier(calibrator_config=
Config(basis="linear"), cache_config=...), ...]}``. Where two transformers share a run, as in Wan 2.2, each follows the
mask from its own first step on.

Real exponentials do not follow an oscillation. ``basis=Auto((Linear(1), Linear(2), Exponential()))``
(:mod:`forecache.rules`) lets every computed step decide whether they or a guarded line serve the steps after it.

A run that works without a cache works with this one:

- What is enabled is one object. A copy of it, however made, is not enabled, and another pipeline with its transformer
  runs that without a cache. Another cache on it is refused by name: cache-dit's own, those of diffusers, those of the
  other adapters here, before and after.
- A history serves calls of one kind: where batch, shapes, dtype, prompt or the set of arguments change within a run,
  the branch is computed and begins a history of its own. So it is after a value that is not finite.
- Where calls cannot be told apart, the rest of the run is computed, with a warning and a note in ``handle.trace``: two
  calls at one timestep without ``enable_separate_cfg`` (FLUX with ``true_cfg_scale``), three with it, tiles, a
  scheduler that calls the network twice a step, more steps than ``num_inference_steps``.
- cache-dit runs a list of blocks as if it were one, and some models' arguments have a part for each block, such as the
  residuals of a ControlNet. Whether they arrive is compared once; if not, calls with them are computed without it.

Right here, whatever the installed cache-dit does (1.5.3 and before):

- A transformer without its pipeline begins its second generation one call late, on the context of the first. Here the
  context is renewed before the first call of a generation, after ``num_inference_steps`` and where the timesteps turn
  back. Only a run that begins late, just behind the timestep at which another was broken off, needs
  ``cache_dit.refresh_context``.
- With separate guidance the parity of the call counter names the branch, and one call less swaps the branches. Here a
  call that is missing, as outside a guidance interval, is counted when the next step begins.
- Before 1.5.2 it takes one transformer without a pipeline a process, even after ``disable``; the next is refused.
- Its DMD needs 4 evenly spaced computed steps and else serves a line of about twice the slope; its TaylorSeer keeps the
  live tensor. Here the default rule takes anchors at any spacing, and snapshots are copies.
"""

from __future__ import annotations

from .calibrator import Config, Forecasts
from .enable import disable, enable, enabled
from .handle import Handle

__all__ = ["Config", "Forecasts", "Handle", "disable", "enable", "enabled"]

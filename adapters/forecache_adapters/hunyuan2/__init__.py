"""Hunyuan3D-2, shape generation: 2.0, mini and multiview, each also as -fast and -turbo; one pipeline class serves all.

Needs the patch: ``forecache patch apply hunyuan2 CHECKOUT`` (newest commit) or, for the files of ``hy3dgen`` 2.0.2,
``forecache patch apply hunyuan2-released CHECKOUT``.

::

    from forecache_adapters import hunyuan2

    handle = hunyuan2.enable(pipe, basis="dmd", interval=5, warmup=4)
    mesh = pipe(image="chair.png")[0]
    print(handle.trace.computed)
    hunyuan2.disable(pipe)

- 2.0, mini, multiview: the last step has dt = 0 and never calls the network.
- -fast (guidance is an input of the network): as above, with half the batch. A plan does not know that guidance.
- -turbo (5 steps, consistency scheduler): the cache switches itself off; ``handle.trace.notes`` says why. With
  ``few_steps=True`` it stays on, and no step is left out: none has dt = 0.
"""

from __future__ import annotations

from ..attach import functions
from ..families.hunyuan import Adapter, Handle

__all__ = ["Handle", "disable", "enable", "enabled", "key"]

_adapter = Adapter("hunyuan2", ("hunyuan2", "hunyuan2-released"))
enable, enabled, disable = functions(_adapter.make_handle)
key = _adapter.key

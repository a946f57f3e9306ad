"""Hunyuan3D-2.1, shape generation. Needs the patch: ``forecache patch apply hunyuan21 CHECKOUT``.

::

    from forecache_adapters import hunyuan21

    handle = hunyuan21.enable(pipe, basis="dmd", interval=5, warmup=4)
    mesh = pipe(image="chair.png")[0]
    print(handle.trace.computed)
    hunyuan21.disable(pipe)

The pipeline's last step has dt = 0 and never calls the network.
"""

from __future__ import annotations

from ..attach import functions
from ..families.hunyuan import Adapter, Handle

__all__ = ["Handle", "disable", "enable", "enabled", "key"]

_adapter = Adapter("hunyuan21", ("hunyuan21",))
enable, enabled, disable = functions(_adapter.make_handle)
key = _adapter.key

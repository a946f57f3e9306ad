"""Forecast in a sampler of your own with three calls: a small super-resolution DiT, trained here in seconds.

``python docs/examples/superresolution.py``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forecache import Forecaster

SIZE, LOW, PATCH, WIDTH = 16, 4, 4, 64


def pictures(n: int, seed: int) -> Tensor:
    """``[n, 1, 16, 16]``: two soft discs each."""
    random = torch.Generator().manual_seed(seed)
    at = torch.linspace(-1, 1, SIZE)
    centre = torch.rand(n, 2, 2, 1, 1, generator=random) * 1.2 - 0.6
    radius = torch.rand(n, 2, 1, 1, generator=random) * 0.3 + 0.2
    distance = ((at[:, None] - centre[:, :, 0]) ** 2 + (at[None, :] - centre[:, :, 1]) ** 2).sqrt()
    return (2 * torch.sigmoid(12 * (radius - distance)).amax(1, keepdim=True) - 1).float()


def shrink(picture: Tensor) -> Tensor:
    """The low-resolution condition, ``[n, 1, 4, 4]``."""
    return nn.functional.avg_pool2d(picture, SIZE // LOW)


class Block(nn.Module):
    """Attention and MLP, modulated by the time (adaLN)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.modulation = nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x``: tokens ``[n, 16, WIDTH]``; ``time``: ``[n, 1, WIDTH]``."""
        a, b, c, d = self.modulation(time).chunk(4, dim=-1)
        y = nn.functional.layer_norm(x, (WIDTH,)) * (1 + a) + b
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(nn.functional.layer_norm(x, (WIDTH,)) * (1 + c) + d)
        return out


class SuperResolution(nn.Module):
    """Velocity of the flow from noise (t = 0) to a picture (t = 1), given the small picture; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, WIDTH, PATCH, PATCH)
        self.place = nn.Parameter(0.1 * torch.randn(1, (SIZE // PATCH) ** 2, WIDTH))
        self.time = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.leave = nn.Linear(WIDTH, PATCH * PATCH)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, low: Tensor) -> Tensor:
        """``x [n, 1, 16, 16]``, ``t [n]``, ``low [n, 1, 4, 4]``."""
        self.calls += 1
        wide = nn.functional.interpolate(low, size=(SIZE, SIZE), mode="bilinear")
        tokens = self.enter(torch.cat([x, wide], 1)).flatten(2).transpose(1, 2) + self.place
        phase = t[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        time = self.time(torch.cat([phase.sin(), phase.cos()], 1))[:, None]
        for block in self.blocks:
            tokens = block(tokens, time)
        out: Tensor = nn.functional.pixel_shuffle(
            self.leave(tokens).transpose(1, 2).unflatten(2, (SIZE // PATCH, -1)), PATCH
        )
        return out


def trained(iterations: int = 250, seed: int = 0) -> SuperResolution:
    """The network after flow matching on random pictures: ``v = picture - noise``."""
    torch.manual_seed(seed)
    network = SuperResolution()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for k in range(iterations):
        picture = pictures(16, 1000 + k)
        noise, t = torch.randn_like(picture), torch.rand(len(picture))
        mixed = torch.lerp(noise, picture, t[:, None, None, None])
        loss = (network(mixed, t, shrink(picture)) - (picture - noise)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.calls = 0
    return network.eval()


@torch.no_grad()
def enlarge(
    network: SuperResolution, low: Tensor, noise: Tensor, steps: int = 40, cache: Forecaster | None = None
) -> Tensor:
    """Euler's method; with ``cache`` the network is called only where it says so."""
    x, grid = noise, torch.linspace(0, 1, steps + 1).tolist()
    for i in range(steps):
        t = torch.full((len(x),), grid[i])
        if cache is None:
            v = network(x, t, low)
        elif cache.needs_compute(i):
            v = cache.observe(i, network(x, t, low))
        else:
            v = cache.forecast(i)
        x = x + (grid[i + 1] - grid[i]) * v
    return x


def drift(x: Tensor, reference: Tensor) -> float:
    """Median over the pictures of ``||x - reference|| / ||reference||``."""
    return float(((x - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).median())


def main(steps: int = 40, calls: int = 10, n: int = 16) -> dict[str, tuple[int, float]]:
    """Calls and drift of an uncached run, of forecasts, and of Euler's method with as many steps."""
    torch.set_num_threads(1)
    network, noise = trained(), torch.randn(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    low = shrink(pictures(n, seed=1))
    grid = torch.linspace(0, 1, steps + 1).tolist()
    rows: dict[str, tuple[int, float]] = {}
    reference = enlarge(network, low, noise, steps)
    rows["uncached"] = network.calls, 0.0
    for name in ("auto", "linear", "reuse"):
        network.calls = 0
        with Forecaster(name, times=grid, calls=calls) as cache:
            x = enlarge(network, low, noise, steps, cache)
        rows[f"forecasts, {name}"] = network.calls, drift(x, reference)
    network.calls = 0
    x = enlarge(network, low, noise, calls)
    rows[f"Euler, {calls} steps"] = network.calls, drift(x, reference)
    return rows


if __name__ == "__main__":
    for row, (used, moved) in main().items():
        print(f"{row:22}{used:4} network calls   drift {moved:.4f}")

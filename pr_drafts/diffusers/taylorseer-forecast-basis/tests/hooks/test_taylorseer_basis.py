# Copyright 2026 HuggingFace Inc.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import pytest
import torch

from diffusers import FluxTransformer2DModel, TaylorSeerCacheConfig
from diffusers.hooks import snapshot_forecast
from diffusers.hooks.taylorseer_cache import DMDState, TaylorSeerState


RECORDED = (4, 9, 14, 19)
ITEM_A, ITEM_B = 1, 7


def mixture(step, item=ITEM_A):
    """A constant and two decaying exponentials, `[1, 16]`; another one for each item."""
    a, b, c = torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(item), dtype=torch.float64).unbind()
    return (a + b * 0.93 ** (step / (1 + item / 10)) + c * 0.8**step).float()


def recorded(state, trajectory, steps=RECORDED):
    for step in steps:
        state.current_step = step
        state.update((trajectory(step),))
    return state


def predict(state, step):
    state.current_step = step
    return state.predict()[0]


def relative(a, b):
    return float((a - b).norm() / b.norm())


class TestHermite:
    def test_order_one_is_the_taylor_expansion_at_sigma_sqrt_half(self):
        states = [
            TaylorSeerState(torch.float32, max_order=1),
            TaylorSeerState(torch.float32, max_order=1, hermite_sigma=0.5**0.5),
        ]
        taylor, hermite = (predict(recorded(state, mixture), 22) for state in states)
        torch.testing.assert_close(hermite, taylor)

    def test_second_order_has_the_published_coefficients(self):
        sigma, offset = 0.5, 3
        state = recorded(TaylorSeerState(torch.float32, max_order=2, hermite_sigma=sigma), mixture)
        value, slope, curvature = state.taylor_factors[0].values()
        expected = value + slope * 2 * sigma**2 * offset + curvature * sigma**2 * (4 * (sigma * offset) ** 2 - 2) / 2
        torch.testing.assert_close(predict(state, RECORDED[-1] + offset), expected)


class TestDMD:
    @pytest.mark.parametrize("offset", [1, 2, 4, 5])
    def test_exact_on_a_constant_and_exponentials(self, offset):
        steps = (*RECORDED, 24, 29)
        dmd = recorded(DMDState(torch.float32), mixture, steps)
        taylor = recorded(TaylorSeerState(torch.float32, max_order=1), mixture, steps)
        truth = mixture(29 + offset)
        assert relative(predict(dmd, 29 + offset), truth) < 0.1 * relative(predict(taylor, 29 + offset), truth)

    @pytest.mark.parametrize("steps", [RECORDED, (0, 1, 2, 4, 9, 14)])
    def test_exact_on_a_line_at_any_spacing(self, steps):
        start, slope = torch.randn(2, 1, 16).unbind()
        state = recorded(DMDState(torch.float32), lambda step: start + slope * step, steps)
        assert relative(predict(state, steps[-1] + 3), start + slope * (steps[-1] + 3)) < 1e-5

    def test_uneven_snapshots_are_not_fitted(self, monkeypatch):
        monkeypatch.setattr(snapshot_forecast, "fit_dmd", None)  # calling it fails
        state = recorded(DMDState(torch.float32), mixture, (0, 1, 2, 4, 9, 14))
        line = mixture(14) + (mixture(14) - mixture(9)) * 2 / 5
        torch.testing.assert_close(predict(state, 16), line)

    def test_an_item_does_not_depend_on_its_neighbour(self):
        def beside(item):
            return lambda step: torch.cat((mixture(step), mixture(step, item)))

        alone = predict(recorded(DMDState(torch.float32), mixture), 22)
        for item in (ITEM_A, ITEM_B):
            both = predict(recorded(DMDState(torch.float32), beside(item)), 22)
            torch.testing.assert_close(both[:1], alone)
        torch.testing.assert_close(
            both[1:], predict(recorded(DMDState(torch.float32), lambda s: mixture(s, item)), 22)
        )

    def test_the_fit_happens_once_per_window(self, monkeypatch):
        fits, fit_dmd = [], snapshot_forecast.fit_dmd
        monkeypatch.setattr(snapshot_forecast, "fit_dmd", lambda *args: fits.append(0) or fit_dmd(*args))
        state = recorded(DMDState(torch.float32), mixture)
        for step in (20, 21, 22, 23):
            predict(state, step)
        assert len(fits) == 1
        predict(recorded(state, mixture, (24,)), 25)
        assert len(fits) == 2

    def test_a_change_of_shape_starts_again(self):
        state = recorded(DMDState(torch.float32), mixture)
        longer = torch.ones(1, 20)
        predicted = predict(recorded(state, lambda step: longer, (24,)), 25)
        assert torch.equal(predicted, longer)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_memory_of_an_output_may_be_reused(self, dtype):
        state, buffer = DMDState(dtype), torch.ones(1, 4, dtype=dtype)
        state.current_step = 0
        state.update((buffer,))
        buffer.zero_()
        assert torch.equal(predict(state, 1), torch.ones(1, 4, dtype=dtype))

    def test_values_that_are_not_finite_are_not_fitted(self):
        state = recorded(DMDState(torch.float32), mixture, RECORDED[:-1])
        recorded(state, lambda step: torch.full((1, 16), float("inf")), RECORDED[-1:])
        assert not torch.isfinite(predict(state, 21)).all()  # as without a fit: nothing is hidden, nothing raises


@pytest.mark.parametrize(
    "wrong", [{"basis": "fourier"}, {"hermite_sigma": 0.0}, {"hermite_sigma": 1.0}, {"history_size": 3}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TaylorSeerCacheConfig(**wrong)


@pytest.mark.parametrize("basis", ["hermite", "dmd"])
@pytest.mark.parametrize("lite", [True, False])
@torch.no_grad()
def test_model(basis, lite):
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    calls = []
    model.transformer_blocks[0].ff.register_forward_hook(lambda *_: calls.append(0))
    inputs = {
        "hidden_states": torch.randn(2, 16, 4),
        "encoder_hidden_states": torch.randn(2, 8, 32),
        "pooled_projections": torch.randn(2, 32),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(8, 3),
    }

    def run():
        calls.clear()
        with model.cache_context("cond"):
            outputs = [model(**inputs, timestep=torch.full((2,), 1 - i / 400)).sample for i in range(20)]
        model._reset_stateful_cache()
        return torch.stack(outputs), len(calls)

    def uncached():
        return torch.stack([model(**inputs, timestep=torch.full((2,), 1 - i / 400)).sample for i in range(20)])

    before = uncached()
    model.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=3,
            disable_cache_before_step=4,
            basis=basis,
            use_lite_mode=lite,
            taylor_factors_dtype=torch.float32,
        )
    )
    first, computed = run()
    second, _ = run()
    model.disable_cache()

    assert torch.equal(first, second)  # a run leaves nothing behind
    assert not torch.equal(first, before) and relative(first, before) < 0.05
    assert computed == (9 if lite else 20)  # lite: 0 to 3, then 5, 8, 11, 14, 17
    assert torch.equal(uncached(), before)

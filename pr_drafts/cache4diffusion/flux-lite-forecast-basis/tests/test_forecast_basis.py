"""Needs torch and diffusers, no weights, no GPU."""
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FLUX = Path(__file__).resolve().parents[1] / 'flux'
sys.path[:0] = [str(FLUX), str(FLUX / 'taylorseer_flux')]

import forecast_basis  # noqa: E402
import forwards  # noqa: E402
from cache_functions import cache_init  # noqa: E402


def utils(folder):
    """`taylorseer_utils` of TaylorSeer or `taylor_utils` of ClusCa, without importing the package around it."""
    spec = importlib.util.spec_from_file_location(folder.name, folder / '__init__.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BOTH = [utils(FLUX / 'taylorseer_flux/taylorseer_utils'), utils(FLUX / 'clusca-flux/flux/taylor_utils')]
STEPS = (0, 1, 2, 6, 10, 14, 18)


def mixture(step, seed=1):
    a, b, c = torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    return (a + b * 0.93**step + c * 0.85**step).float()


def run(module, basis, trajectory, ask, max_order=1):
    """Record `trajectory` on STEPS as the forwards do; forecast the steps `ask`."""
    cache_dic = {
        'cache': {-1: {'single_stream': {0: {}}}}, 'taylor_cache': True, 'max_order': max_order, 'first_enhance': 3,
        'forecast_basis': basis,
    }
    current = {'stream': 'single_stream', 'layer': 0, 'module': 'total', 'activated_steps': [0]}
    for step in STEPS:
        current['step'] = step
        current['activated_steps'].append(step)
        module.taylor_cache_init(cache_dic, current)
        module.derivative_approximation(cache_dic, current, trajectory(step))
    found = []
    for step in ask:
        current['step'] = step
        found.append(module.taylor_formula(cache_dic, current))
    return found, cache_dic['cache'][-1]['single_stream'][0]['total']


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize('module', BOTH)
def test_taylor_is_what_it_was(module):
    (found,), entry = run(module, 'taylor', mixture, [20], max_order=1)
    torch.testing.assert_close(found, mixture(18) + (mixture(18) - mixture(14)) / 4 * 2)
    assert list(entry) == [0, 1]


@pytest.mark.parametrize('module', BOTH)
def test_hermite_halves_the_slope_at_order_one(module):
    (found,), _ = run(module, 'hermite', mixture, [20])
    torch.testing.assert_close(found, mixture(18) + (mixture(18) - mixture(14)) / 4 * 2 * 0.5)


@pytest.mark.parametrize('module', BOTH)
def test_dmd_follows_exponentials(module):
    dmd, _ = run(module, 'dmd', mixture, [19, 20, 21])
    taylor, _ = run(module, 'taylor', mixture, [19, 20, 21])
    for step, a, b in zip([19, 20, 21], dmd, taylor):
        assert relative(a, mixture(step)) < 0.1 * relative(b, mixture(step))


@pytest.mark.parametrize('module', BOTH)
def test_dmd_items_do_not_mix(module):
    alone = run(module, 'dmd', mixture, [20])[0][0]
    for seed in (1, 7):
        both = run(module, 'dmd', lambda step: torch.cat((mixture(step), mixture(step, seed))), [20])[0][0]
        torch.testing.assert_close(both[:1], alone)


def test_clusca_keeps_the_fresh_tokens_that_it_writes():
    clusca = BOTH[1]
    _, entry = run(clusca, 'dmd', mixture, [20])
    before = clusca.taylor_formula_for_compile(entry, 2)
    fresh = torch.full((1, 1), 5.0)
    shift = fresh - entry[0][:, :1]
    entry[0].scatter_(1, torch.zeros(1, 1, dtype=torch.long), fresh)
    after = clusca.taylor_formula_for_compile(entry, 2)
    torch.testing.assert_close(after[:, :1], before[:, :1] + shift)
    assert torch.equal(after[:, 1:], before[:, 1:])


def test_an_unknown_basis_is_named():
    with pytest.raises(ValueError, match='fourier'):
        run(BOTH[0], 'fourier', mixture, [20])


@pytest.mark.parametrize('basis', ['taylor', 'hermite', 'dmd'])
@torch.no_grad()
def test_lite_runs_the_blocks_on_full_steps_only(basis, monkeypatch):
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    ).eval()
    steps, calls, fits, fit_dmd = 28, [], [], forecast_basis.fit_dmd
    model.transformer_blocks[0].ff.register_forward_hook(lambda *_: calls.append(0))
    monkeypatch.setattr(forecast_basis, 'fit_dmd', lambda *args: fits.append(0) or fit_dmd(*args))
    inputs = {
        'hidden_states': torch.randn(1, 16, 4), 'encoder_hidden_states': torch.randn(1, 8, 32),
        'pooled_projections': torch.randn(1, 32), 'img_ids': torch.zeros(16, 3), 'txt_ids': torch.zeros(8, 3),
    }

    def denoise():
        kwargs = {}
        return torch.stack([
            model(**inputs, timestep=torch.full((1,), 1 - i / 800), joint_attention_kwargs=kwargs).sample
            for i in range(steps)
        ])

    reference = denoise()
    calls.clear()
    monkeypatch.setattr(FluxTransformer2DModel, 'forward', FluxTransformer2DModel.forward)  # put back at the end
    for block in (model.transformer_blocks[0], model.single_transformer_blocks[0]):
        monkeypatch.setattr(type(block), 'forward', None)  # as the full version leaves them: with other forwards
    forwards.use_lite_forward(model)
    monkeypatch.setattr(FluxTransformer2DModel, 'num_steps', steps, raising=False)
    monkeypatch.setattr(FluxTransformer2DModel, 'forecast_basis', basis, raising=False)
    cached = denoise()

    schedule = [0, 1, 2, 8, 14, 20, 26]  # first_enhance 3, threshold 6
    assert len(calls) == len(schedule)
    assert all(torch.equal(cached[i], reference[i]) for i in schedule)
    assert 0 < relative(cached, reference) < 0.05
    assert len(fits) == (2 if basis == 'dmd' else 0)  # once per window, from the fourth evenly spaced feature on
    assert torch.equal(cached, denoise())
    assert cache_init(model)[0]['forecast_basis'] == basis

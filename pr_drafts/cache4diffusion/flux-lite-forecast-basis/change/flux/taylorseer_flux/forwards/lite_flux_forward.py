from typing import Any, Dict, Optional, Union

import torch
from diffusers.models import FluxTransformer2DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from cache_functions import cache_init, cal_type
from taylorseer_utils import derivative_approximation, taylor_cache_init, taylor_formula

full_forward = FluxTransformer2DModel.forward
block_forwards = {block: block.forward for block in (FluxTransformerBlock, FluxSingleTransformerBlock)}


def use_lite_forward(transformer: FluxTransformer2DModel) -> None:
    """Forecast the last block's output only; the blocks run as diffusers has them."""
    transformer.__class__.forward = taylorseer_lite_flux_forward
    for block, forward in block_forwards.items():
        block.forward = forward


def taylorseer_lite_flux_forward(
    self: FluxTransformer2DModel,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor = None,
    pooled_projections: torch.Tensor = None,
    timestep: torch.LongTensor = None,
    img_ids: torch.Tensor = None,
    txt_ids: torch.Tensor = None,
    guidance: torch.Tensor = None,
    joint_attention_kwargs: Optional[Dict[str, Any]] = None,
    return_dict: bool = True,
    **kwargs,
) -> Union[torch.Tensor, Transformer2DModelOutput]:
    """
    TaylorSeer-Lite: only the output of the last block is forecast, one stream for the whole model. The final norm and
    projection run on every step, so their modulation by the timestep is exact. The blocks keep their own forwards.

    `joint_attention_kwargs` must be one dict for the whole run, as for `taylorseer_flux_forward`: the cache is kept in it.
    """
    if joint_attention_kwargs is None:
        joint_attention_kwargs = {}
    if joint_attention_kwargs.get('cache_dic', None) is None:
        joint_attention_kwargs['cache_dic'], joint_attention_kwargs['current'] = cache_init(self)
    cache_dic, current = joint_attention_kwargs['cache_dic'], joint_attention_kwargs['current']

    cal_type(cache_dic, current)
    current['stream'], current['layer'], current['module'] = 'single_stream', 0, 'lite'

    if current['type'] == 'full':
        own = {k: v for k, v in joint_attention_kwargs.items() if k not in ('cache_dic', 'current')}
        last = []
        handle = self.norm_out.register_forward_pre_hook(lambda module, args: last.append(args[0]))
        try:
            output = full_forward(
                self, hidden_states, encoder_hidden_states, pooled_projections, timestep, img_ids, txt_ids, guidance,
                joint_attention_kwargs=own, return_dict=False, **kwargs,
            )[0]
        finally:
            handle.remove()
        taylor_cache_init(cache_dic, current)
        derivative_approximation(cache_dic, current, last[0])
    else:
        timestep = timestep.to(hidden_states.dtype) * 1000
        if guidance is None:
            temb = self.time_text_embed(timestep, pooled_projections)
        else:
            temb = self.time_text_embed(timestep, guidance.to(hidden_states.dtype) * 1000, pooled_projections)
        output = self.proj_out(self.norm_out(taylor_formula(cache_dic, current), temb))

    current['step'] += 1

    if not return_dict:
        return (output,)
    return Transformer2DModelOutput(sample=output)

"""One image with TaylorSeer-Lite: `python diffusers_taylorseer_lite_flux.py --prompt "a chair" --forecast_basis dmd`."""

import argparse

import torch
from diffusers import DiffusionPipeline

from forwards import use_lite_forward  # first: it makes the folder above importable
from forecast_basis import BASES


def main() -> None:
    parser = argparse.ArgumentParser(description='Single-prompt inference for FLUX with TaylorSeer-Lite')
    parser.add_argument('--prompt', required=True)
    parser.add_argument('--out', default='lite.png')
    parser.add_argument('--model', default='black-forest-labs/FLUX.1-dev')
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--guidance', type=float, default=3.5)
    parser.add_argument('--forecast_basis', default='taylor', choices=BASES)
    options = parser.parse_args()

    pipeline = DiffusionPipeline.from_pretrained(options.model, torch_dtype=torch.bfloat16)
    type(pipeline.transformer).num_steps = options.steps
    type(pipeline.transformer).forecast_basis = options.forecast_basis
    use_lite_forward(pipeline.transformer)
    image = pipeline.to('cuda')(
        options.prompt, num_inference_steps=options.steps, guidance_scale=options.guidance,
        generator=torch.Generator('cpu').manual_seed(options.seed),
    ).images[0]
    image.save(options.out)


if __name__ == '__main__':
    main()

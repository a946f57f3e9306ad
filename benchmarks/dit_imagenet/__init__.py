"""Class-conditional DiT-XL/2 on ImageNet classes: FID drift and Inception Score against calls and latency."""

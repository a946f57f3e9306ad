"""Frechet distance and Inception Score from sufficient statistics, which add up over chunks of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """``mean [D]``, ``covariance [D, D]``."""

    mean: Array
    covariance: Array


@dataclass(frozen=True)
class Moments:
    """Of features ``f [D]``: ``count``, ``total = sum f``, ``outer = sum f f^T``."""

    count: int
    total: Array
    outer: Array

    @classmethod
    def of(cls, features: Array) -> Moments:
        """Of ``features [n, D]``."""
        f = features.astype(np.float64)
        return cls(len(f), f.sum(axis=0), f.T @ f)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance ``(sum f f^T - n m m^T) / (n - 1)``.

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"images: a covariance needs at least 2, got {self.count}")
        mean = self.total / self.count
        return Gaussian(mean, (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1))


@dataclass(frozen=True)
class Predictions:
    """Of class probabilities ``p [C]``: ``count``, ``total = sum p``, ``plogp``, the sum of ``sum_c p_c log p_c``."""

    count: int
    total: Array
    plogp: float

    @classmethod
    def of(cls, log_probabilities: Array) -> Predictions:
        """Of ``log_probabilities [n, C]``; ``-inf`` is a probability of 0."""
        p = np.exp(log_probabilities.astype(np.float64))
        plogp = np.where(p > 0, p * np.where(p > 0, log_probabilities, 0), 0)
        return cls(len(p), p.sum(axis=0), float(plogp.sum()))

    def __add__(self, other: Predictions) -> Predictions:
        return Predictions(self.count + other.count, self.total + other.total, self.plogp + other.plogp)

    def score(self) -> float:
        """Inception Score ``exp(mean_i KL(p_i || mean p))``, over all images in one split (arXiv:1606.03498)."""
        mean = self.total / self.count
        marginal = float(mean @ np.log(np.where(mean > 0, mean, 1)))
        return float(np.exp(self.plogp / self.count - marginal))


def root(covariance: Array) -> Array:
    """Symmetric square root; eigenvalues within rounding of 0 are 0."""
    values, vectors = scipy.linalg.eigh(covariance)
    epsilon = len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
    kept = np.sqrt(np.where(values > epsilon, values, 0))
    return np.asarray((vectors * kept) @ vectors.T)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """``||m_a - m_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` (arXiv:1706.08500).

    The trace of the root is the sum of the singular values of ``S_a^(1/2) S_b^(1/2)``: real and accurate where the
    covariances are singular, as they are with fewer images than features. A Gaussian is at 0 from itself.

    Raises:
        ValueError: features of another width, or values that are not finite.
    """
    if a.mean.shape != b.mean.shape or a.covariance.shape != b.covariance.shape:
        raise ValueError(f"features must have one width, got {len(a.mean)} and {len(b.mean)}")
    if not all(np.isfinite(each).all() for g in (a, b) for each in (g.mean, g.covariance)):
        raise ValueError("features: mean or covariance is not finite")
    if np.array_equal(a.mean, b.mean) and np.array_equal(a.covariance, b.covariance):
        return 0.0  # rounding would leave some 1e-13
    shared = float(scipy.linalg.svdvals(root(a.covariance) @ root(b.covariance)).sum())
    apart = float(((a.mean - b.mean) ** 2).sum())
    return max(apart + float(np.trace(a.covariance) + np.trace(b.covariance)) - 2 * shared, 0.0)

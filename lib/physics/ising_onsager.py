"""Closed forms of the square-lattice Ising model at zero field: Kaufman's torus, Onsager's limit.

Conventions as in `ising_exact`; beta = 1/T of any shape, answers float64 of that shape. ValueError
for beta negative or not finite.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import tanhsinh
from scipy.special import ellipkm1

from lib.physics.checks import Floats, check_count
from lib.physics.ising_exact import check_parameters


def kaufman_log_partition(beta: ArrayLike, size: int) -> Floats:
    """Exact log Z of the size x size torus at zero field, any size >= 3.

    Z = (1/2) (2 sinh 2 beta)^(N/2) [prod 2 cosh(n g_{2r+1}/2) + prod 2 sinh(n g_{2r+1}/2)
    + prod 2 cosh(n g_{2r}/2) + prod 2 sinh(n g_{2r}/2)], n = size, r = 0 .. n-1, with
    cosh g_l = cosh^2(2 beta)/sinh(2 beta) - cos(pi l/n) and g_0 = 2 beta + log tanh beta, which is
    negative above the critical temperature. Source: Kaufman, Phys. Rev. 76, 1232 (1949).
    """
    beta, _ = check_parameters(beta)
    size = check_count("size", size, 3)
    odd_growth, odd_gamma = _dispersion(beta, np.pi * (2 * np.arange(size) + 1) / size)
    even_growth, even_gamma = _dispersion(beta, np.pi * 2 * np.arange(1, size) / size)
    zero_growth, zero_gamma = _zero_mode(beta)
    even_growth = np.concatenate([zero_growth, even_growth], axis=-1)
    even_gamma = np.concatenate([np.abs(zero_gamma), even_gamma], axis=-1)
    terms, signs = [], []
    for growth, gamma, sign in (
        (odd_growth, odd_gamma, 1.0),
        (even_growth, even_gamma, np.sign(zero_gamma[..., 0])),
    ):
        decay = np.exp(-size * gamma)
        with np.errstate(divide="ignore"):
            shrink = np.log1p(-decay).sum(-1)
        grown = size / 2 * growth.sum(-1)
        terms += [grown + np.log1p(decay).sum(-1), grown + shrink]
        signs += [np.ones_like(beta), sign * np.ones_like(beta)]
    terms = np.array(terms)
    top = terms.max(axis=0)
    return top + np.log((signs * np.exp(terms - top)).sum(axis=0) / 2)


def onsager_free_energy(beta: ArrayLike) -> Floats:
    """-log Z / N of the infinite lattice at zero field, error below 1e-13.

    log Z / N = log(sqrt 2 cosh 2 beta) + (1/pi) int_0^{pi/2} log(1 + sqrt(1 - k^2 cos^2 u)) du,
    k = 2 sinh 2 beta / cosh^2 2 beta. Source: Onsager, Phys. Rev. 65, 117 (1944), Eq. 109.
    """
    beta, _ = check_parameters(beta)

    def term(u: Floats, kappa: Floats) -> Floats:
        """Without cancellation at the critical point, where k = 1 and kappa = 0."""
        return np.log1p(np.hypot(kappa * np.cos(u), np.sin(u)))

    integral = tanhsinh(term, 0, np.pi / 2, args=(_kappa(beta),), rtol=1e-15).integral
    return -(2 * beta + np.log1p(np.exp(-4 * beta)) - np.log(2.0) / 2 + integral / np.pi)


def onsager_energy(beta: ArrayLike) -> Floats:
    """Energy per site of the infinite lattice at zero field, -d(log Z / N)/d beta.

    u = -coth(2 beta) [1 + (2/pi) (2 tanh^2 2 beta - 1) K(k)], k = 2 sinh 2 beta / cosh^2 2 beta,
    in units of the coupling. Source: Onsager, Phys. Rev. 65, 117 (1944), Eq. 115.
    """
    beta, _ = check_parameters(beta)
    kappa = _kappa(beta)
    with np.errstate(divide="ignore", invalid="ignore"):
        bracket = np.where(kappa == 0, 0.0, kappa * ellipkm1(kappa**2))
        energy = -(1 + 2 / np.pi * bracket) / np.tanh(2 * beta)
    # the bracket cancels at small beta: high-temperature series, error below 1e-14 there
    v = np.tanh(beta)
    series = -2 * v - (1 - v**2) * (4 * v**3 + 12 * v**5)
    return np.where(beta < 2e-3, series, energy)


def onsager_magnetization(beta: ArrayLike) -> Floats:
    """Spontaneous |m| of the infinite lattice: (1 - sinh^-4 2 beta)^(1/8), or 0 for a hot lattice.

    Source: Yang, Phys. Rev. 85, 808 (1952).
    """
    beta, _ = check_parameters(beta)
    x = np.exp(-2 * beta)
    with np.errstate(divide="ignore"):
        inverse_sinh = 2 * x / (1 - x**2)
    return np.where(inverse_sinh < 1, np.maximum(1 - inverse_sinh**4, 0.0), 0.0) ** 0.125


def _kappa(beta: Floats) -> Floats:
    """(sinh^2 2 beta - 1)/(sinh^2 2 beta + 1): signed sqrt(1 - k^2), zero at criticality."""
    x = np.exp(-2 * beta)
    return (1 - 2 * x - x**2) * (1 + 2 * x - x**2) / (1 + x**2) ** 2


def _dispersion(beta: Floats, angle: Floats) -> tuple[Floats, Floats]:
    """(log(2 sinh(2 beta) e^g), g) for cosh g = cosh^2/sinh - cos(angle), angle not 0 mod 2 pi."""
    x = np.exp(-2 * beta)[..., None]
    sinh = 2 * x * (1 - x**2)  # sinh 2 beta in units of e^{4 beta}/4, as are the sums below
    low = (1 - 2 * x - x**2) ** 2 + 2 * sinh * np.sin(angle / 2) ** 2
    large = low + sinh + np.sqrt(low * (low + 2 * sinh))
    with np.errstate(divide="ignore"):
        gamma = np.log(large) - np.log(sinh)
    return np.log(large) - np.log(2.0) + 4 * beta[..., None], gamma


def _zero_mode(beta: Floats) -> tuple[Floats, Floats]:
    """(log(2 sinh(2 beta) e^|g_0|), g_0) with g_0 = 2 beta + log tanh beta."""
    x = np.exp(-2 * beta)[..., None]
    with np.errstate(divide="ignore"):
        cold = 2 * np.log1p(-x) + 4 * beta[..., None]
        gamma = 2 * beta[..., None] + np.log1p(-x) - np.log1p(x)
    return np.maximum(cold, 2 * np.log1p(x)), gamma

"""Confidence sequences for means by betting: bounds that hold at all times together, however often one looks.

A gambler bets on numbers x in [0, 1]. If their mean were m, each bet would be fair, so that the capital

    above(m) = Σ_j w_j Π_t (1 + f_j · (x_t / m − 1))               grows if the mean is above m,
    below(m) = Σ_j w_j Π_t (1 − f_j · (x_t − m) / (1 − m))         grows if the mean is below m,

is a martingale that starts at 1 and is never negative. It ever reaches 1/α with a chance of at most α (Ville), and so
does above(m) where the mean is below m, or below(m) where it is above. The means m whose capitals have not reached 1/α
by now are a confidence sequence. above falls and below rises with m, so that it is an interval: its ends are one-sided
bounds, of level α each.

This is the capital process of Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (JRSS B
2024, arXiv 2010.09686), with their mixture of bets that do not change (diversified Kelly betting). f_j is the share of
the largest bet that cannot be lost whole, w_j ∝ f_j. What is assumed: given all that came before, x_t has a mean of at
most m (at least m for `below`). Numbers may depend on one another otherwise, and no form of distribution is assumed.

Many rollouts are treated at once, so that simulations run the code that decides: R rollouts, G candidate means each,
J bets, and U of the rollouts to which a call brings a number.
"""

from __future__ import annotations

import numpy as np

BETS_J = 0.95 * 2.0 ** -np.arange(8)
_WEIGHTS_J = BETS_J / BETS_J.sum()
_LARGEST = 1e200  # capital above it is thrown away, which keeps it a supermartingale and finite


class Bets:
  """The capitals of R rollouts on G candidate means, and the largest that each has been."""

  def __init__(self, rollouts: int, candidates: int):
    self._above_RGJ = np.ones((rollouts, candidates, len(BETS_J)))
    self._below_RGJ = np.ones_like(self._above_RGJ)
    self.above_RG = np.ones((rollouts, candidates))
    self.below_RG = np.ones((rollouts, candidates))

  def reset(self, rows_U: np.ndarray) -> None:
    """These rollouts start anew."""
    for capital in (self._above_RGJ, self._below_RGJ, self.above_RG, self.below_RG):
      capital[rows_U] = 1.0

  def add(
    self, rows_U: np.ndarray, x_UG: np.ndarray, mean_UG: np.ndarray, is_bet_UG: np.ndarray | None = None) -> None:
    """Bets on one number of each of these rollouts, which are all different.

    x_UG: in [0, 1]; may differ between candidates. mean_UG: the candidates, in (0, 1). is_bet_UG: where there is a
    number at all; everywhere if it is None.
    """
    gain_UG, loss_UG = x_UG / mean_UG - 1, (x_UG - mean_UG) / (1 - mean_UG)
    if is_bet_UG is not None:
      gain_UG, loss_UG = np.where(is_bet_UG, gain_UG, 0), np.where(is_bet_UG, loss_UG, 0)
    for capital_RGJ, best_RG, change_UG in (
      (self._above_RGJ, self.above_RG, gain_UG), (self._below_RGJ, self.below_RG, -loss_UG)):
      capital_UGJ = np.minimum(capital_RGJ[rows_U] * (1 + change_UG[..., None] * BETS_J), _LARGEST)
      capital_RGJ[rows_U] = capital_UGJ
      best_RG[rows_U] = np.maximum(best_RG[rows_U], capital_UGJ @ _WEIGHTS_J)

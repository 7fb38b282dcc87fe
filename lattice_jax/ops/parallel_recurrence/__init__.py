"""The solution of a recurrence h_t = f(h_{t−1}, x_t), token by token or for many tokens at once by Newton's method."""

from lattice_jax.ops.parallel_recurrence.form import FORMS, JACOBIANS, RecurrenceForm, choose_form
from lattice_jax.ops.parallel_recurrence.op import Solved, solve

__all__ = ["FORMS", "JACOBIANS", "RecurrenceForm", "Solved", "choose_form", "solve"]

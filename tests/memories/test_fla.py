"""Layers of flash-linear-attention, written down in float64 from its equations, against ours with their weights.

Its tensors have PyTorch's shapes: linear maps [outputs, inputs], convolutions [channels, 1, W], the newest token last.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import lattice_jax as lj
from lattice_jax.memories.delta import op as delta
from lattice_jax.memories.gated_linear import op as gated_linear
from lattice_jax.memories.gated_slots import op as gated_slots
from tests.contract.harness import quick_jit
from tests.memories.published_layers import sigmoid, silu, softmax, softplus
from tests.thorough import further

LENGTH, DIM, HEADS, KEY, VALUE, RANK, TAPS = 11, 10, 2, 3, 4, 2, 3
NORM_EPS, UNIT_EPS = 1e-5, 1e-6
RNG = np.random.default_rng(0)
X_TD = RNG.normal(size=(LENGTH, DIM))


def tensors(*, has_conv=True, gate=True, **more):
  """Small enough that both ε count."""
  widths = {"q": HEADS * KEY, "k": HEADS * KEY, "v": HEADS * VALUE}
  shapes = {f"{name}_proj.weight": (width, DIM) for name, width in widths.items()}
  if has_conv:
    shapes |= {f"{name}_conv1d.weight": (width, 1, TAPS) for name, width in widths.items()}
  if gate:
    shapes["g_proj.weight"] = (HEADS * VALUE, DIM)
  shapes |= {"o_proj.weight": (DIM, HEADS * VALUE), "o_norm.weight": (VALUE,), **more}
  return {name: 0.05 * RNG.normal(size=shape) for name, shape in shapes.items() if shape}


STEP = {"b_proj.weight": (HEADS, DIM)}
GLA = {
  "o_norm.weight": None, "g_norm_swish_gate.weight": (VALUE,), "gk_proj.0.weight": (RANK, DIM),
  "gk_proj.1.weight": (HEADS * KEY, RANK), "gk_proj.1.bias": (HEADS * KEY,)}
KDA = STEP | {
  "A_log": (HEADS,), "dt_bias": (HEADS * KEY,), "f_proj.0.weight": (VALUE, DIM),
  "f_proj.1.weight": (HEADS * KEY, VALUE), "g_proj.0.weight": (VALUE, DIM), "g_proj.1.weight": (HEADS * VALUE, VALUE),
  "g_proj.1.bias": (HEADS * VALUE,)}
GSA = {"o_norm.weight": None, "g_norm.weight": (HEADS * VALUE,), "f_proj.weight": (HEADS * RANK, DIM)}
SHARED = {
  "k_proj.weight": (KEY, DIM), "v_proj.weight": (VALUE, DIM), "k_conv1d.weight": (KEY, 1, TAPS),
  "v_conv1d.weight": (VALUE, 1, TAPS)}
INNER = HEADS * VALUE
MAMBA2 = {name: 0.3 * RNG.normal(size=shape) for name, shape in {
  "in_proj.weight": (2 * INNER + 2 * KEY + HEADS, DIM), "conv1d.weight": (INNER + 2 * KEY, 1, TAPS),
  "conv1d.bias": (INNER + 2 * KEY,), "A_log": (HEADS,), "D": (HEADS,), "dt_bias": (HEADS,), "norm.weight": (INNER,),
  "out_proj.weight": (DIM, INNER)}.items()}
FURTHER = (
  "gla with convolutions", "deltanet with gate and long steps", "gated_slots with shared keys",
  "scalar_decay without bias")
LAYERS = {
  "gla": ("gla", tensors(**GLA, has_conv=False), {}),
  "gla with convolutions": ("gla", tensors(**GLA), {}),
  "deltanet": ("deltanet", tensors(**STEP, gate=False), {}),
  "deltanet with gate and long steps": ("deltanet", tensors(**STEP, has_conv=False), {"allow_neg_eigval": True}),
  "gated_deltanet": (
    "gated_deltanet", tensors(**STEP, **{"a_proj.weight": (HEADS, DIM), "A_log": (HEADS,), "dt_bias": (HEADS,)}), {}),
  "kimi_delta": ("kimi_delta", tensors(**KDA, gate=False), {}),
  "gated_slots": ("gated_slots", tensors(**GSA, has_conv=False, gate=False), {}),
  "scalar_decay": ("scalar_decay", MAMBA2, {}),
  "gla with shared keys": (
    "gla", tensors(**GLA | SHARED | {"gk_proj.1.weight": (KEY, RANK), "gk_proj.1.bias": (KEY,)}), {}),
  "gated_slots with shared keys": (
    "gated_slots", tensors(**GSA | SHARED | {"f_proj.weight": (RANK, DIM)}, gate=False), {}),
  "scalar_decay without bias": ("scalar_decay", {name: x for name, x in MAMBA2.items() if name != "conv1d.bias"}, {}),
}


def by_head(x, width):
  """Heads that share keys or values are neighbours."""
  x = x.reshape(len(x), -1, width)
  return np.repeat(x, HEADS // x.shape[1], axis=1)


def linear(w, name, x=X_TD):
  return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def sequential(w, name):
  return linear(w, f"{name}.1", linear(w, f"{name}.0"))


def convolved(w, name):
  x, taps = linear(w, f"{name}_proj"), w[f"{name}_conv1d.weight"][:, 0]
  before = np.concatenate([np.zeros((TAPS - 1, x.shape[1])), x])
  return silu(np.stack([(before[t : t + TAPS] * taps.T).sum(0) for t in range(LENGTH)]))


def unit(x):
  return x / np.sqrt((x**2).sum(-1, keepdims=True) + UNIT_EPS)


def recurrence(q, k, v, beta, log_decay):
  """Heads one by one; S is [K, V]. Without beta, writes are added. log_decay: [T, H, 1 or K]."""
  out = np.zeros((LENGTH, HEADS, VALUE))
  for h in range(HEADS):
    S = np.zeros((KEY, VALUE))
    for t in range(LENGTH):
      S = np.exp(log_decay[t, h])[:, None] * S
      change = v[t, h] if beta is None else beta[t, h] * (v[t, h] - k[t, h] @ S)
      S = S + np.outer(k[t, h], change)
      out[t, h] = KEY**-0.5 * q[t, h] @ S
  return out


def gsa(w, q, k, v):
  """One SiLU more on all three, and a norm of all heads together, after a SiLU."""
  log_decay = by_head(np.log(sigmoid(linear(w, "f_proj"))) / 8, RANK)
  out = gated_slots_there(KEY**0.5 * q, k, v, log_decay, 1 - np.exp(log_decay))
  out = silu(out).reshape(LENGTH, -1)
  return out / np.sqrt((out**2).mean(-1, keepdims=True) + NORM_EPS) * w["g_norm.weight"] @ w["o_proj.weight"].T


def mamba2(w):
  """One B and C for all heads; the gate comes before the norm."""
  z, x_B_C, dt = np.split(X_TD @ w["in_proj.weight"].T, [INNER, 2 * INNER + 2 * KEY], axis=1)
  before = np.concatenate([np.zeros((TAPS - 1, x_B_C.shape[1])), x_B_C])
  taps = w["conv1d.weight"][:, 0]
  x_B_C = silu(np.stack([(before[t : t + TAPS] * taps.T).sum(0) for t in range(LENGTH)]) + w.get("conv1d.bias", 0))
  x, B, C = np.split(x_B_C, [INNER, INNER + KEY], axis=1)
  x, dt, y = x.reshape(LENGTH, HEADS, VALUE), softplus(dt + w["dt_bias"]), np.zeros((LENGTH, HEADS, VALUE))
  for h in range(HEADS):
    state = np.zeros((VALUE, KEY))
    for t in range(LENGTH):
      state = np.exp(-dt[t, h] * np.exp(w["A_log"][h])) * state + dt[t, h] * np.outer(x[t, h], B[t])
      y[t, h] = state @ C[t] + w["D"][h] * x[t, h]
  y = y.reshape(LENGTH, INNER) * silu(z)
  return y / np.sqrt((y**2).mean(-1, keepdims=True) + NORM_EPS) * w["norm.weight"] @ w["out_proj.weight"].T


def forward(name, w, allow_neg_eigval=False):
  if name == "scalar_decay":
    return mamba2(w)
  is_gla = name == "gla"
  if "q_conv1d.weight" in w:
    q, k, v = (by_head(convolved(w, part), VALUE if part == "v" else KEY) for part in "qkv")
  else:
    q, k, v = (by_head(linear(w, f"{part}_proj"), VALUE if part == "v" else KEY) for part in "qkv")
    if name not in ("gla", "gated_slots"):
      q, k, v = silu(q), silu(k), silu(v)
  if name == "gated_slots":
    return gsa(w, silu(q), silu(k), silu(v))
  beta, log_decay = None, np.zeros((LENGTH, HEADS, 1))
  if is_gla:
    log_decay = by_head(np.log(sigmoid(sequential(w, "gk_proj"))) / 16, KEY)
  else:
    q, k = unit(q), unit(k)
    beta = sigmoid(linear(w, "b_proj")) * (2 if allow_neg_eigval else 1)
  if name == "gated_deltanet":
    log_decay = (-np.exp(w["A_log"]) * softplus(linear(w, "a_proj") + w["dt_bias"]))[..., None]
  if name == "kimi_delta":
    log_decay = -np.exp(w["A_log"])[:, None] * by_head(softplus(sequential(w, "f_proj") + w["dt_bias"]), KEY)
  out = recurrence(q, k, v, beta, log_decay)
  out = out / np.sqrt((out**2).mean(-1, keepdims=True) + NORM_EPS)
  out *= w["g_norm_swish_gate.weight" if is_gla else "o_norm.weight"]
  if name == "kimi_delta":
    out *= by_head(sigmoid(sequential(w, "g_proj")), VALUE)
  elif "g_proj.weight" in w:
    out *= by_head(silu(linear(w, "g_proj")), VALUE)
  return out.reshape(LENGTH, -1) @ w["o_proj.weight"].T


@pytest.mark.parametrize("case", [
  "gla", "deltanet", "gated_deltanet", "kimi_delta", "gated_slots", "scalar_decay", "gla with shared keys",
  *further(*FURTHER)])
def test_our_layer_with_their_weights_computes_what_theirs_does(case):
  memory, weights, options = LAYERS[case]
  want = forward(memory, weights, **options)
  layer, variables = lj.from_fla(
    memory, {f"layer.{name}": x for name, x in weights.items()} | {"other": X_TD}, heads=HEADS, prefix="layer.",
    **options)
  got = quick_jit(layer.apply)(variables, jnp.asarray(X_TD, jnp.float32)[None]).y_BTD[0]
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def gated_slots_there(q, k, v, log_decay, share):
  out = np.zeros((LENGTH, HEADS, VALUE))
  for h in range(HEADS):
    keys, values = np.zeros((KEY, RANK)), np.zeros((RANK, VALUE))
    for t in range(LENGTH):
      keys = keys * np.exp(log_decay[t, h]) + np.outer(k[t, h], share[t, h])
      values = values * np.exp(log_decay[t, h])[:, None] + np.outer(share[t, h], v[t, h])
      out[t, h] = softmax(KEY**-0.5 * q[t, h] @ keys) @ values
  return out


def test_our_ops_with_their_arguments_compute_what_theirs_do():
  """By the table of docs/fla.md: queries scaled, decays out of their logarithms."""
  q, k, v, g = (RNG.normal(size=(LENGTH, HEADS, width)) for width in (KEY, KEY, VALUE, KEY))
  k, log_decay, beta = unit(k), -softplus(g), sigmoid(g[..., 0])
  slots, share = log_decay[..., :RANK], sigmoid(g[..., :RANK])
  arguments = {
    "linear": (gated_linear.gated_linear, (), np.zeros((LENGTH, HEADS, 1)), None),
    "scalar": (gated_linear.gated_linear, (), log_decay[..., :1], None),
    "gla": (gated_linear.gated_linear, (), log_decay, None),
    "delta": (delta.delta, (beta,), np.zeros((LENGTH, HEADS, 1)), beta),
    "gated_delta": (delta.gated_delta, (beta,), log_decay[..., :1], beta),
    "kimi_delta": (delta.kimi_delta, (beta,), log_decay, beta)}
  calls, wanted = {}, {}
  for name, (op, more, logs, step) in arguments.items():
    calls[name] = functools.partial(op, impl="xla"), (KEY**-0.5 * q, k, v, *more, np.exp(logs))
    wanted[name] = recurrence(q, k, v, step, logs)
  calls["slots"] = functools.partial(gated_slots.gated_slots, impl="xla"), (
    KEY**-0.5 * q, k, v, share, np.exp(slots))
  wanted["slots"] = gated_slots_there(q, k, v, slots, share)
  inputs = {name: [jnp.asarray(x, jnp.float32)[None] for x in given] for name, (_, given) in calls.items()}
  got = quick_jit(lambda inputs: {name: op(*inputs[name])[0][0] for name, (op, _) in calls.items()})(inputs)
  for name, want in wanted.items():
    np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=name)


def changed(case, **changes):
  return {name: x for name, x in (LAYERS[case][1] | changes).items() if x is not None}


@pytest.mark.parametrize(("memory", "given", "options", "message"), [
  ("lattice", {}, {}, "lattice has no counterpart .* use one of scalar_decay, gla, deltanet, .*, gated_slots"),
  ("deltanet", changed("deltanet", **{"b_proj.weight": None}), {}, "no tensor 'b_proj.weight', which is needed"),
  ("deltanet", changed("deltanet", **{"q_conv1d.bias": X_TD}), {}, "tensors q_conv1d.bias have no place in ours"),
  ("deltanet", changed("deltanet"), {"heads": 4}, "q_proj.weight makes 6 numbers, which are no 4 heads"),
  ("gated_deltanet", changed("gated_deltanet"), {"heads": 1}, "4 values a head .* 8 at 1 heads"),
  ("gla", changed("gla"), {"allow_neg_eigval": True}, "gated linear attention has no step"),
  ("deltanet", changed("deltanet", **{"k_proj.weight": X_TD[:KEY]}), {}, "k_proj.weight makes 3 numbers, which are no"),
  ("kimi_delta", changed("kimi_delta", **{"g_proj.0.weight": X_TD[:3]}), {}, "rank 4 and g_proj rank 3"),
  ("scalar_decay", changed("scalar_decay", **{"in_proj.weight": X_TD[:7]}), {}, "in_proj makes 7 numbers, and 24 are"),
  ("scalar_decay", changed("scalar_decay", D=X_TD[0]), {}, "D has 10 numbers, and ours one for each of 2 heads"),
  ("gated_slots", changed("gated_slots"), {"norm_eps": 1e-6}, "norm_eps=1e-06 has no effect"),
  ("gated_slots", changed("gated_slots", **{"q_conv1d.bias": X_TD}), {}, "tensors q_conv1d.bias have no place"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_is_refused(memory, given, options, message):
  with pytest.raises(ValueError, match=message):
    lj.from_fla(memory, given, **{"heads": HEADS} | options)

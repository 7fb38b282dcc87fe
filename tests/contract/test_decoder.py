"""The decoder keeps the laws of its memories, however its layers are stacked, recomputed and scored."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from lattice_jax.models.decoder import Decoder, abstract_variables, init_state, num_groups
from lattice_jax.types import whole_segment
from tests.contract.decoder_runs import (
  BATCH,
  DECODERS,
  LENGTH,
  SMALL,
  buffer_shapes,
  run,
  run_in_pieces,
  score,
  text,
  unrolled,
  variables_of,
)
from tests.contract.harness import quick_jit
from tests.contract.tolerances import assert_close
from tests.thorough import further

each_decoder = pytest.mark.parametrize(
  "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"decoder-{name}")) for name in DECODERS])


@each_decoder
@pytest.mark.parametrize(
  "pieces", [(10, 1, 10), *further(((1, 10, 10),), ((1,) * LENGTH,))], ids=["10-1-10", "1-10-10", "tokens"])
def test_split_with_carried_memory_scores_like_the_whole(name, pieces):
  config = DECODERS[name]
  whole = run(config, variables_of(name))
  nll_BT, state = run_in_pieces(config, variables_of(name), pieces)
  assert_close("decoder split", name, "output", nll_BT, whole.nll_BT)
  assert_close("decoder split", name, "state", state, whole.state)


@each_decoder
def test_scanned_layers_equal_unrolled_ones(name):
  config, variables = DECODERS[name], variables_of(name)
  groups = num_groups(config)
  scanned = run(config, variables)
  apart = run(replace(config, scan_layers=False), {key: unrolled(tree, groups) for key, tree in variables.items()})
  _assert_scored_close("scan", name, apart.replace(d_params=None), scanned.replace(d_params=None))
  assert_close("scan", name, "gradient.parameters", apart.d_params, unrolled(scanned.d_params, groups))


@pytest.mark.parametrize(("name", "remat"), [
  pytest.param(name, remat, id=f"{name}-{remat}", marks=pytest.mark.xdist_group(f"decoder-{name}"))
  for name, remat in (("vq-gau", "full"), ("attention-mlp-tied", "boundary"), ("hybrid-mlp", "full"),
                      ("hybrid-mlp", "boundary"))])
def test_recomputing_activations_changes_no_gradient(name, remat):
  variables = variables_of(name)
  got = run(replace(DECODERS[name], remat=remat), variables)
  _assert_scored_close("remat", name, got, run(DECODERS[name], variables))


def test_the_boundary_policy_does_not_run_attention_a_third_time():
  config = DECODERS["attention-mlp-tied"]
  variables, (tokens_BT, targets_BT, _) = variables_of("attention-mlp-tied"), text()
  batch, length = tokens_BT.shape

  def num_loops(remat):
    model = replace(config, remat=remat)

    def loss(params):
      return Decoder(model).apply(
        {**variables, "params": params}, tokens_BT, targets_BT, init_state(model, batch), whole_segment(batch, length),
        method=Decoder.score)[0].sum()

    return jax.jit(jax.grad(loss)).lower(variables["params"]).as_text().count("stablehlo.while")

  # "full" repeats the forward pass of attention, two nested loops, for the backward pass
  assert num_loops("boundary") == num_loops("full") - 2


@pytest.mark.parametrize("name", ["vq-gau", "attention-mlp-tied"])  # an untied and a tied head
@pytest.mark.parametrize("chunk", [1, BATCH * 8], ids=["one-column", "ragged"])
def test_chunked_cross_entropy_is_the_log_softmax(name, chunk):
  config, variables = replace(DECODERS[name], xent_chunk=chunk), variables_of(name)
  tokens_BT, targets_BT, segment = jax.tree.map(jnp.asarray, text())
  decoder, state = Decoder(config), init_state(config, BATCH)
  d_nll_BT = np.random.default_rng(5).normal(size=(BATCH, LENGTH))

  def chunked(params):
    nll_BT, _ = decoder.apply(
      {**variables, "params": params}, tokens_BT, targets_BT, state, segment, method=Decoder.score)
    return (nll_BT * d_nll_BT).sum(), nll_BT

  def plain(params):
    output = decoder.apply({**variables, "params": params}, tokens_BT, state, segment)
    logits_BTA = decoder.apply({**variables, "params": params}, output.features_BTD, method=Decoder.logits)
    nll_BT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTA), targets_BT[..., None], -1)[..., 0]
    return (nll_BT * d_nll_BT).sum(), nll_BT

  got_grad, got = quick_jit(jax.grad(chunked, has_aux=True))(variables["params"])
  want_grad, want = quick_jit(jax.grad(plain, has_aux=True))(variables["params"])
  assert_close("cross-entropy", name, "output", got, want)
  assert_close("cross-entropy", name, "gradient.parameters", got_grad, want_grad)


WIDE = replace(
  SMALL, vocab=521, layers=2, pattern=("vq",), block="gau", xent_chunk=16, remat="full",
  vq=replace(SMALL.vq, block_len=12, codes=7))
LONG, ROWS = 97, 2  # T, a little over 8 blocks; B


@pytest.fixture(scope="module")
def shapes_of():
  """Shapes in the optimised program of loss and gradient, for an implementation and a size of the loss's chunks."""
  known = {}

  def shapes(impl, xent_chunk):
    if (impl, xent_chunk) not in known:
      config = replace(WIDE, impl=impl, xent_chunk=xent_chunk)
      variables = meta.unbox(abstract_variables(config))
      tokens = jax.ShapeDtypeStruct((ROWS, LONG), jnp.int32)
      state, segment = jax.eval_shape(lambda: (init_state(config, ROWS), whole_segment(ROWS, LONG)))
      lowered = jax.jit(score, static_argnums=0).lower(config, variables, tokens, tokens, state, segment)
      known[impl, xent_chunk] = buffer_shapes(lowered.compile().as_text())
    return known[impl, xent_chunk]

  return shapes


def test_linear_vq_holds_no_square_buffer(shapes_of):
  assert not _squares(shapes_of("xla", WIDE.xent_chunk))


def test_square_buffers_of_the_reference_are_found(shapes_of):
  assert _squares(shapes_of("reference", ROWS * LONG))


def test_loss_holds_no_float32_logits_of_the_whole_batch(shapes_of):
  assert not _logits(shapes_of("xla", WIDE.xent_chunk))


def test_logits_of_an_unchunked_loss_are_found(shapes_of):
  assert _logits(shapes_of("reference", ROWS * LONG))


def _squares(shapes):
  """Two axes of at least T, the vocabulary's aside."""
  return [shape for _, shape in shapes if sum(size >= LONG for size in shape if size != WIDE.vocab) >= 2]


def _logits(shapes):
  return [shape for dtype, shape in shapes if dtype == "f32" and np.prod(shape) >= ROWS * LONG * WIDE.vocab]


def _assert_scored_close(law, name, got, want):
  assert_close(law, name, "output", got.nll_BT, want.nll_BT)
  assert_close(law, name, "state", got.state, want.state)
  assert_close(law, name, "loss", got.losses, want.losses)
  assert_close(law, name, "statistics", got.statistics, want.statistics)
  assert_close(law, name, "gradient.parameters", got.d_params, want.d_params)

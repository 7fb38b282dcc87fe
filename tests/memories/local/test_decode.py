"""A model of local attention whose layers and heads have windows of their own: the same however it is run, in place."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.config import ModelConfig
from lattice_jax.inference.session import Session
from lattice_jax.inspect.hlo import moved
from lattice_jax.memories.attention_config import AttentionConfig
from lattice_jax.memories.local.config import LocalConfig, window_rows
from lattice_jax.models.decoder import Decoder, init_state, init_variables
from lattice_jax.models.state_size import state_numbers
from lattice_jax.sharding import state_shardings, tree_bytes, unbox
from lattice_jax.types import make_segment, whole_segment
from tests.contract.harness import quick_jit
from tests.contract.tolerances import assert_close

BATCH, LENGTH, HALF, VOCAB, LAYERS, HEADS = 2, 50, 25, 31, 4, 3
ATTENTION = AttentionConfig(heads=6, kv_heads=HEADS, key_dim=8, value_dim=6)
# The outer heads are alike in all layers, the one between them differs from layer to layer.
ROWS = ((5, 11, 5), (5, 5, 5), (5, 0, 5), (5, 5, 5))
LOCAL = LocalConfig(sinks=2, rungs=(5, 11), windows=sum(ROWS, ()))
MODEL = ModelConfig(
  vocab=VOCAB, dim=16, layers=LAYERS, pattern=("local",), block="mlp", mlp_dim=8, attention=ATTENTION, local=LOCAL)
FULL = replace(MODEL, pattern=("attention",))


@functools.cache
def variables():
  """As a trained model has them: the same rows do not give the same logits at other places."""
  return quick_jit(lambda: jax.tree.map(lambda leaf: 2 * leaf, unbox(init_variables(MODEL, jax.random.key(0)))))()


def text(seed=0):
  return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)


def call(model, variables, tokens_BT, state, segment):
  decoder = Decoder(model)
  output = decoder.apply(variables, tokens_BT, state, segment)
  return decoder.apply(variables, output.features_BTD, method=Decoder.logits), output.state


@functools.cache
def program(model):
  return quick_jit(functools.partial(call, model))


@functools.cache
def whole_logits(model):
  """Of a text in one call, which needs no cache."""
  return np.asarray(program(model)(
    variables(), jnp.asarray(text()), init_state(model, BATCH), whole_segment(BATCH, LENGTH))[0])


def logits_in_halves(model, given=None):
  state, logits = init_state(model, BATCH, LENGTH), []
  for start in (0, HALF):
    logits_BTA, state = program(model)(
      given or variables(), jnp.asarray(text()[:, start:start + HALF]), state, whole_segment(BATCH, HALF, start))
    logits.append(logits_BTA)
  return np.concatenate(logits, 1)


def assert_logits(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_layers_with_windows_of_their_own_give_what_the_written_mask_gives():
  assert_logits(whole_logits(MODEL), whole_logits(replace(MODEL, impl="reference")))
  assert np.abs(whole_logits(MODEL) - whole_logits(FULL)).max() > 1e-2, "windows matter"


def test_a_session_gives_the_logits_of_the_masked_forward_pass():
  """Read in chunks, ragged rows, and one by one."""
  rows, whole_BTA = text(), whole_logits(MODEL)
  session = Session(MODEL, variables(), batch=BATCH, max_len=LENGTH, chunk_len=9)
  session.read([rows[0, :40], rows[1, :23]])
  assert_logits(session.state.logits_BA[0], whole_BTA[0, 39])
  assert_logits(session.state.logits_BA[1], whole_BTA[1, 22])
  for n in range(10):
    session.step(np.array([rows[0, 40 + n], rows[1, 23 + n]]))
    assert_logits(session.state.logits_BA[0], whole_BTA[0, 40 + n])
    assert_logits(session.state.logits_BA[1], whole_BTA[1, 23 + n])


def test_with_full_windows_it_is_the_memory_attention():
  assert_logits(logits_in_halves(replace(MODEL, local=LocalConfig(windows=(0,)))), whole_logits(FULL))


def test_unrolled_layers_of_a_pattern_of_two_blocks_have_the_same_windows():
  params = variables()["params"]
  layers = [jax.tree.map(lambda x, n=n: x[n], params["groups"]["block_0"]) for n in range(LAYERS)]
  given = {name: leaf for name, leaf in params.items() if name != "groups"}
  given |= {f"group_{n}": {"block_0": layers[2 * n], "block_1": layers[2 * n + 1]} for n in range(2)}
  model = replace(MODEL, pattern=("local",) * 2, scan_layers=False)
  assert_logits(logits_in_halves(model, {"params": given, "buffers": {}}), whole_logits(MODEL))


def test_gradients_through_layers_with_windows_of_their_own_are_the_references():
  def loss(model, params):
    tokens = jnp.asarray(text())
    logits_BTA, _ = call(
      model, {**variables(), "params": params}, tokens, init_state(model, BATCH), whole_segment(BATCH, LENGTH))
    return jax.nn.logsumexp(logits_BTA, -1).sum()

  got, want = (
    quick_jit(jax.grad(functools.partial(loss, replace(MODEL, impl=impl, remat=remat))))(
      jax.tree.map(lambda leaf: leaf / 2, variables()["params"]))
    for impl, remat in (("xla", "boundary"), ("reference", "none")))
  assert_close("gradient", "local", "gradient", got, want)


def test_a_second_prompt_in_the_same_memory_is_as_the_first():
  tokens, state, found = jnp.asarray(text()[:, :HALF]), init_state(MODEL, BATCH, LENGTH), []
  for document in range(2):
    segment = whole_segment(BATCH, HALF).replace(ids_BT=jnp.full(tokens.shape, document, jnp.int32))
    logits, state = program(MODEL)(variables(), tokens, state, segment)
    found.append((np.asarray(logits), jax.tree.leaves(jax.device_get(state))))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  different = [not np.array_equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True)]
  assert sum(different) == 1, "only the document's id has changed"


def test_prepared_rungs_are_one_program_each_and_nothing_else_is_compiled():
  traces = []

  def counted(model, *arguments):
    traces.append(model)
    return call(model, *arguments)

  step = quick_jit(counted, "model")
  rungs = [replace(MODEL, local=replace(LOCAL, windows=(window,))) for window in (5, 11)]
  states = [init_state(model, BATCH, LENGTH) for model in rungs]
  for n in range(6):
    model = rungs[n % 2]
    segment = make_segment(jnp.full((BATCH, 1), n // 2, jnp.int32))
    _, states[n % 2] = step(model, variables(), text()[:, [n]], states[n % 2], segment)
  assert traces == rungs


def lowered(model, max_len):
  state = jax.eval_shape(lambda: init_state(model, BATCH, max_len))
  segment = jax.eval_shape(lambda: whole_segment(BATCH, 1))
  shapes = jax.eval_shape(lambda: unbox(init_variables(model, jax.random.key(0))))
  tokens = jax.ShapeDtypeStruct((BATCH, 1), jnp.int32)
  step = jax.jit(functools.partial(call, model), donate_argnums=2)
  return step.lower(shapes, tokens, state, segment).compile(), state


@pytest.mark.usefixtures("optimized")
def test_a_decode_step_writes_in_place_and_copies_no_ring():
  rows = ((256, 1024, 256), (256, 0, 256)) * 4
  local = LocalConfig(sinks=4, rungs=(256, 1024), windows=sum(rows, ()), far="mean", picks=16, pick_lag=32)
  program, state = lowered(replace(MODEL, layers=8, local=local), 2048)
  memory, text = program.memory_analysis(), program.as_text()
  rings = [ring for ring in jax.tree.leaves(state) if ring.ndim == 5]
  assert memory.alias_size_in_bytes == tree_bytes(state)
  # one layer of a ring is cut out to be read, a block of 512 slots of a long one
  assert memory.temp_size_in_bytes < tree_bytes(state) / 6
  one_layer = min(ring.size // len(ring) for ring in rings)
  is_whole = {f"f32[{','.join(map(str, ring.shape))}]" for ring in rings}
  assert not [shape for shape, _ in moved(text, one_layer) if shape in is_whole]
  assert text.count(" conditional(") == 4, "one head whose windows differ, the scores of two windows, and the clearing"


@pytest.mark.usefixtures("optimized")
def test_one_window_for_all_is_one_ring_without_a_branch():
  program, state = lowered(replace(MODEL, local=replace(LOCAL, windows=(11,))), 64)
  assert len(state["block_0"].rings) == 1
  assert program.as_text().count(" conditional(") == 1, "the clearing"


def test_bytes_are_the_formula():
  """Each head of each layer has room for its own window and the sinks, and for nothing else."""
  max_len = 40
  state = init_state(MODEL, BATCH, max_len)
  slots = sum(min(window + LOCAL.sinks, max_len) if window else max_len for row in ROWS for window in row)
  row = slots * 4 * (ATTENTION.key_dim + ATTENTION.value_dim) + LAYERS * (2 * 4 + 1)
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == BATCH * row
  (parts,) = state_numbers(MODEL, max_len).values()
  assert parts == {"key": slots * ATTENTION.key_dim // LAYERS, "value": slots * ATTENTION.value_dim // LAYERS}
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(init_state(MODEL, BATCH))) == BATCH * LAYERS * 9
  picks, lag = 3, 2
  local = replace(LOCAL, picks=picks, pick_lag=lag)
  state = jax.eval_shape(lambda: init_state(replace(MODEL, local=local), BATCH, max_len))
  more = LAYERS * HEADS * (picks * (4 * (ATTENTION.key_dim + ATTENTION.value_dim) + 8) + 4 * lag)
  assert tree_bytes(state) == BATCH * (row + more)


def test_rows_of_rings_are_spread_over_devices():
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 1), ("data", "model"), axis_types=auto, devices=jax.devices()[:2])
  state = jax.eval_shape(lambda: init_state(MODEL, BATCH, LENGTH))
  assert {sharding.spec[1] for sharding in jax.tree.leaves(state_shardings(state, mesh))} == {"data"}


def test_windows_of_one_layer_serve_all():
  assert window_rows(replace(LOCAL, windows=(5, 0, 11)), 4, 3) == ((5, 0, 11),) * 4
  assert window_rows(LOCAL, 4, 3) == ROWS

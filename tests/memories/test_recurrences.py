"""The recurrences that Lattice is compared with: chunks equal the token scan, and what a layer on top needs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lattice_jax.memories.ttt import op as ttt
from lattice_jax.ops.decay.matrix import call_matrix_op
from tests.contract.harness import quick_jit
from tests.memories.lattice.cases import assert_near
from tests.memories.recurrence_cases import CASES, CHUNK, HEADS, KEY, LENGTH, RESET, ROWS, VALUE, run, scene
from tests.thorough import further

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
BY_NAME = {case.name: case for case in CASES}


def whole(here):
  """The scene as one document without padding, from an empty state."""
  return here.replace(
    ids=jnp.zeros_like(here.ids), valid=jnp.ones_like(here.valid),
    state=jax.tree.map(jnp.zeros_like, here.state).replace(document_B=jnp.full((ROWS,), -1, jnp.int32)))


@each_case
def test_chunks_equal_the_reference_with_all_gradients(case):
  """Gates at 0 and 1, resets inside chunks, padding, and a last chunk that is not full; L8 has the same in fp32."""
  with jax.enable_x64(True):
    here = scene(case, "float64")
    assert_near(run(case, here), run(case, here, "reference"), 1e-11)


@each_case
@pytest.mark.parametrize("gate", [0.0, *further(1.0)])
def test_chunks_equal_the_reference_where_all_gates_are_at_one_end(case, gate):
  with jax.enable_x64(True):
    here = scene(case, "float64")
    gates = {name: jnp.full_like(here.tokens[name], gate) for name in {"step", "decay", "share"} & set(here.tokens)}
    here = here.replace(tokens=here.tokens | gates)
    assert_near(run(case, here), run(case, here, "reference"), 1e-11)


@each_case
def test_any_split_gives_the_same_output_and_state(case):
  with jax.enable_x64(True):
    here = scene(case, "float64")
    want = run(case, here)
    for pieces in ((11, 1, 11), (1, 11, 11)):
      state, parts = here.state, []
      for begin, end in itertools.pairwise(itertools.accumulate(pieces, initial=0)):
        part = run(case, here.cut(begin, end, state), with_gradient=False)
        state = part.state
        parts.append(part.out)
      np.testing.assert_allclose(jnp.concatenate(parts, 1), want.out, rtol=0, atol=1e-11)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), state, want.state)


@each_case
@pytest.mark.parametrize("impl", ["xla", *further("reference")])
def test_a_new_document_knows_nothing_of_the_past(case, impl):
  with jax.enable_x64(True):
    here, row = scene(case, "float64"), 1
    alone = run(case, here.replace(d_out=here.d_out.at[:, :RESET].set(0)), impl)
    for name, gradient in alone.d_tokens.items():
      assert not np.asarray(gradient[row, :RESET]).any(), name
      assert np.asarray(gradient[row, RESET:]).any(), name
    for path, gradient in alone.d_state.items():
      assert not np.asarray(gradient[row]).any(), path
    # The document at the start of a row instead, other tokens after it.
    moved = here.replace(
      tokens=jax.tree.map(lambda x: jnp.roll(x, -RESET, 1), here.tokens), ids=jnp.zeros_like(here.ids),
      state=here.state.replace(document_B=jnp.full((ROWS,), 3, jnp.int32)), valid=jnp.ones_like(here.valid))
    np.testing.assert_allclose(
      run(case, moved, impl).out[row, : LENGTH - RESET], alone.out[row, RESET:], rtol=0, atol=1e-12)


@each_case
@pytest.mark.parametrize("impl", ["xla", *further("reference")])
def test_invalid_tokens_change_nothing_and_a_row_without_tokens_keeps_its_state(case, impl):
  with jax.enable_x64(True):
    here = scene(case, "float64")

    def spoil(x):
      return jnp.where(here.valid.reshape(ROWS, LENGTH, *(1,) * (x.ndim - 2)), x, jnp.nan)

    clean, dirty = run(case, here, impl), run(case, here.replace(tokens=jax.tree.map(spoil, here.tokens)), impl)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    empty = ~np.asarray(here.valid).any(1)
    assert empty.any()
    jax.tree.map(lambda got, want: np.testing.assert_array_equal(got[empty], want[empty]), clean.state, here.state)
    jax.tree.map(lambda got, want: np.testing.assert_array_equal(got[empty], want[empty]), clean.d_state, here.d_state)


@pytest.mark.parametrize("case", [  # a start is what a state is after the first token
  *(case for case in CASES if not case.name.endswith("-start")),
  *further(*(case for case in CASES if case.name.endswith("-start")))], ids=lambda case: case.name)
def test_long_chunked_scans_in_fp32_stay_as_near_to_float64_as_the_token_scan(case):
  length = 1536
  with jax.enable_x64(True):
    short = whole(scene(case, "float64"))
    rng = np.random.default_rng(4)

    def lengthen(x):
      # Neighbours resemble each other, as after a convolution.
      noise = rng.normal(size=(1, length + 3, *x.shape[2:]))
      return jnp.asarray(sum(noise[:, i : length + i] for i in range(4)) / 2)

    tokens = {name: lengthen(x) for name, x in short.tokens.items()}
    if "k" in tokens:
      tokens["k"] /= jnp.linalg.norm(tokens["k"], axis=-1, keepdims=True)
    gates = {name: jax.nn.sigmoid(3 + tokens[name]) for name in {"step", "decay", "share"} & set(tokens)}
    if "share" in gates:
      gates["share"] = 1 - gates["decay"]

    def outputs(dtype, *impls):
      ids, valid = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), bool)
      inputs = tokens | gates, short.learned, jax.tree.map(lambda x: x[:1], short.state)
      inputs = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, inputs)
      return quick_jit(lambda *inputs: [case.call(*inputs, ids, valid, impl=impl)[0] for impl in impls])(*inputs)

    true, = outputs("float64", "reference")
    chunked, scanned = (
      float(jnp.linalg.norm(out - true) / jnp.linalg.norm(true)) for out in outputs("float32", "xla", "reference"))
    assert chunked <= max(3 * scanned, 1e-6), (chunked, scanned)


def test_linear_attention_is_attention_without_softmax():
  with jax.enable_x64(True):
    here = whole(scene(BY_NAME["linear"], "float64"))
    score = jnp.einsum("bjhk,blhk->bhjl", here.tokens["q"], here.tokens["k"])
    want = jnp.einsum("bhjl,blhv->bjhv", jnp.tril(score), here.tokens["v"])
    np.testing.assert_allclose(run(BY_NAME["linear"], here).out, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("narrow", "wide"), [("scalar_decay", "gla"), ("gated_deltanet", "kimi_delta")])
def test_equal_decays_of_all_channels_are_one_decay(narrow, wide):
  with jax.enable_x64(True):
    here = scene(BY_NAME[narrow], "float64")
    decay = jnp.broadcast_to(here.tokens["decay"], (ROWS, LENGTH, HEADS, KEY))
    spread = here.replace(tokens=here.tokens | {"decay": decay})
    got, want = run(BY_NAME[wide], spread), run(BY_NAME[narrow], here)
    np.testing.assert_allclose(got.out, want.out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
      got.d_tokens["decay"].sum(-1, keepdims=True), want.d_tokens["decay"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["deltanet", "scalar_decay"])
def test_a_document_begins_with_the_start_as_if_it_went_on_from_it(name):
  with jax.enable_x64(True):
    case = BY_NAME[f"{name}-start"]
    here, row = scene(case, "float64"), 1
    memory_BHKV = jnp.broadcast_to(here.learned, (ROWS, *here.learned.shape))
    later = here.cut(RESET, LENGTH, here.state.replace(memory_BHKV=memory_BHKV, document_B=here.ids[:, RESET]))
    got, want = run(case, here, with_gradient=False), run(case, later, with_gradient=False)
    np.testing.assert_allclose(got.out[row, RESET:], want.out[row], rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.state.memory_BHKV[row], want.state.memory_BHKV[row], rtol=0, atol=1e-12)


def test_a_start_of_another_shape_and_kernels_with_one_are_refused():
  here = scene(BY_NAME["deltanet-start"], "float32")
  inputs = tuple(here.tokens[name] for name in ("q", "k", "v"))
  with pytest.raises(ValueError, match=r"op 'delta' was given a start of shape \(1, 3, 5\).* is \(2, 3, 5\); give a"):
    call_matrix_op(
      "delta", max, max, inputs, None, None, None, None, chunk_len=4, impl="xla", start=here.learned[:1])
  with pytest.raises(ValueError, match="cannot run: in its kernels documents begin with an empty memory"):
    run(BY_NAME["deltanet-start"], here, "interpret")


def test_a_full_step_of_the_delta_rule_makes_the_memory_give_the_value():
  with jax.enable_x64(True):
    here = scene(BY_NAME["deltanet"], "float64")
    here = here.replace(tokens=here.tokens | {"q": here.tokens["k"], "step": jnp.ones_like(here.tokens["step"])})
    want = jnp.where(here.valid[..., None, None], here.tokens["v"], 0)
    np.testing.assert_allclose(run(BY_NAME["deltanet"], here).out, want, rtol=0, atol=1e-12)


def test_slots_are_read_by_softmax_of_their_keys():
  """With decay one and shares that are one slot's, slots are sums of the tokens that chose them."""
  with jax.enable_x64(True):
    case = BY_NAME["gated_slots"]
    here = whole(scene(case, "float64"))
    share = jax.nn.one_hot(jnp.arange(LENGTH) % 4, 4)
    share = jnp.broadcast_to(share[None, :, None], here.tokens["share"].shape)
    here = here.replace(tokens=here.tokens | {"share": share, "decay": jnp.ones_like(share)})
    key, value = (jnp.einsum("blhm,blhk->bhmk", share, here.tokens[name]) for name in ("k", "v"))
    weight = jax.nn.softmax(jnp.einsum("bhmk,bhk->bhm", key, here.tokens["q"][:, -1]))
    want = jnp.einsum("bhm,bhmv->bhv", weight, value)
    np.testing.assert_allclose(run(case, here).out[:, -1], want, rtol=0, atol=1e-12)


def test_gradient_of_the_inner_model_is_that_of_its_loss():
  with jax.enable_x64(True):
    rng = np.random.default_rng(1)
    weight, k, v, scale, shift = (
      jnp.asarray(rng.normal(size=shape)) for shape in ((VALUE + 1, VALUE), *((VALUE,),) * 4))
    want = jax.grad(ttt.inner_loss)(weight, k, v, scale, shift)
    k_one = jnp.append(k, 1.0)
    got = jnp.outer(k_one, ttt.output_gradient(k_one @ weight, v - k, scale, shift))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_a_mini_batch_of_ttt_is_one_step_of_descent_on_the_sum_of_its_losses():
  with jax.enable_x64(True):
    case = BY_NAME["ttt_linear"]
    here = whole(scene(case, "float64")).cut(0, CHUNK, whole(scene(case, "float64")).state)
    learner, tokens = here.learned, here.tokens

    def total(start_HKV):
      loss = jax.vmap(jax.vmap(jax.vmap(ttt.inner_loss), (None, 0, 0, None, None)), (None, 0, 0, None, None))
      losses = loss(start_HKV, tokens["k"], tokens["v"], learner.scale_HV, learner.shift_HV)
      return (tokens["step"] * losses).sum((1, 2))

    d_start = jax.jacobian(total)(learner.start_HKV)
    want = learner.start_HKV - learner.rate_C[-1] * d_start
    np.testing.assert_allclose(run(case, here, with_gradient=False).state.weight_BHKV, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gla", "gated_deltanet", "gated_slots", "ttt_linear"])
def test_unknown_implementations_are_refused(name):
  here = scene(BY_NAME[name], "float32")
  with pytest.raises(ValueError, match="is not one of auto, reference"):
    run(BY_NAME[name], here, "chunk")
  with pytest.raises(ValueError, match=r"cannot run: there is no Pallas kernel (for it yet|of it for cpu)"):
    run(BY_NAME[name], here, "pallas")

"""`import lattice_jax as lj`: light, complete, documented by code that runs, and clear about what does not fit."""

from __future__ import annotations

import functools
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lattice_jax as lj
from lattice_jax.memories.registry import FOLDERS, find_memory
from tests.cache.lagkv_numpy import kept_positions
from tests.cache.sep_numpy import kept_positions as separators_kept
from tests.memories.sizes import section_with
from tests.training.test_init_from import write_model

ROOT = pathlib.Path(__file__).parent.parent
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "library.md").read_text(), re.M | re.S)
HEAVY = ("absl", "grain", "jax", "matplotlib", "numpy", "orbax", "tensorflow_datasets", "tensorstore", "wandb")
UNWANTED_BY_LAYERS = tuple(name for name in HEAVY if name not in ("absl", "jax", "numpy"))  # JAX imports absl


def run_python(code):
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
  return done.stdout.split("\n")[:-1]


def test_import_loads_nothing_else():
  loaded = run_python("import sys; import lattice_jax as lj; print(*sys.modules, sep='\\n')")
  assert not {name.split(".")[0] for name in loaded} & set(HEAVY)
  assert [name for name in loaded if name.startswith("lattice_jax")] == ["lattice_jax"]


def test_a_pretrained_model_waits_for_no_library_that_it_does_not_use():
  """Orbax, Grain and the language of GPU kernels take a second and a half together."""
  loaded = run_python("import sys; import lattice_jax.evaluation.loaded_model; print(*sys.modules, sep='\\n')")
  assert "jax" in loaded and not {"orbax", "grain", "matplotlib"} & set(loaded)
  assert "jax.experimental.mosaic.gpu" not in loaded


def test_nothing_defines_a_flag_and_layers_and_ops_load_neither_data_nor_checkpoints():
  code = """
import sys, lattice_jax as lj
lj.LatticeConfig
print("jax" in sys.modules)
[getattr(lj, name) for name in dir(lj) if name[0].isupper()], [getattr(lj.ops, name) for name in dir(lj.ops)]
lj.unbox, lj.whole_segment
print(*sys.modules)
[getattr(lj, name) for name in dir(lj)]
from absl import flags
print(*(module for module in flags.FLAGS.flags_by_module_dict() if module.startswith("lattice_jax")))"""
  had_jax, loaded, flags = run_python(code)
  assert had_jax == "False" and not flags
  assert not {name.split(".")[0] for name in loaded.split()} & set(UNWANTED_BY_LAYERS)


def test_what_is_listed_is_there_and_what_is_not_is_not():
  layers = {type(layer_of(name)).__name__ for name in FOLDERS}
  assert {
    "SoftmaxAttention", "AnchorAttention", "LocalAttention", "VQAttention", "Lattice", "DeltaNet",
    "KimiDelta", "TTTLinear"} <= layers
  assert layers <= set(dir(lj)) and lj.__all__ == dir(lj)
  assert {
    "softmax_attention", "anchor_attention", "local_attention", "vq_attention", "quantize", "lattice", "delta",
    "gated_delta", "kimi_delta", "gated_linear", "gated_slots", "gru", "ttt"} <= set(dir(lj.ops))
  assert all(getattr(lj, name) is not None for name in dir(lj))
  with pytest.raises(AttributeError, match=r"offers no 'Latice'\. Did you mean 'Lattice'"):
    _ = lj.Latice
  with pytest.raises(AttributeError, match=r"offers no 'gated_delt'\. Did you mean 'gated_delta'"):
    _ = lj.ops.gated_delt
  with pytest.raises(AttributeError, match="offers no 'fit'"):
    _ = lj.fit


def test_snippets_of_the_docs_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)  # as for a user, whose folder is not the checkout
  names = {"workdir": tmp_path / "run", "pretrained": write_model(tmp_path / "tiny")}
  for snippet in SNIPPETS:
    exec(compile(snippet, "docs/library.md", "exec"), names)
  assert len(SNIPPETS) == 8
  assert names["solved"].state_BT.shape == (2, 24, 16) and not names["solved"].is_scanned_N.any()
  assert names["y"].shape == names["x"].shape
  together = jnp.concatenate([names["first"].y_BTD, names["rest"].y_BTD], axis=1)
  np.testing.assert_allclose(together, names["whole"].y_BTD, atol=1e-5)
  told = names["apply"](names["params"], names["x"], names["layer"].init_state(2), lj.whole_segment(2, 24))
  # What may be left out is an empty memory and one document. Where they are constants of a program, XLA computes with
  # them in advance, so the two programs round differently.
  np.testing.assert_allclose(told.y_BTD, names["whole"].y_BTD, atol=1e-6)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), names["rest"].state, names["whole"].state)
  assert names["kept_k"].shape == (2, 2 + 2 * 4 + 6, 4, 16) and names["positions"].shape == (2, 16, 4)
  assert "bits per byte" in capsys.readouterr().out


def layer_of(name):
  sizes = {
    "heads": 2, "kv_heads": 2, "key_dim": 4, "value_dim": 4, "slots": 4, "codes": 5, "block_len": 3, "window": 3,
    "mini_batch": 3, "gate_rank": 2, "chunk_len": 2}
  return find_memory(name).make(lj.ModelConfig(dim=32, **section_with(name, **sizes)))


@functools.cache
def abstract_variables(name):
  return jax.eval_shape(layer_of(name).init, jax.random.key(0), jnp.zeros((1, 2, 32)))


def call(name, x=(2, 6, 32), state=None, segment=None):
  """What the layer says of such a call, without computing anything."""
  run = functools.partial(layer_of(name).apply, state=state, segment=segment)
  return jax.eval_shape(run, abstract_variables(name), jnp.zeros(x)).y_BTD.shape


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_layer_refuses_what_does_not_fit(name):
  assert call(name) == (2, 6, 32)
  segment, kind = lj.whole_segment(2, 6), type(layer_of(name)).__name__
  for refused, sentence in (
    ({"x": (6, 32)}, rf"{kind} was given x of shape \(6, 32\), and takes \[batch, tokens, width\]"),
    ({"x": (2, 6, 30)}, rf"{kind} was given x of width 30, and its parameters were made for 32"),
    ({"segment": lj.whole_segment(2, 5)}, r"a segment whose positions_BT has shape \(2, 5\); it must be \(2, 6\)"),
    ({"state": layer_of(name).init_state(2)}, r"a state and no segment; give segment=whole_segment\(2, 6, start=…\)"),
    ({"state": layer_of(name).init_state(3), "segment": segment},
     rf"{kind} was given a state whose \S+ has shape \(3, .*, and needs \(2, .*go on with the state"),
  ):
    with pytest.raises(ValueError, match=sentence):
      call(name, **refused)


def test_a_layer_refuses_a_state_that_was_made_without_convolution():
  other = lj.GLA(lj.GatedLinearConfig(heads=2, key_dim=4, value_dim=4, conv_width=0)).init_state(2)
  with pytest.raises(ValueError, match=r"GLA was given a state without the field 'tail\.q_BWHK', which its state has"):
    call("gla", state=other, segment=lj.whole_segment(2, 6))


def test_a_layer_refuses_a_config_that_cannot_be():
  x = jnp.zeros((1, 2, 32))
  for layer, sentence in (
    (lj.Lattice(lj.LatticeConfig(heads=-1)), "LatticeConfig.heads=-1 must be"),
    (lj.Lattice(lj.LatticeConfig(objective="encoding", unit_values=False)), "is unstable for long values"),
    (lj.SoftmaxAttention(lj.AttentionConfig(heads=3, kv_heads=2)), "heads=3 must be a multiple of"),
    (lj.TTTLinear(lj.TTTConfig(value_dim=3)), "value_dim=3 must be even"),
    (lj.VQAttention(lj.VQConfig(heads=3, kv_heads=2)), "heads=3 must be a multiple of"),
  ):
    with pytest.raises(ValueError, match=sentence):
      jax.eval_shape(layer.init, jax.random.key(0), x)


def op_calls():
  """(name, call of the op with a state) with arrays of two rows, and such a call's state for three."""
  q = jnp.zeros((2, 6, 2, 4))
  rate, gate = jnp.zeros((2, 6, 2)), jnp.zeros((2, 6, 2, 3))
  learner = lj.ops.Learner(jnp.zeros((2, 4, 4)), *[jnp.zeros((2, 4))] * 3, jnp.zeros(3))
  rows = jnp.zeros((2, 5, 4))
  ops = {
    "delta": lambda q, rate, gate, **state: lj.ops.delta(q, q, q, rate, **state),
    "gated_linear": lambda q, rate, gate, **state: lj.ops.gated_linear(q, q, q, **state),
    "gated_slots": lambda q, rate, gate, **state: lj.ops.gated_slots(q, q, q, gate, gate, **state),
    "lattice": lambda q, rate, gate, **state: lj.ops.lattice(q, q, q, rate, None, jnp.zeros((2, 4, 4)), **state),
    "gru": lambda q, rate, gate, **state: lj.ops.gru(
      q, q, q, lj.ops.GRUWeights(*[jnp.zeros((2, 4))] * 3), **state),
    "ttt": lambda q, rate, gate, **state: lj.ops.ttt(q, q, q, rate, learner, **state),
    "online_vq": lambda q, rate, gate, **state: lj.ops.online_vq(q, q, q, codes=5, chunk_len=3, **state),
    "vq": lambda q, rate, gate, **state: lj.ops.vq_attention(
      q, lj.ops.quantize(q, rows), q, rows, jnp.zeros((2, 4, 4)), *[jnp.zeros((2, 4))] * 2, **state),
    "softmax_attention": lambda q, rate, gate, **state: lj.ops.softmax_attention(q, q, q, window=3, **state),
    "local_attention": lambda q, rate, gate, **state: lj.ops.local_attention(q, q, q, **state),
  }
  return {name: (functools.partial(op, q, rate, gate), functools.partial(
    op, *(jnp.zeros((3, *x.shape[1:])) for x in (q, rate, gate)))) for name, op in ops.items()}


@pytest.mark.parametrize("name", op_calls())
def test_an_op_refuses_a_state_of_another_shape(name):
  op, other = op_calls()[name]
  out, state = jax.eval_shape(op)
  assert out.shape == (2, 6, 2, 4)
  wrong = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(other)[1])
  with pytest.raises(ValueError, match=rf"op '{name}' was given a state whose \S+ has shape \(3,.* and needs \(2,"):
    jax.eval_shape(lambda: op(state=wrong))
  jax.eval_shape(lambda state: op(state=state), state)


def test_an_op_refuses_a_state_that_was_made_for_another_form():
  q, step, start = jnp.zeros((2, 6, 2, 4)), jnp.zeros((2, 6, 2)), jnp.zeros((2, 4, 4))
  _, state = lj.ops.lattice(q, q, q, step, None, start)
  with pytest.raises(ValueError, match=r"was given a state without the field 'open\.anchor_BHMV', which its state has"):
    lj.ops.lattice(q, q, q, step, None, start, state, form=lj.ops.Form("frozen", chunk_len=2))


def test_compress_kv_keeps_what_the_policy_says_where_it_stood():
  k, v = (np.asarray(jax.random.normal(jax.random.key(seed), (2, 30, 2, 4))) for seed in (0, 1))
  valid = jnp.arange(30) < jnp.array([[30], [11]])
  kept_k, kept_v, positions = lj.compress_kv(k, v, "lagkv:lag=4,ratio=0.5,sinks=2", valid=valid)
  for row, length in enumerate((30, 11)):
    for head in range(2):
      expected = kept_positions(k[row, :length, head], v[row, :length, head], sinks=2, lag=4, keep=2)
      found = positions[row, :, head].tolist()
      assert found == expected + [-1] * (len(found) - len(expected))
      assert np.array_equal(kept_k[row, :len(expected), head], k[row, expected, head])
      assert np.array_equal(kept_v[row, :len(expected), head], v[row, expected, head])
      assert not kept_k[row, len(expected):, head].any()
  window = lj.CacheConfig(policy="window", tokens=6, sinks=2)
  assert lj.compress_kv(k, v, window)[2][0, :, 0].tolist() == [0, 1, 26, 27, 28, 29]
  marks = np.random.default_rng(0).random((2, 30)) < 0.4
  positions = lj.compress_kv(k, v, "sep:lag=4,ratio=0.5,sinks=2", marks=marks, valid=valid)[2]
  for row, length in enumerate((30, 11)):
    kept = separators_kept(marks[row, :length].tolist(), sinks=2, lag=4, keep=2)
    assert positions[row, :len(kept)].tolist() == [[place] * 2 for place in kept]
  assert jax.eval_shape(lambda: lj.compress_kv(k, v, "h2o:lag=4,keep=1,sinks=2", q=k))[0].shape == (2, 12, 2, 4)


@pytest.mark.parametrize(("policy", "more", "sentence"), [
  ("lagkv", {}, "needs its budget as one of model.cache.keep, model.cache.ratio"),
  ("lagkv:ratio=0.001", {}, "keeps 0 tokens of a partition"),
  ("window:tokens=4", {}, "has no room for a window"),
  ("lagkw:ratio=0.5", {}, r"policy=lagkw:ratio=0.5 names the policy 'lagkw'; full, .* are known. Did you mean 'lagkv'"),
  ("snapkv:ratio=0.5", {}, "'snapkv' scores tokens by the attention that they receive, so compress_kv needs the que"),
  ("snapkv:ratio=0.5", {"q": jnp.zeros((2, 6, 3, 4))}, r"q of shape \(2, 6, 3, 4\) with k of shape \(2, 6, 2, 4\)"),
  ("lagkv:ratio=0.5,skip_layers=1", {}, "skip_layers=1, and knows of no layers"),
  ("sep:ratio=0.5", {}, "'sep' keeps the tokens that are marked as separators, so compress_kv needs to know"),
  ("sep:ratio=0.5", {"marks": jnp.zeros((6, 2), bool)}, r"marks of shape \(6, 2\) and type bool with k of shape"),
  ("sep:ratio=0.5", {"marks": jnp.zeros((2, 6))}, "type float32 with k of shape"),
  ("full", {"v": jnp.zeros((2, 5, 2, 4))}, "only their widths may differ"),
])
def test_compress_kv_refuses_what_cannot_be(policy, more, sentence):
  arrays = {"k": jnp.zeros((2, 6, 2, 4)), "v": jnp.zeros((2, 6, 2, 3))} | more
  with pytest.raises(ValueError, match=sentence):
    lj.compress_kv(policy=policy, **arrays)


def test_train_takes_a_config_in_any_form_and_names_what_is_wrong(tmp_path):
  for config in ({"model": {"pattern": ["latice"]}}, lj.Config(model=lj.ModelConfig(pattern=("latice",)))):
    with pytest.raises(ValueError, match="latice"):
      lj.train(config, tmp_path / "run")
  with pytest.raises(ValueError, match=r"unknown config field model\.lattis"):
    lj.train({"model": {"lattis": {}}}, tmp_path / "run")
  with pytest.raises(ValueError, match=r"no\.py"):
    lj.train(tmp_path / "no.py", tmp_path / "run")
  with pytest.raises(ValueError, match="run"):
    lj.evaluate(tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_layer_works_in_the_scan_of_a_users_module():
  class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
      def body(layer, x, _):
        return x + layer(x).y_BTD, None

      layer = lj.GLA(lj.GatedLinearConfig(heads=1, key_dim=4, value_dim=4))
      scan = nn.scan(
        body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3,
        metadata_params={nn.PARTITION_NAME: "layers"})
      return scan(layer, x, None)[0]

  x = jnp.ones((1, 4, 8))
  variables = lj.unbox(jax.eval_shape(Stack().init, jax.random.key(0), x))
  assert {leaf.shape[0] for leaf in jax.tree.leaves(variables)} == {3}

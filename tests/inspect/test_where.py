"""A profile is joined with the compiled program: names, kinds, parts of the model, runs, bytes. No time is tested."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from lattice_jax import config_text
from lattice_jax.evaluation import loaded_model
from lattice_jax.inspect.hlo import rearranged
from lattice_jax.inspect.instructions import describe_instructions, module_name, module_path
from lattice_jax.inspect.where import by_kind, by_path, format_tables, measure, own_seconds
from lattice_jax.inspect.where_plots import plot_where
from tests.models.tiny_files import LLAMA, make_tensors, write_folder
from tests.thorough import further
from tests.training import tiny

SCRIPT = Path(__file__).parents[2] / "scripts" / "where.py"
TURNS, ROWS, WIDTH = 3, 16, 32


def read_stack(x_BD, weights_NDD):
  """TURNS products, each with its own matrix of a stack."""
  def turn(x_BD, number):
    with jax.named_scope("layer"):
      return jnp.tanh(x_BD @ weights_NDD[number]), None

  return jax.lax.scan(turn, x_BD, jnp.arange(TURNS))[0]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
  given = jnp.ones((ROWS, WIDTH)), jnp.ones((TURNS, WIDTH, WIDTH))
  program = jax.jit(read_stack).lower(*given).compile()
  return measure(
    "a stack", [program.as_text()], lambda: program(*given), calls=4, folder=tmp_path_factory.mktemp("trace"), units=2)


def test_a_loop_counts_by_its_turns_and_the_module_is_known(where):
  products = [one for one in where.spent if one.what.kind in ("dot", "fusion with product", "custom-call")]
  assert products and {one.what.path for one in products} == {"layer"}
  assert [one.runs for one in products] == [TURNS / 2] * len(products)  # of one call of two units
  [loop] = [one for one in where.spent if one.what.kind == "while"]
  assert loop.runs == 1 / 2


def test_totals_are_those_of_all_instructions(where):
  for name_of in (by_kind, by_path):
    assert sum(seconds for _, seconds, *_ in where.totals(name_of)) == pytest.approx(where.busy)
  record = where.record()
  assert record["busy_seconds"] == pytest.approx(sum(line["seconds"] for line in record["instructions"]))
  assert "| layer |" in format_tables(where)


def test_the_picture_names_every_part_and_is_the_same_twice(where, tmp_path):
  first, second = (plot_where(where, tmp_path / name / "where.svg") for name in ("a", "b"))
  assert first.read_bytes() == second.read_bytes()
  assert all(name in first.read_text() for name, *_ in where.totals(by_path)[:2])


def test_another_program_is_not_found(tmp_path):
  program = jax.jit(lambda x: x + 1).lower(1.0).compile()
  text = program.as_text().replace(module_name(program.as_text()), "jit_other")
  with pytest.raises(ValueError, match="names no instruction of jit_other; this backend does not report them"):
    measure("other", [text], lambda: program(1.0), calls=1, folder=tmp_path)


def event(start, duration, name=""):
  stats = {"hlo_op": name, "hlo_module": "m"} if name else {}
  return SimpleNamespace(start_ns=start, duration_ns=duration, stats=stats.items())


def test_a_loops_time_is_not_that_of_its_body():
  one = [event(0, 100, "while"), event(5, 90), event(10, 20, "a"), event(30, 50, "call"), event(40, 30, "b")]
  other = [event(0, 7, "a")]  # on another thread, at the same time
  profile = SimpleNamespace(planes=[SimpleNamespace(lines=[SimpleNamespace(events=[*reversed(one)]),
                                                           SimpleNamespace(events=other)])])
  assert sorted((name, round(1e9 * seconds)) for _, name, seconds in own_seconds(profile)) == [
    ("a", 7), ("a", 20), ("b", 30), ("call", 20), ("while", 30)]


@pytest.mark.parametrize(("op_name", "path", "pass_"), [
  ("jit(program)/Decoder/while/body/closed_call/groups/block_0/memory/dot_general",
   "Decoder/groups/block_0/memory", "forward"),
  ("jit(f)/transpose(jvp(Decoder))/while/body/groups/mlp/BTD,DF->BTF/dot_general", "Decoder/groups/mlp", "backward"),
  ("jit(f)/transpose(jvp(D))/checkpoint/rematted_computation/groups/add", "D/groups", "again"),
  ("jit(f)/memory/transpose;groups/block_0/x", "memory", "forward"),
  ("jit(f)/jit(_where)/select_n", "outside modules", "forward"),
])
def test_a_path_holds_modules_alone(op_name, path, pass_):
  assert module_path(op_name) == (path, pass_)


FUSED = """HloModule jit_f, is_scheduled=true

%cut (p0: s32[], p1: f32[3,8,4]) -> f32[8,4] {
  %p1 = f32[3,8,4]{2,1,0} parameter(1)
  %p0 = s32[] parameter(0)
  %cut_out = f32[1,8,4]{2,1,0} dynamic-slice(%p1, %p0, %p0, %p0), dynamic_slice_sizes={1,8,4}
  ROOT %turned = f32[8,4]{0,1} bitcast(%cut_out)
}

%product (q0: f32[8,4], q1: f32[8]) -> f32[4] {
  %q0 = f32[8,4]{1,0} parameter(0)
  %q1 = f32[8]{0} parameter(1)
  %inside = f32[4,8]{1,0} transpose(%q0), dimensions={1,0}
  ROOT %dot.1 = f32[4]{0} dot(%inside, %q1), metadata={op_name="jit(f)/head/dot_general"}
}

%put (r0: f32[3,8,4], r1: bf16[1,8,4]) -> f32[3,8,4] {
  %r0 = f32[3,8,4]{2,1,0} parameter(0)
  %r1 = bf16[1,8,4]{2,1,0} parameter(1)
  %wide = f32[1,8,4]{2,1,0} convert(%r1)
  %zero = s32[] constant(0)
  ROOT %put_in = f32[3,8,4]{2,1,0} dynamic-update-slice(%r0, %wide, %zero, %zero, %zero)
}

ENTRY %main (a0: s32[], a1: f32[3,8,4], a2: f32[8], a3: bf16[1,8,4]) -> (f32[4], /*index=1*/f32[3,8,4]) {
  %a0 = s32[] parameter(0)
  %a1 = f32[3,8,4]{2,1,0} parameter(1)
  %a2 = f32[8]{0} parameter(2)
  %a3 = bf16[1,8,4]{2,1,0} parameter(3)
  %moving = f32[8,4]{1,0} fusion(%a0, %a1), kind=kLoop, calls=%cut
  %written = f32[4,8]{1,0} transpose(%moving), dimensions={1,0}, metadata={op_name="jit(f)/head/transpose"}
  %reading = f32[4]{0} fusion(%moving, %a2), kind=kLoop, calls=%product
  %adding = f32[3,8,4]{2,1,0} fusion(%a1, %a3), kind=kLoop, calls=%put
  ROOT %out = (f32[4]{0}, /*index=1*/f32[3,8,4]{2,1,0}) tuple(%reading, %adding)
}
"""


def test_what_a_fusion_reads_writes_and_belongs_to():
  described = describe_instructions(FUSED)
  cut, product, put = (described[name] for name in ("moving", "reading", "adding"))
  assert (cut.kind, product.kind, put.kind) == ("fusion that moves", "fusion with product", "fusion")
  assert cut.bytes == 4 + 2 * 8 * 4 * 4  # of the stack only what is cut out
  assert product.bytes == 4 * (8 * 4 + 8 + 4)
  assert put.bytes == 2 * 8 * 4 + 4 * 8 * 4  # written where it lies
  assert described["out"].bytes == 0
  # the compiler's own instruction belongs to what uses it
  assert (cut.path, product.path) == ("head", "head")


NESTED = FUSED.partition("ENTRY")[0] + """
%cut_and_multiply (s0: s32[], s1: f32[3,8,4], s2: f32[8]) -> f32[4] {
  %s0 = s32[] parameter(0)
  %s1 = f32[3,8,4]{2,1,0} parameter(1)
  %s2 = f32[8]{0} parameter(2)
  %nested_cut = f32[8,4]{1,0} fusion(%s0, %s1), kind=kLoop, calls=%cut
  ROOT %nested_product = f32[4]{0} fusion(%nested_cut, %s2), kind=kLoop, calls=%product
}

%put_twice (t0: f32[3,8,4], t1: bf16[1,8,4]) -> (f32[3,8,4], (bf16[8], bf16[8]), bf16[1,8,4]) {
  %t2 = bf16[] constant(0)
  %t0 = f32[3,8,4]{2,1,0} parameter(0)
  %t1 = bf16[1,8,4]{2,1,0} parameter(1)
  %nested_put = f32[3,8,4]{2,1,0} fusion(%t0, %t1), kind=kLoop, calls=%put
  %negative = bf16[1,8,4]{2,1,0} negate(%t1)
  %twins = (bf16[8]{0}, bf16[8]{0}) reduce(%negative, %negative, %t2, %t2), dimensions={0,2}, to_apply=%pair
  ROOT %both = (f32[3,8,4]{2,1,0}, (bf16[8]{0}, bf16[8]{0}), bf16[1,8,4]{2,1,0}) tuple(%nested_put, %twins, %negative)
}

ENTRY %main (a0: s32[], a1: f32[3,8,4], a2: f32[8], a3: bf16[1,8,4]) -> (f32[4], (f32[3,8,4], bf16[1,8,4])) {
  %a0 = s32[] parameter(0)
  %a1 = f32[3,8,4]{2,1,0} parameter(1)
  %a2 = f32[8]{0} parameter(2)
  %a3 = bf16[1,8,4]{2,1,0} parameter(3)
  %reading = f32[4]{0} fusion(%a0, %a1, %a2), kind=kOutput, calls=%cut_and_multiply
  %place = f32[3,8,4]{2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %adding = (f32[3,8,4]{2,1,0}, (bf16[8], bf16[8]), bf16[1,8,4]) fusion(%place, %a3), kind=kLoop, calls=%put_twice
  ROOT %out = (f32[4]{0}, (f32[3,8,4]{2,1,0}, bf16[1,8,4]{2,1,0})) tuple(%reading, %adding)
}
"""


def test_fusions_inside_a_fusion_read_and_write_parts_too():
  described = describe_instructions(NESTED)
  assert described["reading"].bytes == 4 + 4 * (8 * 4 + 8 + 4)  # the place, what is cut out, the rest
  assert described["adding"].bytes == 2 * 8 * 4 + 4 * 8 * 4 + 2 * 8 + 2 * 8 + 2 * 8 * 4
  assert described["place"].bytes == 0


def test_a_transpose_inside_a_product_is_no_array():
  assert rearranged(FUSED, at_least=1) == [("f32[4,8]", 32)]


@pytest.fixture
def script(monkeypatch):
  def run(*words):
    monkeypatch.setattr(sys, "argv", ["where.py", "--calls=1", *words])
    runpy.run_path(str(SCRIPT))["main"]()

  return run


def test_the_command_times_an_update(script, monkeypatch, tmp_path, capsys):
  config = tiny.make_config(model__layers=1)
  monkeypatch.setattr(config_text, "read_config", lambda name, changes: config)
  script("--config=tiny", f"--out={tmp_path}")
  record, said = json.loads((tmp_path / "update.json").read_text()), capsys.readouterr().out
  paths = {line["name"] for line in record["by_path"]}
  assert any(path.endswith("block_0/memory (backward)") for path in paths), paths
  assert "one update" in said and (tmp_path / "update.svg").exists()


@pytest.mark.parametrize("part", ["decode", "first", *further("prefill")])
def test_the_command_times_a_pretrained_model(script, monkeypatch, tmp_path, capsys, part):
  model, load = LLAMA | {"max_position_embeddings": 256, "vocab_size": 259}, loaded_model.load_pretrained_model
  monkeypatch.setattr(loaded_model, "load_pretrained_model", lambda name, overrides, **options: load(
    name, overrides=["data.tokenizer=bytes", *overrides], **options))
  write_folder(tmp_path / "model", model, make_tensors(model))
  script(f"--pretrained={tmp_path / 'model'}", f"--part={part}", "--tokens=5", f"--out={tmp_path}")
  record = json.loads((tmp_path / f"{part}.json").read_text())
  runs = {line["name"]: line["runs"] for line in record["by_path"]}
  assert any(path.endswith("/mlp") for path in runs), runs
  assert "copied or transposed: nothing" in capsys.readouterr().out


def test_a_part_of_an_update_is_a_mistake(script):
  with pytest.raises(ValueError, match="are of --pretrained, and --config times an update; leave them out"):
    script("--config=tiny", "--part=decode", "--out=x")

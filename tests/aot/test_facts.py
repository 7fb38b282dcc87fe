"""What the compile suite reads from a compiled program, and when it fails; scripts/test.sh --aot does the compiling."""

import json

import jax

from lattice_jax.aot import bundles, cases, results_page, targets, train_step
from lattice_jax.inspect import hlo

KERNEL = """
  %x = f32[8,64]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"scoped_memory_configs":
[{"memory_space":"1","offset":"0","size":"1048576"}],"used_scoped_memory_configs":[{"memory_space":"1","size":"4096"}]}
""".replace("\n[", "[")
OTHERS = """
  %b = bf16[4,2048]{1,0} all-gather(%x), dimensions={0}
  %c = (f32[2]{0}, f32[2]{0}) all-reduce-start(%b)
  %d = f32[2]{0} all-reduce-done(%c)
  %e = f32[2,2048,2048]{2,1,0} dot(%b, %b)
"""


def test_kernels_collectives_and_memory_are_read():
  text = KERNEL + OTHERS
  assert hlo.count_kernels(text) == 1
  assert hlo.kernel_names(text) == {"x"}
  assert hlo.count_collectives(text) == {"all-gather": 1, "all-reduce": 1}
  assert hlo.vmem_of_kernels(text) == [(4096, 1 << 20)]
  assert hlo.square_buffers(text, 2048) == ["f32[2,2048,2048]"]
  assert not hlo.square_buffers(text, 4096)
  assert hlo.square_buffers("f32[2,1024,4096]", 4096, shards=4) == ["f32[2,1024,4096]"]
  assert not hlo.square_buffers("f32[2,1024,4096] f32[1024,1024]", 4096, shards=2)


def test_spills_of_kernels_alone_are_counted_and_dumps_do_not_pile_up(tmp_path):
  units = "MXU, XLU, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL"
  for name, spills in (("flash-2.1", 3), ("copy.1", 50)):
    (tmp_path / f"17954170-{name}-00-{bundles.DUMP}.txt").write_text(
      f"== CAPACITY:\n{units}\n4 3 3 3 1 1\n== UTILIZATION:\n0 0 1 2 1 {spills}\n0 0 0 1 1 1\n")
  (tmp_path / "17954170-TLP-hlo.txt").write_text("HloModule")
  assert bundles.take(tmp_path, {"flash-2.1"}) == {"bundles": 2, "spills": 4, "fills": 3}
  assert not list(tmp_path.iterdir())


def test_what_the_compiler_of_nvidia_says_is_read():
  printed = "0 bytes spill stores, 8 bytes spill loads\nptxas info : Used 182 registers, used 2 barriers"
  assert cases._resources_of_hopper(printed) == {"registers": 182, "spill_bytes": 8}
  assert cases._resources_of_hopper("") == {}


def test_each_thing_that_is_wrong_fails():
  (v5e, v5p, v6e), record = targets.TPUS, {"kernels": 1, "vmem_limit_bytes": 100 << 20}
  assert not cases._failures(record, v5e, [])
  assert "100" in results_page._show("vmem_limit_bytes", record["vmem_limit_bytes"])
  assert "a core has 67,108,864" in cases._failures(record, v5p, [])[0]
  assert "no Pallas kernel" in cases._failures({"kernels": 0}, v5e, [])[0]
  assert "f32[9,9]" in cases._failures({"kernels": 1}, v5e, ["f32[9,9]"])[0]
  assert "spilled: 8 bytes" in cases._failures({"kernels": 1, "spill_bytes": 8}, targets.H100, [])[0]
  spilled = {"kernels": 1, "spills": 8}
  assert "spilled: 8 times" in cases._failures(spilled | {"case": "lattice_odd_m40_d96"}, v5e, [])[0]
  searched = spilled | {"case": "nearest_code"}
  assert not cases._failures(searched, v6e, [])
  assert "8 times, 0 are allowed" in cases._failures(searched, v5e, [])[0]


def test_each_thing_that_is_wrong_with_an_update_fails():
  right = {"peak_bytes": 99, "pairs": [], "kernels": 1}
  assert not train_step.step_failures(right, 100)
  assert "needs 99 bytes, and 99 are allowed" in train_step.step_failures(right, 99)[0]
  assert "f32[9,9]" in train_step.step_failures(right | {"pairs": ["f32[9,9]"]}, 100)[0]
  assert "no Pallas kernel" in train_step.step_failures(right | {"kernels": 0}, 100)[0]


def test_what_does_not_compile_is_a_line_and_does_not_end_the_suite(monkeypatch):
  monkeypatch.setattr(cases, "one_device", lambda target: jax.sharding.SingleDeviceSharding(jax.devices()[0]))

  def refused(x):
    raise ValueError("no such thing")

  record = cases.compile_case(("case", refused, [jax.ShapeDtypeStruct((2, 2), "float32")]), targets.TPUS[0])
  assert record["failures"] == ["does not compile: no such thing"]


def test_lines_of_other_cases_stay(tmp_path):
  one, two = ({"case": name, "target": "v5e", "kernels": 1, "failures": []} for name in ("one", "two"))
  results_page.write(tmp_path, "tpu", [one, two])
  results_page.write(tmp_path, "tpu", [two | {"kernels": 3}])
  records = json.loads((tmp_path / "tpu.json").read_text())["records"]
  assert [record["kernels"] for record in records] == [1, 3]
  assert "| two | v5e | 3 | yes |" in (tmp_path / "README.md").read_text()

"""What a program moves, counted by hand in a small one: loops, groups of chips, fast memory."""

from __future__ import annotations

import pytest

from lattice_jax.inspect.traffic import read_traffic

MESH = {"data": 4, "seq": 1, "model": 2}
# 8 chips; a loop of 3 turns around a gather over model and a permutation over data; a sum over all in a fusion's place.
PROGRAM = """
HloModule jit_f, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %part = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %gathered = f32[4,16]{1,0} all-gather(%part), channel_id=1, replica_groups=GATHER, dimensions={1}
  %moved = f32[4,8]{1,0} collective-permute(%part), channel_id=2, source_target_pairs={{0,2},{2,4},{4,6}}
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %moved)
}

%cond (p: (s32[], f32[4,8])) -> pred[] {
  %p.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %goes_on = pred[] constant(true)
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %near = f32[4,8]{1,0:T(8,128)S(1)} negate(%a)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%cond, body=%body, backend_config=TURNS
  %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %all = f32[4,8]{1,0} all-reduce(%result), channel_id=3, replica_groups=ALL, to_apply=%add
}
"""
TURNS = '{"known_trip_count":{"n":"3"}}'
PART = 4 * 8 * 4


def traffic(gather="[4,2]<=[8]", everyone="{{0,1,2,3,4,5,6,7}}", turns=TURNS, program=PROGRAM):
  return read_traffic(program.replace("GATHER", gather).replace("ALL,", f"{everyone},").replace("TURNS", turns), MESH)


def by_name(moved):
  return {collective.name: collective for collective in moved.collectives}


def test_what_a_chip_receives_is_counted_by_hand():
  found = by_name(traffic())
  gather, move, reduce = (found[name] for name in ("all-gather", "collective-permute", "all-reduce"))
  assert (gather.name, gather.axes, gather.group, gather.runs, gather.received_bytes) == (
    "all-gather", ("model",), 2, 3, PART)
  assert (move.name, move.axes, move.runs, move.received_bytes) == ("collective-permute", ("data",), 3, PART)
  assert (reduce.name, reduce.axes, reduce.group, reduce.runs) == ("all-reduce", ("data", "model"), 8, 1)
  assert reduce.received_bytes == 2 * PART * 7 / 8
  assert traffic().received_bytes == 3 * PART + 3 * PART + 2 * PART * 7 / 8


@pytest.mark.parametrize(("written", "axes", "size"), [
  ("{{0,1},{2,3},{4,5},{6,7}}", ("model",), 2),
  ("[2,4]<=[4,2]T(1,0)", ("data",), 4),
  ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", ("model",), 2),
  ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", ("data",), 4),
  ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", ("data", "model"), 8),
  ("mesh['axis_0'=8] {'axis_0':(4)2}", ("model",), 2), ("mesh['axis_0'=8] {'axis_0':(1)4}", ("data",), 4),
  ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0'}", ("model",), 2),
  ("{}", ("data", "model"), 8)])
def test_groups_are_read_however_they_are_written(written, axes, size):
  gather = by_name(traffic(gather=written))["all-gather"]
  assert (gather.axes, gather.group, gather.received_bytes) == (axes, size, PART * (size - 1))


def test_an_unknown_way_to_write_them_is_refused():
  with pytest.raises(ValueError, match="written in an unknown way"):
    traffic(gather="nonsense")


def test_loops_that_do_not_say_their_turns_count_once_and_are_told():
  once = traffic(turns="{}")
  assert (once.uncounted_loops, by_name(once)["all-gather"].runs) == (1, 1)
  assert traffic().uncounted_loops == 0


def test_a_loop_that_counts_between_constants_says_its_turns_too():
  """As XLA writes it for TPUs."""
  counted = PROGRAM.replace("%goes_on = pred[] constant(true)", "%goes_on = pred[] compare(%n, %most), direction=LT")
  counted = counted.replace("  %p.1 =", "  %most = s32[] constant(5)\n  %p.1 =").replace(
    "  ROOT %goes_on", "  %n = s32[] get-tuple-element(%p.1), index=0\n  ROOT %goes_on").replace(
    "tuple(%zero,", "tuple(%begin,").replace("  %near", "  %begin = s32[] copy(%zero)\n  %near")
  found = traffic(turns="{}", program=counted)
  assert (found.uncounted_loops, by_name(found)["all-gather"].runs) == (0, 5)


@pytest.mark.parametrize(("started", "expected"), [
  ("(f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%a)", PART),
  ("((f32[4,8]{1,0}), f32[2,8]{1,0:S(1)}, u32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:8]}", PART // 2)])
def test_what_is_fetched_into_fast_memory_is_counted_once(started, expected):
  fetched = PROGRAM.replace("  %start =", f"  %fetch = {started}\n  %start =", 1)
  assert traffic(program=fetched).memory_bytes - traffic().memory_bytes == expected


def test_fast_memory_is_not_counted():
  """Read by the negation, whose result stays in the core; by three turns and by the sum, and written."""
  assert traffic().memory_bytes == PART + 3 * (PART + 2 * PART) + 3 * 2 * PART + 2 * PART


def test_several_arrays_that_begin_to_be_gathered_together_are_counted_as_each_alone():
  """As XLA writes it for GPUs; the other end says nothing new."""
  started = PROGRAM.replace(
    "  %gathered = f32[4,16]{1,0} all-gather(%part),",
    "  %gather = ((f32[4,8]{1,0}, f32[4,8]{1,0}), (f32[4,16]{1,0}, f32[4,16]{1,0})) all-gather-start(%part, %part),")
  started = started.replace(
    "  %moved =", "  %gathered = (f32[4,16]{1,0}, f32[4,16]{1,0}) all-gather-done(%gather)\n  %moved =", 1)
  gather = [one for one in traffic(program=started).collectives if one.name == "all-gather"]
  assert [(one.runs, one.received_bytes) for one in gather] == [(3, 2 * PART)]
  # twice what one array takes: each is read, and written twice as large
  one_array = traffic().memory_bytes
  assert traffic(program=started).memory_bytes - one_array == 3 * (PART + 2 * PART)


def test_a_collective_that_goes_on_in_steps_inside_fusions_counts_once_a_beginning():
  step = """
%step_NUMBER (part: f32[4,8]) -> f32[4,16] {
  %part_NUMBER = f32[4,8]{1,0} parameter(0)
  ROOT %whole_NUMBER = f32[4,16]{1,0} all-gather(%part_NUMBER), channel_id=9, replica_groups=[4,2]<=[8], dimensions={1}
}
"""
  program = PROGRAM.replace(
    "\n%body (", step.replace("NUMBER", "a") + step.replace("NUMBER", "b") + "\n%body (").replace(
    "  %gathered =", "  %on = f32[4,16]{1,0} fusion(%part), kind=kCustom, calls=%step_b\n  %gathered =").replace(
    "  %start = (", "  %begun = f32[4,16]{1,0} fusion(%a), kind=kCustom, calls=%step_a\n  %start = (")
  found, before = traffic(program=program), traffic()
  assert found.received_bytes - before.received_bytes == PART
  assert found.memory_bytes - before.memory_bytes == PART + 2 * PART  # read and written once too

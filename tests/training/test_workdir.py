"""What a workdir remembers of the evaluations that a run has done."""

from __future__ import annotations

import json

from lattice_jax.training.workdir import evaluated_steps


def test_an_evaluation_of_the_split_at_the_step_counts(tmp_path):
  evaluations = (5, "validation"), (10, "validation"), (10, "test"), (15, "validation")
  records = [{"step": 5, "loss": 1.0}, *(
    {"step": step, "split": split, "protocol": "cold"} for step, split in evaluations)]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  assert evaluated_steps(tmp_path, "validation", 10) == {10}
  assert evaluated_steps(tmp_path, "test", 5) == set()

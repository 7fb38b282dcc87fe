"""At the paper's size: commands as they are to be typed, an estimate that says what it is, and figures of runs."""

from __future__ import annotations

import json
import sys

import pytest

from lattice_jax.config_checks import to_dict
from lattice_jax.config_text import read_config
from lattice_jax.reproduce.paper import commands_of, estimate, find_figures, preflight_words, workdir_of
from lattice_jax.reproduce.registry import TABLES, find_row
from lattice_jax.reproduce.rows import Train
from lattice_jax.source_code import ROOT
from scripts import reproduce as script

CODES, CACHE = TABLES["vq_codes"], TABLES["vq_cache"]


def test_a_row_prints_its_training_as_the_launcher_starts_it_and_its_evaluation():
  paper = find_row(CODES, "s256").paper
  arguments = "--config=configs/vq_enwik8.py --config.model.vq.codes=256 --workdir=runs/a"
  assert commands_of(paper, "runs/a", "none") == [
    f"python train.py {arguments}", "python eval.py --workdir=runs/a --split=validation"]
  assert commands_of(paper, "runs/a", "slurm")[0] == f"sbatch --nodes=NODES scripts/launch/slurm.sh {arguments}"
  assert commands_of(paper, "runs/a", "tpu_pod")[0].endswith(f"-- {arguments}")
  assert preflight_words(paper.make, "v5e:8x8", 2.0, 0.3) == [
    "configs/vq_enwik8.py", "--topology=v5e:8x8", "--config.model.vq.codes=256", "--utilisation=0.3", "--price=2"]


def test_rows_of_the_same_training_share_its_folder():
  seen = {}
  first = workdir_of(CODES, find_row(CODES, "s256"), seen)
  assert first == "runs/reproduce_paper/vq_codes/s256"
  assert workdir_of(CACHE, find_row(CACHE, "on"), seen) == first
  assert workdir_of(CACHE, find_row(CACHE, "off"), seen) == "runs/reproduce_paper/vq_cache/off"


def test_an_estimate_says_that_it_is_by_formula():
  config = read_config(str(ROOT / "configs/ablation_lattice.py:smoke"), ["data.batch=16"])
  known = estimate(config, "v5e:2x2", utilisation=0.5)
  half = estimate(config, "v5e:2x2", utilisation=0.25)
  assert half.hours == pytest.approx(2 * known.hours) and known.chips == 4 and known.parameters > 1000
  text = known.text(utilisation=0.5, price=3.0)
  assert "By formula" in text and "at 50%" in text and "at 3 for a chip-hour" in text
  with pytest.raises(ValueError, match="not divisible"):
    estimate(config, "v5e:16x16", utilisation=0.5)


def make_run(folder, make, seed, *, steps=None, **results):
  """A workdir as train.py and eval.py leave it."""
  config = to_dict(read_config(str(ROOT / make.config), [*make.overrides, f"train.seed={seed}"]))
  folder.mkdir()
  (folder / "run.json").write_text(json.dumps({"config": config, "git_commit": "abc", "devices": ["TPU v5e"] * 8}))
  result = {
    "split": "validation", "protocol": "cold", "seq_len": 8192, "chunk_len": 2048, "overrides": [],
    "step": steps or config["train"]["steps"], "tokens": 5, "split_tokens": 5, "bits_per_byte": 1.0} | results
  (folder / "eval_a.json").write_text(json.dumps(result))
  lines = [{"step": step, "tokens_per_second": 100.0 * (1 + seed), "time_step": 900.0} for step in (1, 2)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return folder


def test_figures_come_from_whole_evaluations_of_finished_runs_of_the_rows_config(tmp_path):
  row = find_row(CODES, "s256")
  make, other = row.paper.make, Train("configs/vq_enwik8.py", ("model.vq.codes=512",))
  runs = [
    make_run(tmp_path / "a", make, 0, bits_per_byte=1.01), make_run(tmp_path / "b", make, 1, bits_per_byte=1.03),
    make_run(tmp_path / "c", other, 0), make_run(tmp_path / "d", make, 2, steps=10),
    make_run(tmp_path / "e", make, 3, split="test"), make_run(tmp_path / "f", make, 4, tokens=4),
    make_run(tmp_path / "g", make, 5, overrides=["model.vq.cache=False"]),
    make_run(tmp_path / "h", make, 6, seq_len=64)]
  found = find_figures(CODES, row, runs)
  assert [one.figure for one in found] == [1.01, 1.03]
  assert (found[0].commit, found[0].machine, found[0].chip_hours) == ("abc", "8 × TPU v5e", 4.0)
  assert find_figures(CODES, find_row(CODES, "s1024"), runs) == []


def test_a_time_is_over_that_of_another_tables_row(tmp_path):
  row = find_row(CACHE, "off_time")
  base = find_row(CODES, "s512").paper.make
  runs = [make_run(tmp_path / "a", row.paper.make, 1)]
  assert find_figures(CACHE, row, runs) == []  # nothing to divide by
  runs.append(make_run(tmp_path / "b", base, 0))
  (found,) = find_figures(CACHE, row, runs)
  assert found.figure == pytest.approx(0.5)  # 200 against 100 tokens a second


def call(monkeypatch, capsys, *words):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
  status = script.main()
  return status, capsys.readouterr().out


def test_the_command_prints_what_a_row_takes_and_judges_what_there_is(monkeypatch, capsys, tmp_path):
  monkeypatch.setenv("LATTICE_JAX_BACKEND", "tpu")
  row = find_row(CODES, "s256")
  run = make_run(tmp_path / "run", row.paper.make, 0, bits_per_byte=1.012)
  status, text = call(monkeypatch, capsys, "vq_codes", "--row=s256,s256_time", "--scale=paper", "--price=2",
                      "--workdirs", str(run), f"--out={tmp_path / 'out'}")
  assert status == 0 and "published: 1.010 bits per byte [secondary]" in text and "ours: 1.012 – differs" in text
  assert "184,509,187 parameters; on v5e:8x8" in text and "takes: as above" in text
  kept = json.loads((tmp_path / "out" / "paper.json").read_text())
  assert kept["vq_codes/s256"][0]["figure"] == 1.012 and kept["vq_codes/s256"][0]["run"] == str(run)


def test_the_command_lists_rows_and_refuses_names_that_are_not_there(monkeypatch, capsys, tmp_path):
  status, text = call(monkeypatch, capsys, "vq_cache", "--row=off", f"--out={tmp_path}")
  assert status == 0 and "1.026 bits per byte [secondary]" in text and "| on |" not in text and "not run yet" in text
  for words, sentence in (
      (["vq_cach"], "Did you mean 'vq_cache'"), (["vq_cache", "--row=of"], "Did you mean 'off'"),
      (["--row=off"], "name the table before it"), (["vq_cache", "--page_only"], "goes with --scale=sample"),
      (["vq_cache", "--scale=paper", "--topology=v5e:3x3"], "is no size"),
      (["vq_cache", "--scale=paper", "--workdirs", str(tmp_path)], "holds no run")):
    with pytest.raises(ValueError, match=sentence):
      call(monkeypatch, capsys, *words)

"""README and the pages of docs/: error sentences are those of the code, figures of the picture those of the results."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from scripts import check_docs

ROOT = pathlib.Path(__file__).parents[1]
FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


def texts_of(node):
  """A string literal with … for each value that is put into it; None for other nodes."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  if isinstance(node, ast.JoinedStr):
    return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
  return None


@pytest.fixture(scope="module")
def sentences():
  files = [*ROOT.glob("*.py"), *ROOT.glob("lattice_jax/**/*.py")]
  nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
  return "\n".join(text.replace("`", "") for node in nodes if (text := texts_of(node)))


@pytest.mark.parametrize("sentence", re.findall(r"(?m)^`(.+)`$", FAQ), ids=lambda sentence: sentence[:40])
def test_explained_error_sentences_are_those_of_the_code(sentence, sentences):
  fixed = sentence.rstrip("…. ")
  assert fixed in sentences, f"docs/faq.md explains «{sentence}», which no program says (any more)"


def test_the_explained_sentences_are_many():
  assert 20 <= len(re.findall(r"(?m)^`(.+)`$\n:   ", FAQ)) <= 40


def test_the_first_page_fits_a_screen_or_two():
  assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.slow
def test_the_seven_lines_of_python_run():
  block, = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"))
  *lines, last = block.splitlines()
  assert len(lines) == 6 and last.startswith("print(lj.generate(lj.load_pretrained(")
  names = {}
  exec("\n".join(lines), names)  # the last line needs a package that not everyone has
  assert names["out"].y_BTD.shape == (2, 512, 128)
  assert names["k"].shape == names["v"].shape and names["k"].shape[1] < 512
  assert callable(names["lj"].generate) and callable(names["lj"].load_pretrained)


@pytest.mark.slow
def test_the_picture_shows_the_stored_figures(tmp_path):
  source = (ROOT / "docs" / "pictures" / "memories.py").read_text(encoding="utf-8")
  copy = tmp_path / "docs" / "pictures" / "memories.py"
  copy.parent.mkdir(parents=True)
  copy.write_text(source)
  (tmp_path / "docs" / "results").symlink_to(ROOT / "docs" / "results")
  subprocess.run([sys.executable, copy], check=True)
  drawn, stored = (path.with_suffix(".svg").read_text() for path in (copy, ROOT / "docs" / "pictures" / "memories.py"))
  assert drawn == stored, "run `python docs/pictures/memories.py`"
  assert len(stored) < 300_000


REFUSED = {
  "python train.py --config=configs/quickstart.py:smoky --workdir=runs/a": "smoky",
  "python train.py --config=configs/quickstart.py --workdir=runs/a --config.train.step=3": "Did you mean 'steps'",
  "python train.py --config=configs/quickstart.py --workdir=runs/a --config.data.update_len=7": "does not divide",
  "python eval.py --workdir=runs/a --set=model.vq.codes=no": "model.vq.codes",
  "python eval.py --pretrained=smollm2 --cache=lagkv:ratios=0.5": "ratios",
  "python eval.py --pretrained=smollm2 --peers=window": "--task",
  "python scripts/plot.py --wat=codebook runs/a": "--wat",
  "python scripts/plots.py runs/a": "there is no scripts/plots.py",
  "python scripts/sweep.py configs/sweeps/nothing.yaml": "there is no configs/sweeps/nothing.yaml",
  "bash scripts/test.sh tests/test_none.py": "there is no tests/test_none.py",
  "pip install tensorboard==0.1": "pinned nowhere",
  "`--config.model.vq.code=3`": "model.vq.code",
  "`--wide`": "no command has a flag --wide",
  "`lattice_jax/layers/vq.py`": "there is no lattice_jax/layers/vq.py"}
ACCEPTED = (
  "python train.py --config=configs/quickstart.py:smoke --workdir=runs/a --config.train.steps=3",
  "python scripts/plot.py --what=codebook runs/a  # of a run",
  "LATTICE_JAX_IMPL=xla python -m lattice_jax.self_check --out=there")


@pytest.mark.slow
@pytest.mark.timeout(600)  # each command is a process
def test_commands_that_would_be_refused_are_found_and_no_others(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("\n".join(line if line[0] == "`" else f"    {line}" for line in (*REFUSED, *ACCEPTED)))
  done = subprocess.run(
    [sys.executable, "scripts/check_docs.py", page], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1, done.stderr
  *lines, summary = done.stdout.splitlines()
  found = "\n".join(lines).split(f"{page}: ")[1:]
  assert len(found) == len(REFUSED) and summary.endswith(f" {len(REFUSED)} mistakes."), done.stdout
  for said, reason in zip(found, REFUSED.values(), strict=True):
    assert reason in said


def test_commands_are_found_wherever_a_page_shows_them():
  page = """
    C="--cache=full"
    python eval.py --task=text \\
      $C
    y = x

Write `python train.py --help` or `eval.py --split=test`, with `--temperature` of 1.

```bash
ls runs
```

```python
python = 3
```
"""
  variables = {}
  commands = [check_docs.words_of(line, variables) for line in check_docs.commands_of(page)]
  assert commands == [
    [], ["python", "eval.py", "--task=text", "--cache=full"], ["python", "train.py", "--help"],
    ["python", "eval.py", "--split=test"], ["ls", "runs"]]
  assert list(check_docs.flags_of(page)) == ["help", "split", "temperature"]
  assert {"temperature", "workdir", "aot", "figures"} <= check_docs.known_flags()

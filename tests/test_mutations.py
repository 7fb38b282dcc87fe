"""The lists of scripts/mutations fit the tree; what the mutations show is for scripts/mutate.py, run by hand."""

from __future__ import annotations

import types

import pytest

from scripts import mutate

MUTATIONS = mutate.load()


def test_there_are_enough_and_none_stands_twice():
  assert len(MUTATIONS) >= 150
  assert len({(mutation.file, mutation.old, mutation.new) for mutation in MUTATIONS}) == len(MUTATIONS)


def test_every_old_text_stands_once_in_its_file_and_the_new_one_differs():
  problems = [f"{mutation.label}: {problem}" for mutation in MUTATIONS if (problem := mutation.problem(mutate.ROOT))]
  assert not problems, "\n".join(problems)
  assert all(mutation.old != mutation.new for mutation in MUTATIONS)


def test_every_named_test_exists():
  for mutation in MUTATIONS:
    assert mutation.tests, mutation.label
    for test in mutation.tests:
      file, *names = test.split("[")[0].split("::")
      text = (mutate.ROOT / file).read_text(encoding="utf-8")
      assert all(f"def {name}(" in text for name in names), f"{test} of {mutation.label} does not exist"


@pytest.mark.parametrize(("entry", "problem"), [
  (mutate.Mutation("no.py", "a", "b", ("tests",)), "there is no such file"),
  (mutate.Mutation("LICENSE", "no such words", "b", ("tests",)), "the old text stands 0 times in the file, not once"),
], ids=["file", "text"])
def test_what_cannot_be_made_says_why(entry, problem):
  assert entry.problem(mutate.ROOT) == problem


@pytest.mark.parametrize(("results", "status"), [
  (["killed"] * 98 + ["survived"] * 2, 0), (["killed"] * 97 + ["survived"] * 3, 1),
  (["killed"] * 99 + ["broken"], 1), (["killed"] * 50 + ["equivalent"] * 50, 0)], ids=["2%", "3%", "broken", "reasons"])
def test_more_than_two_percent_of_survivors_are_a_failure(results, status, capsys):
  assert mutate.summarize([MUTATIONS[0]] * 100, results) == status
  assert capsys.readouterr().out.splitlines()[-1].startswith(f"100 mutations: {results.count('killed')} killed, ")


def test_a_mutation_is_made_alone_and_taken_back(tmp_path):
  code, right = tmp_path / "sums.py", "def add(a, b):\n  return a + b\n"
  code.write_text(right, encoding="utf-8")

  class Tester:
    """Gives pytest's exit status: 0 all passed, 1 one failed, 2 it could not start."""

    tree = tmp_path

    def run(self, tests):
      found = {}
      try:
        exec(code.read_text(encoding="utf-8"), found)
      except SyntaxError:
        return 2
      return int(found["add"](2, 2) != 4)

  results = [
    mutate.run_one(mutate.Mutation("sums.py", "a + b", new, ("test_sums.py",), reason), Tester())
    for new, reason in (("a - b", ""), ("a * b", ""), ("b + a", "sums have no order"), ("a +", ""))]
  assert results == ["killed", "survived", "equivalent", "broken"]
  assert code.read_text(encoding="utf-8") == right


def test_results_are_kept_and_taken_again(tmp_path, monkeypatch, capsys):
  file = tmp_path / "results.jsonl"
  asked = []
  monkeypatch.setattr(mutate, "copy_tree", lambda target: target)
  monkeypatch.setattr(mutate, "Tester", lambda tree: types.SimpleNamespace(stop=lambda: None))
  monkeypatch.setattr(mutate, "check_unbroken", lambda mutations, tester: None)
  monkeypatch.setattr(mutate, "run_one", lambda mutation, tester: asked.append(mutation) or "killed")
  for _ in range(2):
    assert mutate.run_all(MUTATIONS[:3], file, 1) == ["killed"] * 3
    file.write_text(file.read_text() + '{"key": "cut o')
  assert len(asked) == 3 and capsys.readouterr().out.count("killed") == 3

"""Which flags of eval.py need which others: a flag that nothing would read is refused, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lattice_jax.commands import cache_flags, text_flags


@dataclass(frozen=True)
class Asked:
  """What a command line asks for. task: the comparison of caches, or "". draws: whether chance decides the text."""

  pretrained: bool
  protocol: str
  comparison: bool
  task: str
  prompt: bool
  text: bool
  draws: bool

  @property
  def evaluation(self) -> bool:
    return self.protocol != "none"


# (flags, whether they have an effect, what they need)
_RULES = (
  (("step",), lambda asked: not asked.pretrained, "a run; a pretrained model has no checkpoints"),
  (("dtype",), lambda asked: asked.pretrained, "a --pretrained model; of a run use --set=model.dtype"),
  (("weights_budget",), lambda asked: asked.pretrained and (asked.text or asked.evaluation) and not asked.task,
   "a --pretrained model that is evaluated or writes a text, without a --task"),
  (("anchors",), lambda asked: asked.pretrained, "a --pretrained model; of a run use --set=data.anchors.rule"),
  (("seq_len", "chunk_len", "batch", "output"), lambda asked: asked.evaluation,
   "an evaluation, which --protocol=cold asks for"),
  (("split",), lambda asked: asked.evaluation or asked.comparison or bool(asked.task),
   "an evaluation or a --task, which read it"),
  (("peers", "lengths", "trials", "task_seed"), lambda asked: bool(asked.task), "a --task, such as --task=text"),
  (("answers", "depths", "examples", "rows"), lambda asked: asked.task not in ("", "text"),
   "a --task that asks for something, such as --task=passkey"),
  (("chat",), lambda asked: asked.prompt, "a --prompt"),
  (("prompt", "prompt_file", "stop", "context", "temperature", "windows"), lambda asked: asked.text,
   "a text to write, of --generate tokens above 0 or after a --prompt"),
  (("top_k", "top_p", "seed"), lambda asked: asked.draws,
   "tokens that are drawn: a text to write, and a --temperature above 0"),
)
# Fields of the config that a flag overrules, and sections that only training reads.
_FLAG_OF = {f"eval.{name}": name for name in ("split", "protocol", "seq_len", "chunk_len", "batch")}
_OF_TRAINING = ("train", "optimizer")


def read_asked(pretrained: str | None, protocol: str | None, *, comparison: bool) -> Asked:
  """What these three flags of eval.py, and those of caches and texts, ask for."""
  has_prompt, task = text_flags.has_prompt(), cache_flags.TASK.value or ""
  return Asked(
    pretrained=pretrained is not None, comparison=comparison, task=task, prompt=has_prompt,
    protocol=protocol or ("none" if task or (pretrained and has_prompt) else "cold"),
    text=text_flags.text_length() > 0, draws=text_flags.draws())


def check_flags(asked: Asked, given: Collection[str], overrides: Sequence[str]) -> None:
  """Raises ValueError for a flag or a change of the config that nothing of what is asked for reads.

  given: the names of the flags that stand on the command line.
  """
  for names, has_effect, need in _RULES:
    for name in names:
      if name in given and not has_effect(asked):
        raise ValueError(f"--{name} has no effect without {need}; leave it out, or ask for that too.")
  for override in overrides:
    field, _, value = override.partition("=")
    if field in _FLAG_OF:
      raise ValueError(f"--set={override} would be overruled by --{_FLAG_OF[field]}; use --{_FLAG_OF[field]}={value}.")
    if field in ("model.local.windows", "model.local.profile") and "windows" in given:
      raise ValueError(f"--set={override} would be overruled by --windows, which chooses them; leave out one of them.")
    section = field.partition(".")[0]
    if section in _OF_TRAINING or (section == "eval" and not asked.evaluation):
      what = "an evaluation, which --protocol=cold asks for" if section == "eval" else "a training"
      raise ValueError(f"--set={override} has no effect without {what}; leave it out.")
  if not (asked.evaluation or asked.comparison or asked.task or asked.text):
    raise ValueError(
      "nothing is asked for: --protocol=none leaves out the evaluation; add a --task, a --prompt or --compressors.")

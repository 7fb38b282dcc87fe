"""Flags of eval.py about the texts that the model writes."""

from __future__ import annotations

from typing import Any

from lattice_jax.commands.domains import COUNT, POSITIVE, EscapedText, PromptFile, PromptText
from lattice_jax.commands.flags import define, define_several
from lattice_jax.domains import SEED, TEMPERATURE, TOP_K, TOP_P, Switch, Text

_DEFAULT_LENGTH = 200

_GENERATE = define(
  "generate", COUNT, None,
  f"Tokens to write after --prompt, also to a file; by default {_DEFAULT_LENGTH} with a prompt, else none.")
_PROMPT = define_several(
  "prompt", PromptText(), "Start of the text, or - for standard input; several prompts make one batch.")
_PROMPT_FILE = define_several(
  "prompt_file", PromptFile(),
  "File that holds the start of the text in UTF-8, read without its last line end; may be given several times.")
_CHAT = define("chat", Switch(), False, "Ask --prompt as a question, by the pretrained model's chat template.")
_TEMPERATURE = define("temperature", TEMPERATURE, 0.8, "0 takes the most likely token.")
_TOP_K = define("top_k", TOP_K, 0, "Draw among the k most likely tokens; 0 = all.")
_TOP_P = define("top_p", TOP_P, 1.0, "Draw among the most likely tokens that hold this probability together.")
_SEED = define("seed", SEED, 0, "Seed of the draws; prompt number r uses seed + r.")
_STOP = define_several(
  "stop", EscapedText(),
  r"End a text before this string, in which \n, \t, \r, \\, \", \xNN and \uNNNN stand for a character.")
_CONTEXT = define(
  "context", POSITIVE, None,
  "Most tokens that prompt and text may have together; by default what a pretrained model was made for.")

_WINDOWS = define(
  "windows", Text(("per_prompt",)), None,
  "Choose the windows of the memory local after each prompt, by what its last queries see, and log every choice.")


def has_prompt() -> bool:
  return bool(_prompts())


def text_length() -> int:
  """Tokens to write; 0 if no text is asked for."""
  if _GENERATE.value is not None:
    return _GENERATE.value
  return _DEFAULT_LENGTH if has_prompt() else 0


def draws() -> bool:
  """Whether chance decides the text."""
  return text_length() > 0 and _TEMPERATURE.value > 0


def text_options() -> dict[str, Any]:
  """The arguments of `LoadedModel.write_texts`, except the length."""
  return {
    "prompts": _prompts() or [""], "is_chat": _CHAT.value, "stop_strings": _STOP.value, "limit": _CONTEXT.value,
    "temperature": _TEMPERATURE.value, "top_k": _TOP_K.value, "top_p": _TOP_P.value, "seed": _SEED.value,
    **({"windows": _WINDOWS.value} if _WINDOWS.value else {})}


def _prompts() -> list[str]:
  return [*_PROMPT.value, *_PROMPT_FILE.value]

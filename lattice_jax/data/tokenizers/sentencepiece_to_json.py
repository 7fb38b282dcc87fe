"""Converts a sentencepiece BPE model to a tokenizer.json, with which another library gives the same ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from lattice_jax.data.tokenizers.backend import FastBackend, starts_with
from lattice_jax.data.tokenizers.special_tokens import CONTROL, USER_DEFINED

_SPACE = "▁"  # sentencepiece's character for a space
_NORMAL = 1
_UNKNOWN_TEXT = " \u2047 "  # what sentencepiece decodes an unknown piece to


def as_fast_tokenizer(model: proto.ModelProto, start_ids: Sequence[int], *, finds_special: bool) -> FastBackend:
  """The model for the `tokenizers` library, with `start_ids`, at most one, before every text.

  finds_special: whether a text can spell out special tokens.

  Two kinds of text give other ids: a text that is only a user-defined piece gets no space in front; and if the model
  normalises text, a letter that it replaces loses its combining marks.

  Raises ValueError if the model is of another kind, or its scores do not determine which pieces are merged first.
  """
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  if trainer.model_type != trainer.BPE or trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
    raise ValueError("a sentencepiece model that is not plain BPE cannot be exported; keep its tokenizer.model.")
  vocab = {piece.piece: id for id, piece in enumerate(model.pieces)}
  unknown = model.pieces[trainer.unk_id].piece if 0 <= trainer.unk_id < len(vocab) else None
  tokenizer = tokenizers.Tokenizer(models.BPE(
    vocab, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=trainer.byte_fallback))
  whole = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
  tokenizer.normalizer = _normalizer(normalizer, whole)
  steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  steps += [decoders.Strip(" ", 1, 0)] if normalizer.add_dummy_prefix else []
  steps += [decoders.Replace(unknown, _UNKNOWN_TEXT)] if unknown else []
  tokenizer.decoder = decoders.Sequence(steps)
  # a text is split at control tokens before normalisation, and at user-defined ones after it
  control = [piece.piece for piece in model.pieces if piece.type == CONTROL and piece.piece]
  tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
  tokenizer.add_tokens([AddedToken(unknown, normalized=False)] if unknown and finds_special else [])
  tokenizer.encode_special_tokens = not finds_special
  tokenizer.add_tokens([AddedToken(token, normalized=True) for token in whole])
  if start_ids:
    tokenizer.post_processor = starts_with(model.pieces[start_ids[0]].piece, start_ids[0])
  return FastBackend(tokenizer)


def _merges(model: proto.ModelProto) -> list[tuple[str, str]]:
  """Every way to merge two pieces into one, best score first."""
  scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
  pairs = [
    (piece[:cut], piece[cut:]) for piece in scores for cut in range(1, len(piece))
    if piece[:cut] in scores and piece[cut:] in scores]
  shared = Counter(scores[piece] for piece in {"".join(pair) for pair in pairs})
  if any(number > 1 for number in shared.values()):
    raise ValueError(
      "a sentencepiece model whose pieces share scores cannot be exported: the text decides which are merged first; "
      "keep its tokenizer.model.")
  return sorted(pairs, key=lambda pair: -scores["".join(pair)])


def _normalizer(rules: proto.NormalizerSpec, whole: Sequence[str]) -> normalizers.Normalizer:
  steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
  if rules.remove_extra_whitespaces:
    steps += [normalizers.Replace(Regex(f"[ {_SPACE}]+"), " "), normalizers.Strip()]
  if rules.add_dummy_prefix:
    steps.append(normalizers.Prepend(_SPACE))
  if rules.add_dummy_prefix and whole:
    # user-defined tokens are searched for in normalised text, without a space in front
    alone = "|".join(map(re.escape, whole))
    steps.append(normalizers.Replace(Regex(f"^{_SPACE}(?=(?:{alone})\\z)"), ""))
  return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])

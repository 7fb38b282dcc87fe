"""Which tokens wrote where: the ages of slots, and the tokens that turned each slot most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lattice_jax.inspect.slot_trace import SlotTrace


@dataclass(frozen=True)
class Write:
  """A token that wrote to a slot. token: its text; before, after: the text around it. turn: radians."""

  position: int
  turn: float
  novel: float
  token: str
  before: str
  after: str


@dataclass(frozen=True)
class SlotSummary:
  """One slot after the last token. writes: tokens that turned it by the threshold or more. nearest: the most similar
  other slot, if there is one. age: tokens since the last write, or all of them."""

  layer: int
  head: int
  slot: int
  norm: float
  age: int
  writes: int
  mean_turn: float
  mean_keep: float
  min_keep: float
  max_keep: float
  mean_novel: float
  nearest: int | None
  nearest_cosine: float
  top: tuple[Write, ...]


def ages(turn_THM: np.ndarray, threshold: float) -> np.ndarray:
  """For every token and slot, how many tokens ago the slot was last turned by `threshold` radians or more.

  0 at the write itself; before the first write, the number of tokens so far.
  """
  place_T11 = np.arange(len(turn_THM))[:, None, None]
  last_THM = np.maximum.accumulate(np.where(turn_THM >= threshold, place_T11, -1), axis=0)
  return place_T11 - last_THM


def summarize(layer: int, trace: SlotTrace, texts: list[str], *, threshold: float, top: int) -> list[SlotSummary]:
  """Summarizes every slot of every head. texts: the text of each token of the trace."""
  age_HM = ages(trace.turn_THM, threshold)[-1]
  _, heads, slots = trace.turn_THM.shape
  return [
    _summarize_slot(layer, head, slot, trace, int(age_HM[head, slot]), texts, threshold=threshold, top=top)
    for head in range(heads) for slot in range(slots)]


def _summarize_slot(
  layer: int, head: int, slot: int, trace: SlotTrace, age: int, texts: list[str], *, threshold: float, top: int
) -> SlotSummary:
  turn_T, keep_T, novel_T = (field[:, head, slot] for field in (trace.turn_THM, trace.keep_THM, trace.novel_THM))
  share_T = trace.share_THM[:, head, slot]
  cosine_M = np.delete(trace.similarity_HMM[head, slot], slot)
  nearest = int(np.abs(cosine_M).argmax()) if len(cosine_M) else None
  order = np.argsort(-turn_T, kind="stable")[:top]
  return SlotSummary(
    layer=layer, head=head, slot=slot, norm=float(trace.norm_THM[-1, head, slot]), age=age,
    writes=int((turn_T >= threshold).sum()), mean_turn=float(turn_T.mean()), mean_keep=float(keep_T.mean()),
    min_keep=float(keep_T.min()), max_keep=float(keep_T.max()),
    mean_novel=float((novel_T * share_T).sum() / max(share_T.sum(), 1e-30)),
    nearest=None if nearest is None else nearest + (nearest >= slot),
    nearest_cosine=0.0 if nearest is None else float(cosine_M[nearest]),
    top=tuple(
      Write(
        place, float(turn_T[place]), float(novel_T[place]), texts[place], "".join(texts[max(0, place - 12):place]),
        "".join(texts[place + 1:place + 7]))
      for place in order.tolist() if turn_T[place] > 0))

"""Which host keeps the others waiting.

An update ends on all hosts together, so a slow device makes the steps of every host long; only what a host does by
itself, such as reading its data, tells it from the others. Both are compared with the median.
"""

from __future__ import annotations

import numpy as np

_SLOWER = 1.1  # times the median step, from which on a host is named
_WAITING = 0.05  # of the median step


def straggler(pace_PF: np.ndarray) -> str | None:
  """A sentence about the slowest process, or None if all keep pace.

  pace_PF: [processes, 2], seconds an update takes, and of these how long the process waited for its own data.
  """
  seconds_P, waited_P = pace_PF.T
  median, slowest, latest = float(np.median(seconds_P)), int(seconds_P.argmax()), int(waited_P.argmax())
  if not median > 0:
    return None  # nothing was timed yet
  if waited_P[latest] > _WAITING * median + np.median(waited_P):
    return (
      f"process {latest} waits {waited_P[latest]:.3g} s an update for its data, the median process "
      f"{np.median(waited_P):.3g} s; an update takes {median:.3g} s")
  if seconds_P[slowest] > _SLOWER * median:
    return f"process {slowest} takes {seconds_P[slowest]:.3g} s an update, the median process {median:.3g} s"
  return None

"""Runs the application under uvicorn, and ends it in order: what was begun is finished, as far as there is time."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from lattice_jax.inference.serving.app import make_app
from lattice_jax.inference.serving.front import Front

_LAST_WORDS = 5  # seconds in which streams that were ended may still be written out

# Seconds that an idle connection stays open: longer than clients keep theirs (httpx, on which OpenAI's is built, 5), so
# that none sends a request into a connection that is being closed.
_KEEP_ALIVE = 75


class Server(uvicorn.Server):
  """At SIGTERM or Ctrl-C it accepts no more connections, and after `grace` seconds ends the texts that still go on.

  Such a text has the finish reason "abort". ready: called with the port, once requests are answered.
  """

  def __init__(self, front: Front, *, grace: float, ready: Callable[[int], Any]):
    super().__init__(uvicorn.Config(
      make_app(front), http="h11", ws="none", lifespan="off", log_config=None, log_level="error", access_log=False,
      timeout_keep_alive=_KEEP_ALIVE, timeout_graceful_shutdown=int(grace) + _LAST_WORDS))
    self._front, self._grace, self._ready = front, grace, ready

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    await super().startup(sockets)
    if self.started:
      self._ready(self.servers[0].sockets[0].getsockname()[1])

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    ending = asyncio.get_running_loop().call_later(self._grace, lambda: self._front.close(abort=True))
    await super().shutdown(sockets)
    ending.cancel()
    await self._front.end(_LAST_WORDS)


def serve(front: Front, listener: socket.socket, *, grace: float, ready: Callable[[int], Any]) -> None:
  """Answers at a socket of `bind` until a signal ends it; the engines of `front` run, and have ended afterwards."""
  # uvicorn sends itself the signal again once all is done, which by default would end the process as if it were not
  before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    Server(front, grace=grace, ready=ready).run([listener])
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
  """A socket that listens there. Raises OSError with the address."""
  try:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
  except OSError as error:
    raise OSError(error.errno, error.strerror, f"{host}:{port}") from error

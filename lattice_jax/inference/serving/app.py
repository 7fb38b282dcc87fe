"""The HTTP front: OpenAI's completions and chats, the model's name, health, metrics, and the page of a rollout."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lattice_jax.domains import Text, checked, did_you_mean
from lattice_jax.inference.serving.front import Answer, Front
from lattice_jax.inference.serving.metrics import CONTENT_TYPE
from lattice_jax.inference.serving.replies import Reply, failure
from lattice_jax.inference.serving.request import CANCELLED, FAILED
from lattice_jax.inference.serving.wire import Asked, Refusal, parse_chat, parse_completion
from lattice_jax.shown import shown_name

UNIT_HEADER = "x-unit-id"
MOST_BYTES = 4 << 20  # of a request's body
_LONGEST_UNIT = 256
_CLIENT_LEFT = 499  # a status that nobody reads, as nginx has it

_log = logging.getLogger(__name__)


def make_app(front: Front) -> Starlette:
  """The application before the arms of `front`, whose engines run."""

  async def completions(request: Request) -> Response:
    return await _respond(front, request, parse_completion)

  async def chat(request: Request) -> Response:
    return await _respond(front, request, parse_chat)

  async def models(request: Request) -> Response:
    del request
    return JSONResponse({"object": "list", "data": [_model(front)]})

  async def model(request: Request) -> Response:
    _check_model(front, request.path_params["name"])
    return JSONResponse(_model(front))

  async def health(request: Request) -> Response:
    del request
    if not front.is_healthy:
      raise Refusal("an engine has ended; the log says why.", status=503, type="server_error")
    return JSONResponse({"status": "ok"})

  async def metrics(request: Request) -> Response:
    del request
    return Response(await asyncio.to_thread(front.metrics.text), headers={"Content-Type": CONTENT_TYPE})

  async def rollout(request: Request) -> Response:
    del request
    if front.page is None:
      raise Refusal("this server rolls nothing out; start it with a treatment and --rollout=FOLDER.", status=404)
    return HTMLResponse(await asyncio.to_thread(front.page), headers={"Cache-Control": "no-store"})

  def refuse(request: Request, error: Exception) -> Response:
    refusal = _as_refusal(request, error)
    front.metrics.refused.labels(str(refusal.status)).inc()
    headers = {"Retry-After": "1"} if refusal.status in (429, 503) else None
    return JSONResponse(refusal.body, status_code=refusal.status, headers=headers)

  return Starlette(
    routes=[
      Route("/v1/completions", completions, methods=["POST"]), Route("/v1/chat/completions", chat, methods=["POST"]),
      Route("/v1/models", models), Route("/v1/models/{name:path}", model), Route("/healthz", health),
      Route("/metrics", metrics), Route("/rollout", rollout)],
    exception_handlers={Refusal: refuse, HTTPException: refuse, Exception: refuse})


def _as_refusal(request: Request, error: Exception) -> Refusal:
  if isinstance(error, Refusal):
    return error
  if isinstance(error, HTTPException):
    return Refusal(
      f"{request.method} {shown_name(request.url.path)}: {HTTPStatus(error.status_code).phrase}.",
      status=error.status_code)
  return failure()


async def _respond(front: Front, request: Request, parse: Callable[[bytes], Asked]) -> Response:
  try:
    asked = parse(await _body(request))
  except ClientDisconnect:
    return Response(status_code=_CLIENT_LEFT)
  _check_model(front, asked.model)
  request_id = uuid.uuid4().hex
  answer = await front.ask(asked, unit=_unit(request, asked, request_id), request_id=request_id)
  reply = Reply(request_id, front.name, len(answer.prepared.request.ids), is_chat=bool(asked.messages))
  headers = {"X-Request-Id": request_id, "X-Arm": answer.route.arm}
  if asked.stream:
    return _Stream(_events(answer, reply, asked), headers | {"Cache-Control": "no-cache"}, answer)
  return await _whole(request, answer, reply, headers)


async def _body(request: Request) -> bytes:
  body = bytearray()
  async for chunk in request.stream():
    body += chunk
    if len(body) > MOST_BYTES:
      raise Refusal(f"the body has more than {MOST_BYTES:,} bytes; send a shorter prompt.", status=413)
  return bytes(body)


def _unit(request: Request, asked: Asked, request_id: str) -> str:
  """By whom arms are chosen: the header, or else the field `user`; a request without either is a unit by itself."""
  if UNIT_HEADER in request.headers:
    name, unit = "X-Unit-Id", request.headers[UNIT_HEADER]
  elif asked.user is not None:
    name, unit = "user", asked.user
  else:
    return request_id
  try:
    checked(Text(), name, unit)
  except ValueError as error:
    raise Refusal(str(error), param=name) from error
  if not 0 < len(unit) <= _LONGEST_UNIT:
    raise Refusal(f"{name} has {len(unit):,} characters; give 1 to {_LONGEST_UNIT}.", param=name)
  return unit


def _check_model(front: Front, name: str | None) -> None:
  if name not in (None, front.name):
    raise Refusal(
      f"there is no model {shown_name(name)}; this server has {front.name}.{did_you_mean(name, [front.name])}",
      status=404, param="model", code="model_not_found")


def _model(front: Front) -> dict[str, Any]:
  return {"id": front.name, "object": "model", "created": front.created, "owned_by": "lattice_jax"}


class _Stream(StreamingResponse):
  """Frees the answer's rows however the stream ends, also where it was never begun."""

  def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str], answer: Answer):
    super().__init__(events, media_type="text/event-stream", headers=headers)
    self._answer = answer

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    try:
      await super().__call__(scope, receive, send)
    finally:
      self._answer.cancel()


async def _events(answer: Answer, reply: Reply, asked: Asked) -> AsyncIterator[bytes]:
  if reply.is_chat:
    yield reply.opening()
  if answer.prepared.echo:
    yield reply.event(answer.prepared.echo)
  async for piece in answer:
    if piece.finish != FAILED:
      yield reply.event(piece.text, piece.finish)
    if piece.finish:
      yield reply.closing(piece, with_usage=asked.include_usage)


async def _whole(request: Request, answer: Answer, reply: Reply, headers: dict[str, str]) -> Response:
  async def cancel_if_left() -> None:
    while (await request.receive())["type"] != "http.disconnect":
      pass
    answer.cancel()

  watcher, texts = asyncio.create_task(cancel_if_left()), [answer.prepared.echo]
  try:
    async for piece in answer:
      texts.append(piece.text)
  finally:
    watcher.cancel()
    answer.cancel()
  if piece.finish == CANCELLED:
    return Response(status_code=_CLIENT_LEFT)
  if piece.finish == FAILED:
    raise failure()
  return JSONResponse(reply.whole("".join(texts), piece), headers=headers)

"""A local server of what a test would otherwise download."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


@contextlib.contextmanager
def serve_with(respond):
  """`respond(handler)` answers a request. Yields the server's address."""
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      respond(self)

    def log_message(self, *args):
      del args

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}"
    finally:
      server.shutdown()
      thread.join()


@contextlib.contextmanager
def serve(answer):
  """`answer(path)` gives status and body. Yields the server's address and the list of paths that were asked for."""
  asked = []

  def respond(handler):
    asked.append(handler.path)
    status, body = answer(handler.path)
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)

  with serve_with(respond) as address:
    yield address, asked


def bucket(name, files, page_size=2):
  """The answers of a storage bucket: its listing in pages, and its files."""

  def answer(path):
    address = urllib.parse.urlsplit(path)
    if address.path.startswith(f"/{name}/"):
      raw = files.get(urllib.parse.unquote(address.path.removeprefix(f"/{name}/")))
      return (404, b"") if raw is None else (200, raw)
    assert address.path == f"/storage/v1/b/{name}/o"
    query = dict(urllib.parse.parse_qsl(address.query))
    names = sorted(file for file in files if file.startswith(query["prefix"]))
    first = int(query["pageToken"]) if "pageToken" in query else 0
    listing = {"items": [describe(file, files[file]) for file in names[first:first + page_size]]}
    if first + page_size < len(names):
      listing["nextPageToken"] = str(first + page_size)
    return 200, json.dumps(listing).encode()

  return answer


def describe(name, raw):
  md5 = hashlib.md5(raw, usedforsecurity=False).digest()
  return {"name": name, "size": str(len(raw)), "md5Hash": base64.b64encode(md5).decode()}

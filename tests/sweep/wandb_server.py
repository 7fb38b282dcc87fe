"""A stand-in for W&B's server: as much of its API as `wandb sweep`, `wandb agent` and runs call, on this machine.

A grid is handed out setting by setting. A run that marked itself as preempted goes to an agent again under its id. A
run that `early_terminate` says to give up is stopped through its agent.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY, PROJECT, KEY = "someone", "lattice_jax", "a" * 40


@dataclasses.dataclass
class Run:
  """A run as the server knows it. starts: how often it was handed to an agent. rows: its history, by row number."""

  id: str
  values: dict[str, Any]
  starts: int = 0
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  sweep: str | None = None
  rows: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
  exit_code: int | None = None
  is_preempting: bool = False
  is_stopped: bool = False

  def values_of(self, metric):
    return [row[metric] for _, row in sorted(self.rows.items()) if metric in row]


class Server:
  """Serves at `url` while used as a context. sweeps: configs by id; commands: all that agents were told."""

  def __init__(self):
    self.sweeps: dict[str, dict[str, Any]] = {}
    self.runs: dict[str, Run] = {}
    self.commands: list[tuple[str, str]] = []
    self.unknown: list[str] = []
    self._lock = threading.RLock()
    self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
    self._http.daemon_threads = True
    self._http.handle_error = lambda request, address: None  # a client that has ended leaves its connections
    self.url = f"http://127.0.0.1:{self._http.server_port}"

  def __enter__(self):
    threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return self

  def __exit__(self, *error):
    self._http.shutdown()
    self._http.server_close()

  def add_runs(self, sweep):
    """The runs of a grid, in order, with ids as the server makes them up: eight letters and digits."""
    parameters = self.sweeps[sweep]["parameters"]
    choices = [entry["values"] if "values" in entry else [entry["value"]] for entry in parameters.values()]
    for number, values in enumerate(itertools.product(*choices)):
      run = Run(id=f"{sweep[:4]}{number:04d}", values=dict(zip(parameters, values, strict=True)))
      self.runs[run.id] = run

  def answer(self, query, variables):
    """The `data` of a GraphQL request."""
    name = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
    with self._lock:
      if not hasattr(self, f"_on_{name}"):
        self.unknown.append(name)
        return None
      return getattr(self, f"_on_{name}")(variables)

  def _on_Viewer(self, _):
    return {"viewer": {"id": "VQ==", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "admin": False,
                       "teams": {"edges": []}}}

  def _on_OrganizationCoreWeaveOrganizationID(self, _):
    return {"entity": {"organization": None}}

  def _on_ServerFeaturesQuery(self, _):
    return {"serverInfo": {"features": []}}

  def _on_UpsertSweep(self, variables):
    name = f"sweep{len(self.sweeps):03d}"
    self.sweeps[name] = yaml.safe_load(variables["config"])
    return {"upsertSweep": {"configValidationWarnings": [], "sweep": {"name": name, "project": self._project()}}}

  def _on_SweepWithRuns(self, variables):
    name = variables["sweep"]
    return {"project": {"sweep": {
      "id": name, "name": name, "state": "RUNNING", "config": yaml.safe_dump(self.sweeps[name]),
      "runs": {"edges": []}}}}

  def _on_CreateAgent(self, variables):
    self.add_runs(variables["sweep"])
    return {"createAgent": {"agent": {"id": variables["sweep"]}}}

  def _on_Heartbeat(self, variables):
    sweep, running = variables["id"], json.loads(variables["runState"])
    commands = [self._command("stop", self.runs[name]) for name in running if self._is_hopeless(sweep, self.runs[name])]
    waiting = [run for run in self.runs.values() if not run.starts or (
      run.is_preempting and run.exit_code not in (None, 0) and not run.is_stopped)]
    if not running and waiting:
      run = waiting[0]
      kind = "resume" if run.starts else "run"
      run.starts, run.exit_code, run.is_preempting = run.starts + 1, None, False
      args = {name: {"value": value} for name, value in run.values.items()}
      commands.append(self._command(kind, run) | {"args": args, "program": self.sweeps[sweep]["program"]})
    elif not running and all(run.exit_code is not None for run in self.runs.values()):
      self.commands.append(("exit", ""))
      commands.append({"type": "exit"})
    return {"agentHeartbeat": {"agent": {"id": sweep}, "commands": json.dumps(commands)}}

  def _command(self, kind, run):
    self.commands.append((kind, run.id))
    return {"type": kind, "run_id": run.id}

  def _is_hopeless(self, sweep, run):
    """Whether, after `min_iter` values, the best of another run by then was better. Told once."""
    config = self.sweeps[sweep]
    if "early_terminate" not in config or run.is_stopped:
      return False
    bracket, metric = config["early_terminate"]["min_iter"], config["metric"]["name"]
    own = run.values_of(metric)[:bracket]
    others = [other.values_of(metric)[:bracket] for other in self.runs.values() if other is not run]
    run.is_stopped = len(own) == bracket and any(
      len(values) == bracket and min(values) < min(own) for values in others)
    return run.is_stopped

  def _on_RunResumeStatus(self, variables):
    run = self.runs.get(variables["name"])
    known = None if run is None or not run.rows else {
      "id": run.id, "name": run.id, "displayName": run.id, "summaryMetrics": "{}", "logLineCount": 0,
      "historyLineCount": len(run.rows), "eventsLineCount": 0, "eventsTail": "[]", "config": json.dumps(run.config),
      "historyTail": json.dumps([json.dumps(run.rows[max(run.rows)])]), "tags": [], "notes": "",
      "wandbConfig": json.dumps({"t": 1})}
    return {"model": {"id": PROJECT, "name": PROJECT, "entity": self._project()["entity"], "bucket": known}}

  def _on_UpsertBucket(self, variables):
    run = self.runs.setdefault(variables["name"], Run(id=variables["name"], values={}))
    run.sweep = variables.get("sweep") or run.sweep
    if variables.get("config"):
      run.config = json.loads(variables["config"])
    return {"upsertBucket": {"inserted": not run.rows, "bucket": {
      "id": run.id, "name": run.id, "displayName": variables.get("displayName") or run.id, "description": "",
      "config": json.dumps(run.config), "sweepName": run.sweep, "project": self._project(),
      "historyLineCount": len(run.rows)}}}

  def _on_CreateRunFiles(self, variables):
    files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

  def _on_RunState(self, variables):
    run = self.runs[variables["run"]]
    return {"project": {"run": {"id": run.id, "state": "stopped" if run.is_stopped else "running"}}}

  def stream(self, name, sent):
    """What a run sends while it runs: rows of its history at their numbers, and how it ended."""
    with self._lock:
      run = self.runs[name]
      history = sent["files"]["wandb-history.jsonl"] if "wandb-history.jsonl" in sent.get("files", {}) else None
      for number, line in enumerate(history["content"] if history else [], start=history["offset"] if history else 0):
        assert number not in run.rows or run.rows[number] == json.loads(line), f"row {number} of {name} was sent twice"
        run.rows[number] = json.loads(line)
      run.is_preempting |= bool(sent.get("preempting"))
      if sent.get("complete"):
        run.exit_code = sent["exitcode"]

  def _project(self):
    return {"id": PROJECT, "name": PROJECT, "entity": {"id": ENTITY, "name": ENTITY}}

  def _handler(server):
    class Handler(BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def log_message(self, *words):
        """Says nothing."""

      def handle_request(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if self.headers["content-encoding"] == "gzip":
          body = gzip.decompress(body)
        stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if self.path == "/graphql":
          asked = json.loads(body)
          data = server.answer(asked["query"], asked.get("variables") or {})
          self.reply({"data": data} if data else {"errors": [{"message": "Cannot query field"}]})
        else:
          if stream:
            server.stream(stream[1], json.loads(body))
          self.reply({})

      do_GET = do_POST = do_PUT = handle_request

      def reply(self, content):
        raw = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    return Handler

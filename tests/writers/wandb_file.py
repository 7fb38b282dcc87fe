"""Reads the transaction log of an offline W&B run: 32 KiB blocks of records, each behind checksum, length and type."""

from __future__ import annotations

import json
import struct

from wandb.proto import wandb_internal_pb2

_FILE_HEADER, _BLOCK, _HEADER = 7, 32768, struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path):
  """Every record of the file, in order."""
  content, place, parts, records = path.read_bytes(), _FILE_HEADER, [], []
  assert content[:4] == b":W&B"
  while place + _HEADER.size <= len(content):
    if _BLOCK - place % _BLOCK < _HEADER.size:
      place += _BLOCK - place % _BLOCK
      continue
    _, length, kind = _HEADER.unpack_from(content, place)
    assert kind in (_FULL, _FIRST, _MIDDLE, _LAST)
    parts.append(content[place + _HEADER.size:place + _HEADER.size + length])
    place += _HEADER.size + length
    if kind in (_FULL, _LAST):
      records.append(wandb_internal_pb2.Record.FromString(b"".join(parts)))
      parts = []
  return records


def rows(records):
  """The history: one dict a row."""
  return [
    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    for record in records if record.WhichOneof("record_type") == "history"]


def run_record(records):
  """(id, project, name, config) of the run."""
  (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
  config = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in run.config.update}
  return run.run_id, run.project, run.display_name, config

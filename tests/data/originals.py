"""Small data sets in the shape of the published ones."""

from __future__ import annotations

import hashlib
import io
import zipfile

import numpy as np

from lattice_jax.data.published import BookSet, ImageSet, Original

BOOKS = BookSet(
  name="pg19", books={"train": 5, "validation": 1, "test": 2}, words={"train": 500, "validation": 70, "test": 60},
  bucket="books")
TITLES = {10: "Plain", 11: 'With, "comma" and quotes', 12: "Émile", 13: "Empty", 14: "One letter", 20: "Held out",
          30: "Test", 31: "Bare, comma"}
TEXTS = {10: "It was a dark night.\n" * 9, 11: "\n  Chapter 1\n\nSpaces  stay. \n", 12: "Été à l'île", 13: " \n",
         14: "a", 20: "Call me Ishmael.", 30: "It is a truth\r\nuniversally", 31: "To Sherlock Holmes"}
SPLIT_IDS = {"train": (10, 11, 12, 13, 14), "validation": (20,), "test": (30, 31)}


def metadata():
  """As published: no header; titles with commas quoted, or not."""
  quoted = {**TITLES, 11: '"With, ""comma"" and quotes"'}
  return "".join(f"{book},{title},1851,http://books/{book}\n" for book, title in quoted.items())


def book_files():
  """Path below the folder → bytes."""
  files = {f"{split}/{book}.txt": TEXTS[book].encode() for split, books in SPLIT_IDS.items() for book in books}
  return {**files, "metadata.csv": metadata().encode()}


def write_books(folder):
  for name, raw in book_files().items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(raw)
  return folder


def image_zip(**batches):
  """A published zip: one npz a batch, each of planar images and labels from 1 on."""
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.mkdir("folder")
    for name, (pixels, labels) in batches.items():
      arrays = io.BytesIO()
      np.savez(arrays, data=pixels, labels=labels, mean=np.zeros(3))
      archive.writestr(f"folder/{name}.npz", arrays.getvalue())
  return packed.getvalue()


def images(count, seed):
  drawn = np.random.default_rng(seed)
  return drawn.integers(0, 256, (count, 3 * 64 * 64), np.uint8), drawn.integers(1, 1001, count)


def write_images(folder):
  """Writes three zips and returns the set that they are: 7 + 2 and 3 training images, 4 for validation."""
  folder.mkdir(parents=True, exist_ok=True)
  zips = {
    "Imagenet64_train_part1_npz.zip": image_zip(batch_1=images(7, 0), batch_2=images(2, 1)),
    "Imagenet64_train_part2_npz.zip": image_zip(batch_3=images(3, 2)),
    "Imagenet64_val_npz.zip": image_zip(val_data=images(4, 3))}
  originals = []
  for name, raw in zips.items():
    (folder / name).write_bytes(raw)
    originals.append(Original(name, len(raw), hashlib.sha256(raw).hexdigest(), f"http://127.0.0.1:1/{name}"))
  return ImageSet(
    name="imagenet64", zips={"train": tuple(originals[:2]), "validation": (originals[2],)},
    images={"train": 12, "validation": 4}, train_images=9)

"""Bits per dim of images without a learned model, as baselines."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image


def image_bits_per_dim(images: Iterable[np.ndarray]) -> dict[str, float]:
  """Bits per dim of uint8 images [height, width, channels], each compressed on its own.

  order-0: entropy of the values of all channels together, under their frequencies in these images.
  left residual: the same for the difference modulo 256 from the same channel of the pixel to the left; the first pixel
    of each row, which has none, is not counted.
  PNG, WebP: size of whole files, headers included, as Pillow writes them with `optimize=True` and `lossless=True`.

  Takes about 7 ms for each image of 64 × 64.
  """
  counts, residual_counts = np.zeros(256, np.int64), np.zeros(256, np.int64)
  file_bytes = {"PNG": 0, "WebP lossless": 0}
  for image in images:
    counts += _histogram(image)
    residual_counts += _histogram(image[:, 1:] - image[:, :-1])
    picture = Image.fromarray(image)
    file_bytes["PNG"] += _file_bytes(picture, format="PNG", optimize=True)
    file_bytes["WebP lossless"] += _file_bytes(picture, format="WEBP", lossless=True)
  if not counts.any():
    raise ValueError("there are no images to compress: the split is empty.")
  sizes = {name: 8 * size / int(counts.sum()) for name, size in file_bytes.items()}
  return {"order-0": _entropy(counts), "left residual": _entropy(residual_counts), **sizes}


def _histogram(values: np.ndarray) -> np.ndarray:
  return np.bincount(values.reshape(-1), minlength=256)


def _entropy(counts: np.ndarray) -> float:
  share = counts[counts > 0] / counts.sum()
  return float(-(share * np.log2(share)).sum())


def _file_bytes(picture: Image.Image, **options: object) -> int:
  file = io.BytesIO()
  picture.save(file, **options)
  return file.tell()

"""The shipped photographs as 64 × 64 images: every crop for training, fixed tiles for evaluation.

An image is 12,288 tokens, in ImageNet64's order: rows from the top, pixels from the left, then red, green and blue.
"""

from __future__ import annotations

import functools
import hashlib
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from lattice_jax.data.published import read_sample, sample_files
from lattice_jax.shown import first_line

SIZE = 64
IMAGE_TOKENS = SIZE * SIZE * 3
_MOST_PIXELS = 1 << 26


class CropTokens:
  """All crops of some photographs as one long array of tokens, computed only where it is read.

  The upper left corner of crop n of a photograph is at row n // (width − 63) and column n % (width − 63). The training
  plan draws crops without repetition, which makes a stream of random crops.

  photos: uint8 [height, width, 3], each at least 64 pixels high and wide.
  """

  def __init__(self, photos: list[np.ndarray], shift: int):
    self._shift = shift
    self._widths = np.array([photo.shape[1] for photo in photos])
    self._columns = self._widths - SIZE + 1
    num_crops = np.array([photo.shape[0] - SIZE + 1 for photo in photos]) * self._columns
    self._first_crops = np.concatenate([[0], np.cumsum(num_crops)])
    self._pixels = np.concatenate([photo.reshape(-1) for photo in photos])
    self._first_pixels = np.concatenate([[0], np.cumsum([photo.size for photo in photos])])
    self.fingerprint = hashlib.sha256(self._pixels.tobytes() + self._widths.tobytes()).hexdigest()

  @property
  def num_crops(self) -> int:
    return int(self._first_crops[-1])

  def __len__(self) -> int:
    return self.num_crops * IMAGE_TOKENS

  def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
    """The tokens at these places; negative places count from the end."""
    if isinstance(index, slice):
      index = np.arange(*index.indices(len(self)))
    crop, inside = np.divmod(np.where(index < 0, index + len(self), index), IMAGE_TOKENS)
    photo = np.searchsorted(self._first_crops, crop, side="right") - 1
    top, left = np.divmod(crop - self._first_crops[photo], self._columns[photo])
    row, along = np.divmod(inside, SIZE * 3)
    place = ((top + row) * self._widths[photo] + left) * 3 + along
    return self._pixels[self._first_pixels[photo] + place].astype(np.uint16) + np.uint16(self._shift)


def read_photos(split: str) -> list[np.ndarray]:
  """The shipped photographs of a split, uint8 [height, width, 3]."""
  return [_decode(file) for file in sample_files(f"photos_sample/{split}")]


@functools.lru_cache(maxsize=16)
def _decode(file: str) -> np.ndarray:
  return decode_photo(read_sample(file), file)


def decode_photo(raw: bytes, where: str) -> np.ndarray:
  """uint8 [height, width, 3]. Raises ValueError if it is not an image, or its size is not a photograph's."""
  try:
    with Image.open(io.BytesIO(raw)) as image:
      width, height = image.size
      if min(width, height) >= SIZE and width * height <= _MOST_PIXELS:  # known before the pixels are decoded
        return np.asarray(image.convert("RGB"))
  # Pillow reports damage by a dozen kinds of exception
  except Exception as error:
    reason = "unknown format" if isinstance(error, UnidentifiedImageError) else first_line(error)
    raise ValueError(f"{where} is not an image that can be read ({reason}); restore it.") from error
  raise ValueError(
    f"{where} is {width:,} × {height:,} pixels; a photograph has {SIZE} or more each way and {_MOST_PIXELS:,} at most.")


def tiles(photo: np.ndarray) -> np.ndarray:
  """[n, 64, 64, 3]: all 64 × 64 tiles that fit, from the upper left corner."""
  rows, columns = photo.shape[0] // SIZE, photo.shape[1] // SIZE
  grid = photo[:rows * SIZE, :columns * SIZE].reshape(rows, SIZE, columns, SIZE, 3)
  return grid.swapaxes(1, 2).reshape(-1, SIZE, SIZE, 3)

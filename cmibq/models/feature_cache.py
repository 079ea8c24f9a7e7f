"""Features of a frozen augmenting tower on disk: every image is seen by it once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError, PackageError, StorageError
from cmibq.fileio import atomic_write
from cmibq.io.tensors import read_tensors, write_tensors

__all__ = ["FeatureCache", "fingerprint_of"]

logger = logging.getLogger(__name__)
_COUNT_EVERY = 256


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def fingerprint_of(tower: nn.Module) -> str:
    """Return the SHA-256 of a tower's weights, names, data types and shapes included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        _update(digest, tensor)
    return digest.hexdigest()


class FeatureCache:
    """A folder with the features of single images, keyed by pixels, weights and layers.

    Files appear complete or not at all, so processes may share a folder and be killed; what is
    damaged is computed again. A full cache keeps what it has: in a training that sees its images
    in turn, the oldest file is the one that is wanted next. Pixels are part of the key, so with
    random augmentation nothing is ever found again; do not use a cache there.

    Args:
        folder: made when the first features are stored.
        limit: bytes of files at most, those of other processes included (these are counted now and
            then, so some files more may be written).

    Raises:
        ConfigError: `limit` is not positive, or `folder` is a file.

    Example:
        >>> import tempfile
        >>> cache = FeatureCache(tempfile.mkdtemp(), limit=10_000)
        >>> key = cache.key(torch.zeros(3, 2, 2), "weights", (5, 11))
        >>> cache.get(key) is None
        True
        >>> cache.put(key, {5: torch.ones(4, 2), 11: torch.ones(4, 2)})
        True
        >>> cache.get(key)[11].shape
        torch.Size([4, 2])
    """

    def __init__(self, folder: str | os.PathLike[str], *, limit: int = 1 << 36) -> None:
        if limit < 1:
            raise ConfigError(f"limit is {limit}; give bytes > 0, such as 2**36 (64 GiB)")
        self.folder, self.limit = Path(folder).expanduser(), limit
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"folder is {self.folder}, a file; give a folder for features")
        self.hits = self.misses = 0
        self._bytes, self._puts, self._full = 0, 0, False
        self._known: tuple[object, str] = (None, "")

    def key(self, pixels: Tensor, fingerprint: str, layers: Iterable[int]) -> str:
        """Return the key of an image.

        Args:
            pixels: [3, H, W] as the tower gets them.
            fingerprint: of the tower, see `fingerprint_of`.
            layers: of the tower, from 0.
        """
        digest = hashlib.sha256(f"1 {fingerprint} {sorted(set(layers))}".encode())
        _update(digest, pixels)
        return digest.hexdigest()

    def _weights(self, tower: nn.Module) -> str:
        """Return the fingerprint of a tower, computed again only where its weights were changed."""
        state = tuple((p.data_ptr(), p._version, p.dtype) for p in tower.parameters())
        if self._known[0] != state:
            self._known = state, fingerprint_of(tower)
        return self._known[1]

    def through(
        self,
        tower: nn.Module,
        layers: tuple[int, ...],
        pixels: Tensor,
        run: Callable[[Tensor], dict[int, Tensor]],
    ) -> dict[int, Tensor]:
        """Return the features of a batch, those of images that are not here from the tower.

        Args:
            tower: whose weights are part of the key.
            layers: of the tower, from 0.
            pixels: [B, 3, H, W].
            run: computes features [1, L, C] by layer of one image.

        Returns:
            Layer -> [B, L, C].
        """
        weights, made = self._weights(tower), []
        if torch.is_autocast_enabled(pixels.device.type):  # features have other bits
            weights += f" {torch.get_autocast_dtype(pixels.device.type)}"
        for image in pixels:
            key = self.key(image, weights, layers)
            one = self.get(key)
            if one is None or not {*layers} <= {*one}:
                one = {at: t[0] for at, t in run(image[None]).items()}
                self.put(key, one)
            made.append(one)
        return {at: torch.stack([one[at].to(pixels.device) for one in made]) for at in made[0]}

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.safetensors"

    def get(self, key: str) -> dict[int, Tensor] | None:
        """Return the features [L, C] by layer, or None where they are not there or damaged."""
        file = self._file(key)
        if file.is_file():
            try:
                found = {int(n): t for n, t in read_tensors(file)[0].items()}
            except (PackageError, ValueError) as error:
                logger.warning("%s; the features are computed again", error)
            else:
                self.hits += 1
                return found
        self.misses += 1
        return None

    def _room(self, size: int) -> bool:
        """Tell whether a file of this size still fits, and say once that it does not."""
        if self._puts % _COUNT_EVERY == 0:
            self._bytes = 0
            for file in self.folder.glob("*/*.safetensors"):
                with contextlib.suppress(FileNotFoundError):  # others may clean up
                    self._bytes += file.stat().st_size
        self._puts += 1
        if self._bytes + size <= self.limit:
            return True
        if not self._full:
            logger.warning(
                "%s has %d bytes, limit is %d: features of further images are not kept",
                *(self.folder, self._bytes, self.limit),
            )
        self._full = True
        return False

    def put(self, key: str, features: dict[int, Tensor]) -> bool:
        """Store the features [L, C] of an image by layer; False where they are not kept.

        A disk that is full stops the cache, not the training.
        """
        if self._full or not self._room(sum(t.nbytes for t in features.values())):
            return False
        try:
            with atomic_write(self._file(key)) as file:
                named = {str(at): t for at, t in features.items()}
                self._bytes += write_tensors(file, named)[1]
        except StorageError as error:
            logger.warning("%s; further features are not kept", error)
            self._full = True
            return False
        return True

"""The bytes of one user's cached interests: one width for all users of a store, a check in front.

A record, little-endian and packed::

    check     uint32    of everything behind it, of the user's key and of the store's version
    written   int64     microseconds since 1970: when the history that it comes from was read
    digest    uint64    of that history (:func:`history_digest`), 0 where it is not known
    indices:  index     K of the smallest unsigned type that holds the dictionary's size, the largest value for none
              logp      K float16 or float32 log-probabilities
    vectors:  vector    K x E float16 or float32
              mask      K uint8
              weight    K float32, with models that weight their interests

The check is multilinear hashing (Lemire and Kaser, 2014, 1202.4961) over 32-bit words with multipliers drawn from the
version: a flipped bit, a record half written, one of another user or of another model pass with probability 2^-32.

Axes: B users, K interests, E width of a vector as searched for, W 32-bit words of a record, L history length.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch

from gemirec.components.selection import Selected
from gemirec.data.hashing import splitmix64
from gemirec.models.base import Interests
from gemirec.retrieval.stores.keys import odd_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gemirec.models.base import Histories

Records = np.ndarray[Any, np.dtype[np.void]]
"""``[B]`` records of a :attr:`Codec.dtype`."""
_HALF = np.uint64(32)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """What a record holds.

    Attributes:
        kind: ``indices`` of a dictionary, or ``vectors``.
        k: K, interests of a user.
        entries: Interests of the dictionary. With ``indices``.
        width: E. With ``vectors``.
        weighted: Whether interests have weights. With ``vectors``.
        precision: Of log-probabilities or vectors. float16 is rounded: a list may differ where two scores are close.
    """

    kind: Literal["indices", "vectors"]
    k: int
    entries: int = 0
    width: int = 0
    weighted: bool = False
    precision: Literal["float16", "float32"] = "float32"


class Codec:
    """Between arrays and bytes, for all users of a batch at once.

    Args:
        layout: What a record holds.
        version: Of the model; records of another version do not pass the check.

    Attributes:
        dtype: Structured NumPy type of a record.
        layout: As given.

    Example:
        >>> codec = Codec(Layout(kind="indices", k=2, entries=16384), "model-1")
        >>> codec.dtype.itemsize
        32
        >>> chosen = Selected(torch.tensor([[9, -1]]), torch.tensor([[-0.5, -torch.inf]]))
        >>> record = codec.pack_indices(chosen, written=7)
        >>> key = np.array([[1, 2]], dtype=np.uint64)
        >>> codec.seal(record, key)
        >>> codec.intact(record, key).tolist(), codec.indices(record).index_Bk.tolist()
        ([True], [[9, -1]])
        >>> codec.intact(record, key + np.uint64(1)).tolist()  # another user
        [False]
    """

    def __init__(self, layout: Layout, version: str) -> None:
        self.layout = layout
        self.dtype = _dtype(layout)
        seed = hashlib.sha256(msgspec.json.encode([layout, version])).digest()
        drawn = odd_factors(int.from_bytes(seed[:8], "little"), self.dtype.itemsize // 4 + 2)
        self._key_factor_2, self._factor_W = drawn[:2], drawn[2:]

    @property
    def none(self) -> int:
        """The index that stands for no interest."""
        return int(np.iinfo(self.dtype["index"].base).max)

    def empty(self, count: int) -> Records:
        """Return ``count`` records of zeros, which pass no check."""
        return np.zeros(count, dtype=self.dtype)

    def seal(self, record_B: Records, key_B2: NDArray[np.uint64]) -> None:
        """Write the checks of users with keys ``[B, 2]``."""
        record_B["check"] = self._check(record_B, key_B2)

    def intact(self, record_B: Records, key_B2: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return ``[B]`` whether records are what was written for these users, by this version."""
        good_B: NDArray[np.bool_] = (record_B["check"] == self._check(record_B, key_B2)) & (record_B["written"] != 0)
        if self.layout.kind == "indices":
            index_BK = record_B["index"]
            good_B &= ((index_BK < self.layout.entries) | (index_BK == self.none)).all(axis=1)
        return good_B

    def from_bytes(self, values: Sequence[bytes | None]) -> tuple[Records, NDArray[np.bool_]]:
        """Return records and which of them are there; bytes of another length become a record that does not pass."""
        size = self.dtype.itemsize
        zeros = bytes(size)
        joined = b"".join(value if value is not None and len(value) == size else zeros for value in values)
        present_B = np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))
        return np.frombuffer(joined, dtype=self.dtype).copy(), present_B

    def pack_indices(self, chosen: Selected, written: int, digest_B: NDArray[np.uint64] | int = 0) -> Records:
        """Return unsealed records of selected interests ``[B, k]``; missing ones are -1."""
        index_BK = chosen.index_Bk.cpu().numpy()
        record_B = self._stamped(len(index_BK), written, digest_B)
        record_B["index"] = np.where(index_BK < 0, self.none, index_BK)
        record_B["logp"] = chosen.logp_Bk.cpu().numpy()
        return record_B

    def indices(self, record_B: Records) -> Selected:
        """Return the interests of intact records."""
        index_BK = record_B["index"].astype(np.int64)
        index_BK[index_BK == self.none] = -1
        return Selected(torch.from_numpy(index_BK), torch.from_numpy(record_B["logp"].astype(np.float32)))

    def pack_vectors(self, found: Interests, written: int, digest_B: NDArray[np.uint64] | int = 0) -> Records:
        """Return unsealed records of what a model says; fewer than K interests are filled up with absent ones."""
        count = found.mask_BK.shape[1]
        record_B = self._stamped(len(found.mask_BK), written, digest_B)
        record_B["vector"][:, :count] = found.vector_BKD.detach().float().cpu().numpy()
        record_B["mask"][:, :count] = found.mask_BK.cpu().numpy()
        if self.layout.weighted and found.weight_BK is not None:
            record_B["weight"][:, :count] = found.weight_BK.detach().float().cpu().numpy()
        return record_B

    def vectors(self, record_B: Records) -> Interests:
        """Return the interests of intact records, float32."""
        weight_BK = torch.from_numpy(record_B["weight"].copy()) if self.layout.weighted else None
        vector_BKE = torch.from_numpy(record_B["vector"].astype(np.float32))
        return Interests(vector_BKE, torch.from_numpy(record_B["mask"] != 0), weight_BK)

    def _stamped(self, count: int, written: int, digest_B: NDArray[np.uint64] | int) -> Records:
        record_B = self.empty(count)
        record_B["written"], record_B["digest"] = written, digest_B
        return record_B

    def _check(self, record_B: Records, key_B2: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Return the checks ``[B]``."""
        word_BW = np.ascontiguousarray(record_B).view(np.uint32).reshape(-1, len(self._factor_W))[:, 1:]
        total_B = (word_BW * self._factor_W[1:]).sum(axis=1, dtype=np.uint64) + self._factor_W[0]
        total_B += (key_B2 * self._key_factor_2).sum(axis=1, dtype=np.uint64)
        check_B: NDArray[np.uint32] = (total_B >> _HALF).astype(np.uint32)
        return check_B


def history_digest(histories: Histories) -> NDArray[np.uint64]:
    """Return ``[B]`` a number for all that a model reads of each user: recent items in their order, and features.

    It does not depend on how wide the window is padded, and is never 0.

    Example:
        >>> from gemirec.models.base import Histories
        >>> a, b, c = (Histories(torch.tensor([row])) for row in ([7, 8], [7, 8, 0], [8, 7]))
        >>> bool(history_digest(a) == history_digest(b)), bool(history_digest(a) == history_digest(c))
        (True, False)
    """
    total_B = np.zeros(len(histories.item_BL), dtype=np.uint64)
    for seed, part in enumerate((histories.item_BL, histories.user_categorical_BF, histories.user_numeric_BG)):
        if part is not None:
            whole = part.float().view(torch.int32).long() if part.is_floating_point() else part.long()
            word_BX = whole.cpu().numpy().astype(np.uint64)
            total_B += (word_BX * odd_factors(seed, word_BX.shape[1])).sum(axis=1, dtype=np.uint64)
    return np.maximum(splitmix64(total_B), np.uint64(1))


def _dtype(layout: Layout) -> np.dtype[Any]:
    """Return the structured type of a record, a whole number of 32-bit words wide."""
    fields: list[tuple[Any, ...]] = [("check", "<u4"), ("written", "<i8"), ("digest", "<u8")]
    real = "<f2" if layout.precision == "float16" else "<f4"
    if layout.kind == "indices":  # one value more than the dictionary has: none
        fields += [("index", np.min_scalar_type(layout.entries), layout.k), ("logp", real, layout.k)]
    else:
        fields += [("vector", real, (layout.k, layout.width)), ("mask", "u1", layout.k)]
        fields += [("weight", "<f4", layout.k)] if layout.weighted else []
    size = np.dtype(fields).itemsize
    return np.dtype([*fields, ("pad", "u1", -size % 4)]) if size % 4 else np.dtype(fields)

"""From encoded histories to tables of items, through the one retrieval path.

Axes: B users, K interests, D embedding, R places of a list, N items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from gemirec.data.batches import pad_histories
from gemirec.errors import ArtifactError
from gemirec.models.base import Histories
from gemirec.retrieval.index import ExactIndex
from gemirec.retrieval.retrieve import retrieve, retrieve_lists, searched
from gemirec.retrieval.versions import served_version

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gemirec.config import MergeConfig
    from gemirec.models.base import Interests, RetrievalModel
    from gemirec.recommender.catalog import Catalog
    from gemirec.recommender.histories import Encoded
    from gemirec.retrieval.cold_start import ColdItems
    from gemirec.retrieval.index import ItemIndex

BLOCK_USERS = 512
"""Most users searched at once."""
BLOCK_PLACES = 1_000_000
"""Most list places (users x interests x k) held at once."""


class Searcher:
    """A model, its items and an index over them.

    Args:
        model: The trained model.
        catalog: Its items.
        cold: Items without interactions.
        index: Where items are searched; ``None`` takes an exact index, built when it is first needed.

    Raises:
        ArtifactError: The index is of other vectors.
    """

    def __init__(
        self, model: RetrievalModel, catalog: Catalog, cold: ColdItems | None = None, index: ItemIndex | None = None
    ) -> None:
        self.model = model
        self.catalog = catalog
        self.cold = cold
        self._index: ItemIndex | None = index
        if index is not None:
            self._check(index)
        self._cosine: tuple[torch.Tensor, ExactIndex] | None = None

    @property
    def index(self) -> ItemIndex:
        """Where items are searched."""
        if self._index is None:
            self._index = ExactIndex(self.served())
        return self._index

    def _check(self, index: ItemIndex) -> None:
        """Raise if an index is of other vectors than these."""
        known, own = index.version, served_version(self.model, self.cold)
        if known not in (None, own):
            raise ArtifactError(
                "the index is of another model",
                got=f"index of version {known}, model of version {own}",
                fix="build the index again from this artifact, and roll both together",
            )
        width = self.served().shape[1]
        if index.dim != width or len(index) > len(self.catalog):
            raise ArtifactError(
                "the index does not fit the model",
                got=f"{len(index)} x {index.dim} in the index, {len(self.catalog)} items of width {width}",
                fix="build the index from this artifact",
            )

    def served(self) -> torch.Tensor:
        """Return all item vectors as they are compared at serving, padding row and new items included."""
        with torch.no_grad():
            item_ND = self.model.item_vectors()
        return item_ND if self.cold is None else self.cold.served(item_ND)

    @property
    def categories(self) -> torch.Tensor | None:
        """``[N + 1]`` category of every item, 0 unknown; ``None`` if the data had none."""
        if "category_index" not in self.catalog.items.columns:
            return None
        known = self.catalog.items["category_index"].fill_null(0).to_numpy().astype(np.int64)
        return torch.from_numpy(np.concatenate([[0], known]))

    def block_users(self, k: int, merge: MergeConfig | None = None) -> int:
        """Return how many users to take at once for lists of ``k``."""
        k = min(k, len(self.catalog))
        return max(1, min(BLOCK_USERS, BLOCK_PLACES // max(1, 4 * (searched(merge, k) if merge else k))))

    def users_interests(self, asked: Encoded) -> Interests:
        """Return what the model says of these users."""
        with torch.no_grad():
            return self.model.interests(self.windows(asked))

    def windows(self, asked: Encoded) -> Histories:
        """Return the histories of these users as the model reads them; features that are not known are 0."""
        item_E = asked.item_E if self.cold is None else self.cold.read(asked.item_E)
        item_BL = pad_histories(item_E, asked.offset_B1, self.model.max_length)
        spec = self.model.spec
        categorical = asked.categorical_BF
        if categorical is None and spec.user_categorical_sizes:
            categorical = np.zeros((len(asked), len(spec.user_categorical_sizes)), dtype=np.int64)
        numeric = asked.numeric_BG
        if numeric is None and spec.num_user_numeric:
            numeric = np.zeros((len(asked), spec.num_user_numeric), dtype=np.float32)
        return Histories(
            item_BL,
            None if categorical is None else torch.from_numpy(categorical),
            None if numeric is None else torch.from_numpy(numeric),
        )

    def ranked(
        self,
        asked: Encoded,
        k: int,
        *,
        merge: MergeConfig,
        exclude_seen: bool,
        allow: NDArray[np.int64] | None,
        fallback: str,
    ) -> pl.DataFrame:
        """Return the table of :meth:`gemirec.recommender.face.Recommender.recommend` for one block of users."""
        k = min(k, len(self.catalog))
        known_B, known = asked.known_B, asked.with_known_items()
        id_BR = np.full((len(asked), k), -1, dtype=np.int64)
        score_BR = np.zeros((len(asked), k), dtype=np.float64)
        interest_BR = np.full((len(asked), k), -1, dtype=np.int32)
        if len(known):
            found = retrieve(
                self.users_interests(known),
                self.index,
                k,
                seen_E=torch.from_numpy(known.item_E) if exclude_seen else None,
                seen_offset_B1=torch.from_numpy(known.offset_B1) if exclude_seen else None,
                allow_ids=None if allow is None else torch.from_numpy(allow),
                merge=merge,
                category_I=self.categories if merge.kind == "diverse" else None,
            )
            id_BR[known_B] = found.id_BN.numpy()
            score_BR[known_B] = found.score_BN.numpy()
            interest_BR[known_B] = found.interest_BN.numpy()
        if fallback == "popularity" and not known_B.all():
            popular = self.catalog.most_popular
            popular = (popular if allow is None else popular[np.isin(popular, allow)])[:k]
            empty_B1 = np.flatnonzero(~known_B)[:, None]
            id_BR[empty_B1, np.arange(len(popular))] = popular
            score_BR[empty_B1, np.arange(len(popular))] = self.catalog.count_N[popular]
        row_X, place_X = np.nonzero(id_BR > 0)
        table = pl.DataFrame(
            {
                "user_id": asked.label.gather(row_X),
                "rank": (place_X + 1).astype(np.int32),
                "item_id": self.catalog.ids(id_BR[row_X, place_X]),
                "score": score_BR[row_X, place_X],
                "interest": interest_BR[row_X, place_X],
                "fallback": ~known_B[row_X],
                "skipped": asked.skipped_B[row_X],
            }
        )
        return table.select(
            "user_id",
            "rank",
            "item_id",
            "score",
            interest=pl.when(pl.col("fallback")).then(None).otherwise("interest"),
            source=pl.when(pl.col("fallback")).then(pl.lit(fallback)).otherwise(pl.lit("model")),
            skipped="skipped",
        )

    def no_rows(self, label: pl.Series) -> pl.DataFrame:
        """Return the empty table of :meth:`ranked`."""
        return pl.DataFrame(
            schema={
                "user_id": label.dtype,
                "rank": pl.Int32,
                "item_id": self.catalog.id_type,
                "score": pl.Float64,
                "interest": pl.Int32,
                "source": pl.String,
                "skipped": pl.Int64,
            }
        )

    def interests(
        self, asked: Encoded, items: int, *, exclude_seen: bool, allow: NDArray[np.int64] | None
    ) -> pl.DataFrame:
        """Return the table of :meth:`gemirec.recommender.face.Recommender.interests` for one block of users."""
        asked = asked.with_known_items()
        found = self.users_interests(asked)
        mask_BK = found.mask_BK.numpy()
        row_X, interest_X = np.nonzero(mask_BK)
        vector_XD = found.vector_BKD.numpy()[mask_BK]
        weight = [None] * len(row_X) if found.weight_BK is None else found.weight_BK.numpy()[mask_BK]
        columns = {
            "user_id": asked.label.gather(row_X),
            "interest": interest_X.astype(np.int32),
            "weight": pl.Series(weight, dtype=pl.Float32),
            "vector": pl.Series(vector_XD, dtype=pl.Array(pl.Float32, vector_XD.shape[1])),
        }
        if items:
            index = self.index if allow is None else self.index.restrict(torch.from_numpy(allow))
            id_BKR, _ = retrieve_lists(
                found,
                index,
                min(items, len(self.catalog)),
                seen_E=torch.from_numpy(asked.item_E) if exclude_seen else None,
                seen_offset_B1=torch.from_numpy(asked.offset_B1) if exclude_seen else None,
            )
            columns["items"] = self.lists(id_BKR.numpy()[mask_BK])
        return pl.DataFrame(columns)

    def lists(self, id_XR: NDArray[np.int64]) -> pl.Series:
        """Return one list of the caller's ids per row; -1 marks places that are missing."""
        count_X = (id_XR > 0).sum(axis=1)
        flat = pl.DataFrame(
            {"row": np.repeat(np.arange(len(id_XR)), count_X), "id": self.catalog.ids(id_XR[id_XR > 0])}
        )
        rows = pl.DataFrame({"row": np.arange(len(id_XR))})
        return rows.join(flat.group_by("row").agg("id"), on="row", how="left", maintain_order="left")["id"]

    def similar(self, item_Q: NDArray[np.int64], k: int) -> pl.DataFrame:
        """Return the table of :meth:`gemirec.recommender.face.Recommender.similar_items` for known items."""
        if self._cosine is None:
            unit_ND = torch.nn.functional.normalize(self.served(), dim=-1)
            self._cosine = unit_ND, ExactIndex(unit_ND)
        unit_ND, index = self._cosine
        asked_Q = torch.from_numpy(item_Q)
        id_QR, score_QR = index.search(
            unit_ND[asked_Q],
            min(k, max(1, len(self.catalog) - 1)),
            exclude_E=asked_Q,
            exclude_offset_Q1=torch.arange(len(item_Q) + 1),
        )
        row_X, place_X = np.nonzero(id_QR.numpy() > 0)
        return pl.DataFrame(
            {
                "item_id": self.catalog.ids(item_Q[row_X]),
                "rank": (place_X + 1).astype(np.int32),
                "similar_item_id": self.catalog.ids(id_QR.numpy()[row_X, place_X]),
                "score": score_QR.numpy()[row_X, place_X],
            }
        )

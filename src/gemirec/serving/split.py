"""The traffic split: two models at once, each user with one of them, so that what users do tells which is better.

The variant is a hash of the user's id and a salt: it is the same on every server and after every restart, needs no
table, and another salt deals the users anew. Whoever comes without an id is nobody's user: variant A answers, and
nothing is logged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gemirec.config import Config
from gemirec.errors import ConfigError
from gemirec.serving.wire import RecommendAnswer, UserAnswer

if TYPE_CHECKING:
    from gemirec.serving.engine import Kind
    from gemirec.serving.impressions import ImpressionWriter
    from gemirec.serving.metrics import Metrics

Variant = Literal["A", "B"]
Ask = Callable[[Variant, Sequence[int]], Awaitable[list[Any]]]
"""Asks a variant for its answers to the requests of these numbers."""


class Split(Config, frozen=True, kw_only=True):
    """Which users get the second model.

    Raises:
        ConfigError: The share leaves one of the models without users.

    Example:
        >>> split = Split(artifact=Path("other"), share=0.5, salt="spring")
        >>> [split.variant(user) for user in ("ann", "bob", 12, "12", None)]
        ['B', 'A', 'A', 'A', 'A']
        >>> Split(artifact=Path("other"), share=1.0)
        Traceback (most recent call last):
        gemirec.errors.ConfigError: the share of the second model must lie between 0 and 1
          got: 1.0
          fix: give 0.5 for halves, 0.1 for a tenth; serve one artifact alone to give it all users
    """

    artifact: Path
    """The second trained model, variant B."""
    share: float = 0.5
    """Share of the users who get it."""
    salt: str = "gemirec"
    """Name of the experiment: another one deals the users anew."""

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ConfigError(
                "the share of the second model must lie between 0 and 1",
                got=self.share,
                fix="give 0.5 for halves, 0.1 for a tenth; serve one artifact alone to give it all users",
            )

    def variant(self, user_id: object) -> Variant:
        """Return the variant of a user; 12 and "12" are the same one, ``None`` is variant A."""
        if user_id is None:
            return "A"
        digest = blake2b(f"{self.salt}\0{user_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return "B" if int.from_bytes(digest, "big") < self.share * 2.0**64 else "A"


class Experiment:
    """A split at work: deals requests, names the variant in answers, counts and logs.

    Args:
        split: Who gets what.
        impressions: Where served lists go.
        metrics: What is counted for each variant.
    """

    def __init__(self, split: Split, impressions: ImpressionWriter, metrics: Metrics) -> None:
        self.split = split
        self._impressions = impressions
        self._metrics = metrics

    async def ask(self, ask: Ask, kind: Kind, requests: Sequence[Any]) -> list[Any]:
        """Return the answers to requests, in their order, each from its user's variant.

        Raises:
            GemirecError: What is wrong with a request.
        """
        numbers: dict[Variant, list[int]] = {"A": [], "B": []}
        for number, request in enumerate(requests):
            numbers[self.split.variant(getattr(request, "user_id", None))].append(number)
        out: list[Any] = [None] * len(requests)
        await asyncio.gather(*(self._part(ask, kind, name, part, out) for name, part in numbers.items() if part))
        return out

    async def _part(self, ask: Ask, kind: Kind, variant: Variant, numbers: list[int], out: list[Any]) -> None:
        """Fill in one variant's answers."""
        start, outcome = time.perf_counter(), "refused"
        try:
            answers = await ask(variant, numbers)
            outcome = "answered"
        finally:
            self._metrics.variant_request(variant, outcome, time.perf_counter() - start)
        for number, answer in zip(numbers, answers, strict=True):
            if isinstance(answer, UserAnswer):
                self._metrics.variant_answer(variant, answer.source)
                answer = msgspec.structs.replace(answer, variant=variant)
            if kind == "recommend" and answer.user_id is not None:
                assert isinstance(answer, RecommendAnswer)
                self._impressions.add(variant, answer)
            out[number] = answer

    def stop(self) -> None:
        """Write the impressions that wait."""
        self._impressions.stop()

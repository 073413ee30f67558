"""The recommender: a trained model with ids, histories and one way to ask it."""

from __future__ import annotations

from gemirec.recommender.face import Recommender

__all__ = ["Recommender"]

"""Export: vectors as Parquet, the path of a request as ONNX, a map of the catalogue."""

from __future__ import annotations

from gemirec.recommender.export.config import PARTS, ExportConfig
from gemirec.recommender.export.map import place, project
from gemirec.recommender.export.run import export

__all__ = ["PARTS", "ExportConfig", "export", "place", "project"]

"""GemiRec, the flagship: see :mod:`gemirec.models.gemirec.model`."""

from gemirec.models.gemirec.config import GemiRecConfig
from gemirec.models.gemirec.model import GemiRec

__all__ = ["GemiRec", "GemiRecConfig"]

"""DMI: any model's interests, refined by a small diffusion (Le et al., 2025, arXiv 2502.05561)."""

from gemirec.models.dmi.config import DMIConfig
from gemirec.models.dmi.model import DMI

__all__ = ["DMI", "DMIConfig"]

"""Pictures of a trained model: item map, dictionary tree, posterior along a history, training curves."""

from gemirec.experiments.pictures.run import PICTURES, pictures

__all__ = ["PICTURES", "pictures"]

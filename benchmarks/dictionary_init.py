"""How much of the interest dictionary is used, by initialisation: k-means, categories, random.

Takes the item vectors of a trained artifact and trains the paper's dictionary alone on them (stage 2's loss, Adam),
from each initialisation; prints the share of codes in use per level and of tuples, before and after.

    python benchmarks/dictionary_init.py run/artifact
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from gemirec import Recommender
from gemirec.components.codes import health
from gemirec.components.quantizer import QuantizerConfig, ResidualQuantizer

SIZES, STEPS, BATCH = (32, 16, 8, 4), 400, 512


def line(quantizer: ResidualQuantizer, item_ND: torch.Tensor) -> str:
    """Return the shares in use."""
    found = health(quantizer.assign(item_ND), list(quantizer.codebooks), SIZES)
    levels = "  ".join(f"{found[f'utilisation_level_{c}']:6.1%}" for c in range(1, len(SIZES) + 1))
    return f"{levels}  mean {found['utilisation']:6.1%}  tuples {found['utilisation_tuples']:5.1%}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Recommender.from_pretrained(arguments.artifact).model
    item_ND = model.item_vectors()[1:].detach()
    category = model.spec.category_N
    category_N = None if category is None else torch.from_numpy(category[1:].astype("int64"))
    print(f"{len(item_ND):,} items, dictionary {'x'.join(map(str, SIZES))}; codes in use, level 1 to {len(SIZES)}")
    for init in ("kmeans", "category", "random"):
        if init == "category" and category_N is None:
            continue
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        quantizer = ResidualQuantizer(QuantizerConfig(sizes=SIZES, init=init), item_ND.shape[1])
        quantizer.initialise(item_ND, category_N, generator)
        print(f"{init:9} at the start      {line(quantizer, item_ND)}")
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=arguments.learning_rate, foreach=False)
        for _ in range(STEPS):
            optimizer.zero_grad()
            row_B = torch.randint(len(item_ND), (BATCH,), generator=generator)
            quantizer.loss(quantizer(item_ND[row_B])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        print(f"{init:9} after {STEPS} steps  {line(quantizer, item_ND)}")


if __name__ == "__main__":
    main()

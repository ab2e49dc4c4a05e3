"""What it gains that some convolutions are matrix products (`l3rs.networks.convolution`): forward and backward pass, on one thread.

    python evaluate/convolution_cost.py

writes `evaluate/results/convolution_cost.csv`. A batch is 64 images of 32 px. Both ways take turns, so that what else the machine does
falls on both; times are the fastest of all repetitions, and ratios the medians over pairs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from options import count
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from l3rs.networks.convolution import use_matmuls
from l3rs.networks.create import resnet

NETWORKS = ((34, 16), (18, 8), (34, 64))  # depth and width: what is shipped, that of the ablations, torchvision's
BATCH, SIDE, CLASSES = 64, 32, 25


def passes(network: nn.Module) -> float:
    """Milliseconds of one forward and backward pass in train mode."""
    inputs, labels = torch.randn(BATCH, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), torch.arange(BATCH) % CLASSES
    network.zero_grad()
    started = time.perf_counter()
    F.cross_entropy(network(inputs), labels).backward()
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=count, default=40, help="passes of each way, of each network (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "convolution_cost.csv", help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for depth, width in NETWORKS:
        plain, products = (resnet(depth, width, 1, CLASSES).to(memory_format=torch.channels_last) for _ in range(2))
        if width < 16:
            plain.to(memory_format=torch.contiguous_format)  # in channels last oneDNN writes out of bounds
        use_matmuls(products)
        bar = tqdm(range(args.repetitions + 1), desc=f"ResNet-{depth}, width {width}")
        times = np.array([(passes(plain), passes(products)) for _ in bar])[1:]  # the first warms up
        fastest, ratio = times.min(axis=0).round(1), np.median(times[:, 0] / times[:, 1])
        rows.append(
            {"network": f"resnet{depth}", "width": width, "plain_ms": fastest[0], "products_ms": fastest[1], "ratio": round(ratio, 2)}
        )
    table = pd.DataFrame(rows)
    table.to_csv(args.out, index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()

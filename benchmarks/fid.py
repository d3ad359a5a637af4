"""The FID of two sets of 2,000 pictures (2048 features each): ours beside scipy's matrix square root, in one run.

    python benchmarks/fid.py          about a minute; wants scipy (the test extra)

Both start from the same features and take turns; each takes means and covariances its own way and then the distance.
"""

import argparse
import os
import statistics
import time

import numpy as np
import scipy
import scipy.linalg
import torch
from report import table
from torch import Tensor

from cfld.evaluate.metrics import FeatureStatistics, fid


def features(count: int, width: int, seed: int) -> Tensor:
    """(N, D) like Inception's: correlated, not negative, of very different variances."""
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    mixing *= torch.linspace(0, -4, width).exp()[:, None]
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) @ mixing
    return torch.relu(0.05 * x + 0.05 * seed)


def ours(x: Tensor, y: Tensor) -> tuple[float, float]:
    """-> FID, seconds of the distance alone."""
    sets = []
    for z in (x, y):
        sets.append(FeatureStatistics(z.shape[1]))
        sets[-1].update(z)
    moments = [m for s in sets for m in (s.mean, s.covariance)]
    started = time.perf_counter()
    value = fid(*moments)
    return value, time.perf_counter() - started


def scipys(x: Tensor, y: Tensor) -> tuple[float, float]:
    """-> FID, seconds of the distance alone."""
    (m1, s1), (m2, s2) = ((z.mean(axis=0), np.cov(z, rowvar=False)) for z in (x.double().numpy(), y.double().numpy()))
    started = time.perf_counter()
    root = scipy.linalg.sqrtm(s1 @ s2)
    value = np.sum((m1 - m2) ** 2) + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real
    return float(value), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="pictures of a set (2000)")
    parser.add_argument("--width", type=int, default=2048, help="features of a picture (2048)")
    parser.add_argument("--repeats", type=int, default=3, help="turns that the medians are taken over (3)")
    args = parser.parse_args()

    x, y = features(args.count, args.width, 1), features(args.count, args.width, 2)
    fid(torch.zeros(64), torch.eye(64), torch.zeros(64), torch.eye(64))  # load what is loaded lazily
    whole: dict[str, list[float]] = {"ours": [], "scipy": []}
    alone: dict[str, list[float]] = {"ours": [], "scipy": []}
    values = {}
    for _ in range(args.repeats):
        for name, run in (("ours", ours), ("scipy", scipys)):
            started = time.perf_counter()
            values[name], seconds = run(x, y)
            whole[name].append(time.perf_counter() - started)
            alone[name].append(seconds)

    print(
        f"2 x {args.count} pictures, {args.width} features, {len(os.sched_getaffinity(0))} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, scipy {scipy.__version__}; "
        f"medians of {args.repeats}\n"
    )
    rows = [
        [name, f"{values[name]:.6f}", f"{statistics.median(whole[name]):.2f}", f"{statistics.median(alone[name]):.2f}"]
        for name in ("ours", "scipy")
    ]
    print(table(["", "FID", "seconds from features", "seconds of the distance"], rows))
    whole_ratio, alone_ratio = (statistics.median(t["scipy"]) / statistics.median(t["ours"]) for t in (whole, alone))
    difference = abs(values["ours"] - values["scipy"]) / values["scipy"]
    print(f"\n{alone_ratio:.1f} times as fast ({whole_ratio:.1f} from features), relative difference {difference:.1e}")


if __name__ == "__main__":
    main()

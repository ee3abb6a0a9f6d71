"""Claim: how alike a backbone finds the texts of a suite's tasks, which is how much SoftCPT makes them share.

    python benchmarks/task_kernel.py --backbone mini SUITE...

Prints a Markdown table of Z Z^T, with Z the task features at SoftCPT-NATA's start, mean over seeds: their
norms, the cosines between two tasks, and the part of its largest eigenvalue in its trace. Where that part is
near 1 all contexts move together, as with one context for all tasks, whatever the network could represent.
"""

from __future__ import annotations

import argparse

import torch

from softcpt.clip.backbone import load_backbone
from softcpt.data.suite import load_suite
from softcpt.engine.adapter import problem_of
from softcpt.engine.rates import kernel_at_start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    backbone = load_backbone(asked.backbone)
    print("| suite | tasks | norms | cosines, mean | least | largest eigenvalue's part |")
    print("|---|---|---|---|---|---|")
    for source in asked.suites:
        suite = load_suite(source, check_images=False)
        problem = problem_of(suite.tasks, backbone)
        with torch.no_grad():
            kernels = [kernel_at_start(problem, seed).double() for seed in asked.seeds]
        norms = torch.stack([kernel.diagonal().sqrt() for kernel in kernels])
        cosines = torch.stack([kernel / torch.outer(n, n) for kernel, n in zip(kernels, norms, strict=True)])
        between = cosines[:, ~torch.eye(len(suite.tasks), dtype=torch.bool)]
        part = torch.stack([torch.linalg.eigvalsh(kernel)[-1] / kernel.trace() for kernel in kernels])
        norm = f"{norms.min():.1f} to {norms.max():.1f}"
        cosine = f"{between.mean():.2f} | {between.min():.2f}"
        print(f"| {suite.name} | {len(suite.tasks)} | {norm} | {cosine} | {100 * part.mean():.0f} % |")


if __name__ == "__main__":
    main()

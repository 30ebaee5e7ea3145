"""`python -m worker.trainer.gpu_test [DEVICE]`: whether the GPU that this process sees still computes and remembers.

Exit status 0 if it does. Otherwise the last line on standard error says what is wrong.
"""

from __future__ import annotations

import sys

import torch

SIZE = 2048
MEMORY_BYTES = 256 * 2**20


def main(device: str = "cuda") -> int:
    torch.backends.cuda.matmul.allow_tf32 = False
    drawn = torch.Generator().manual_seed(0)
    # Small whole numbers: fp32 sums of their products are exact in any order, so one wrong bit is a difference.
    left, right = (torch.randint(-8, 8, (SIZE, SIZE), generator=drawn).float() for _ in range(2))
    if not torch.equal((left.to(device) @ right.to(device)).cpu(), left @ right):
        print("a matrix product is wrong", file=sys.stderr)
        return 1
    pattern = torch.arange(MEMORY_BYTES // 8)
    if not torch.equal(pattern.to(device).clone().cpu(), pattern):
        print("memory does not keep what is written to it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

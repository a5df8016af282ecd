"""One Triton kernel that moves several averages of all weights: a weight is read once, each average once and back."""

import triton
import triton.language as tl

BLOCK = 4096  # elements of a program


@triton.jit
def _moved(average, weight, share):
    """average + share (weight - average), as torch.lerp: share 1 gives the weight and 0 the average to the bit."""
    difference = weight - average
    return tl.where(share < 0.5, average + share * difference, weight - difference * (1.0 - share))


@triton.jit
def move_kernel(
    addresses, blocks, sizes, skip, share0, share1, share2, share3,
    COUNT: tl.constexpr, SKIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`addresses` [tensors, 1 + COUNT]: of a weight and of its averages; `blocks` [programs, 2]: which weight a program
    takes a part of, and which part; `sizes` [tensors]. Nothing is written where `skip` is not 0."""
    program = tl.program_id(0)
    tensor = tl.load(blocks + 2 * program)
    at = tl.load(blocks + 2 * program + 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(sizes + tensor)
    if SKIPS:
        size = tl.where(tl.load(skip) == 0, size, 0)
    inside = at < size
    row = addresses + tensor * (1 + COUNT)
    weight = tl.load(tl.load(row).to(tl.pointer_type(tl.float32)) + at, inside)
    for number in tl.static_range(COUNT):
        if number == 0:
            share = share0
        elif number == 1:
            share = share1
        elif number == 2:
            share = share2
        else:
            share = share3
        average = tl.load(row + 1 + number).to(tl.pointer_type(tl.float32)) + at
        tl.store(average, _moved(tl.load(average, inside), weight, share), inside)

"""How many images of a batch fit into the memory at once; the rest follows in parts whose gradients add up."""

FEW = 2, 4         # images that the measurement is made with: batch norm wants more than one
SHARE = 2 / 3      # of the free memory that a step may take: validation and other people need some too


def slices(batch_size, size):
    """The parts of a batch: slices of `size` images, the last perhaps of fewer."""
    return [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]


def largest(batch_size, ops, work):
    """(size, reason): the largest divisor of batch_size for which work(size) fits into the memory, and why in words.

    work(n): forward and backward of n images. What it takes is measured with two numbers of images and grows in
    proportion. Parts of one size use the same memory one after the other.
    """
    free = ops.free_bytes()
    if batch_size <= FEW[1] or free is None:
        return batch_size, f"all {batch_size} images of a batch at once"
    few, more = (ops.bytes_of(lambda: work(n)) for n in FEW)
    each = max(more - few, 1) / (FEW[1] - FEW[0])
    room = int((SHARE * free - max(few - FEW[0] * each, 0)) / each)
    size = max([n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= room], default=1)
    what = "all" if size == batch_size else f"{size} of the"
    return size, (f"{what} {batch_size} images of a batch at once: each takes {megabytes(each)}, and of "
                  f"{megabytes(free)} free a step may take {megabytes(SHARE * free)}")


def megabytes(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB" if count >= 1e6 else "less than a MB"

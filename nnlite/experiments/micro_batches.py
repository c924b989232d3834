"""Gradient accumulation: a batch that the memory does not hold is done in micro-batches, whose gradients add up."""

FEW = 2, 4         # images that the measurement is made with: batch norm wants more than one
SHARE = 2 / 3      # of the free memory that a step may take: validation and other people need some too


def slices(batch_size, size):
    """The micro-batches of a batch: slices of `size` images, the last perhaps of fewer."""
    return [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]


def largest(batch_size, ops, work):
    """(size, reason): the largest micro-batches for which forward and backward fit into the memory, all of one size
    but for a smaller last one, and why in words.

    work(n): forward and backward of n images. What it takes is measured with two numbers of images and grows in
    proportion. Micro-batches of one size use the same memory one after the other. A smaller last one is reckoned with
    memory of its own, as it takes where blocks of one size are not cut for another.
    """
    free = ops.free_bytes()
    if batch_size <= FEW[1] or free is None:
        return batch_size, f"all {batch_size} images of a batch at once"
    few, more = (ops.bytes_of(lambda: work(n)) for n in FEW)
    each = max(more - few, 1) / (FEW[1] - FEW[0])
    fixed = max(few - FEW[0] * each, 0)
    room = int((SHARE * free - fixed) / each)
    sizes = (-(-batch_size // count) for count in range(1, batch_size + 1))
    size = next((n for n in sizes if n + batch_size % n <= room), 1)
    may = f"of {megabytes(free)} free a step may take {megabytes(SHARE * free)}"
    if room < 1:
        return 1, f"micro-batches of one image, although a step with one takes {megabytes(fixed + each)}, and {may}"
    what = f"all {size} images of a batch at once" if size == batch_size else \
        f"micro-batches of {size} of the {batch_size} images of a batch"
    return size, f"{what}: an image takes {megabytes(each)}, and {may}"


def megabytes(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB" if count >= 1e6 else "less than a MB"

"""Augmentation: every epoch shows an image mirrored, turned, moved, larger or smaller, and in another light.

Pixel (h, w) of the output (Ho, Wo) shows the place (r, s) of the image (H, W), both counted from the centre of the
first pixel. On the way from the one to the other, in pixels of the image:

    centre      y = ((h + 1/2) / Ho - 1/2) H          x = ((w + 1/2) / Wo - 1/2) W        0 in the middle
    zoom        y, x = y / z, x / z                                                      the picture z times as large
    rotation    y, x = cos(t) y - sin(t) x, sin(t) y + cos(t) x                          turned by t, no square bent
    flip        x = -x                                                                   or not
    shift       y, x = y + p H, x + q W
    place       r = y + H/2 - 1/2                     s = x + W/2 - 1/2

All of it is one linear map, (r, s) = M (h, w, 1), M (2, 3), which `warp_batch` of the ops applies together with the
tone: contrast c about the image's mean, and brightness l as a share of full scale. Where the output is smaller than the
image, pixels between those shown are not averaged.
"""

import numpy as np

from ..ops.reference import ReferenceOps
from ..rng import Rng

NUMBERS = 7   # of an image in an epoch: flip, rotation, two shifts, zoom, contrast, brightness


def plain(size_in, size_out):
    """(2, 3) float32: the map that only resizes, from (H, W) to (Ho, Wo): r = (h + 1/2) H / Ho - 1/2, s alike."""
    (H, W), (Ho, Wo) = size_in, size_out
    return np.array([[H / Ho, 0, 0.5 * H / Ho - 0.5], [0, W / Wo, 0.5 * W / Wo - 0.5]], np.float32)


class Augmentation:
    """draw(rows, epochs): the maps and tones of a batch.

    What becomes of an image is a function of (seed, epoch, its row) alone: whatever batch it comes in, and again after
    a resume. Uniform in: rotate, degrees to either side; shift, the share of height and of width to either side; zoom
    1 - zoom to 1 + zoom (zoom < 1), contrast alike; brightness to either side, a share of full scale. flip: whether
    every other one, by chance, is mirrored left to right.

    count: the rows of the set; size_in (H, W) of its images; size_out (Ho, Wo).
    """

    def __init__(self, *, count, size_in, size_out, seed, flip=False, rotate=0.0, shift=0.0, zoom=0.0, contrast=0.0,
                 brightness=0.0):
        self.count, self.size_in, self.size_out = count, size_in, size_out
        self.flip, self.most = flip, (rotate, shift, shift, zoom, contrast, brightness)
        self._rng = Rng(ReferenceOps(), seed)
        self._cached = {}

    def draw(self, rows, epochs):
        """maps (B, 2, 3) and tone (B, 2), both float32, of images rows (B,); epochs: one number, or one a row."""
        rows, epochs = np.broadcast_arrays(rows, epochs)
        maps, tone = np.empty((len(rows), 2, 3), np.float32), np.empty((len(rows), 2), np.float32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            maps[here], tone[here] = (drawn[rows[here]] for drawn in self._epoch(int(epoch)))
        return maps, tone

    def _epoch(self, epoch):
        """Maps and tones of all images: drawing them at once takes a tenth of the time of a batch at a time."""
        if epoch not in self._cached:
            self._cached = {e: drawn for e, drawn in self._cached.items() if e == epoch - 1}
            self._rng.set_step(epoch)
            words = self._rng.ops.random_words(self.count, NUMBERS, self._rng.key("augment"))
            self._cached[epoch] = self._maps_and_tones((words + 0.5) * 2.0 ** -32)
        return self._cached[epoch]

    def _maps_and_tones(self, chances):
        """chances (n, 7): uniform between 0 and 1."""
        degrees, down, right, zoom, contrast, brightness = ((2 * chances[:, 1:] - 1) * self.most).T
        mirror = np.where(chances[:, 0] < 0.5, -1.0, 1.0) if self.flip else np.ones(len(chances))
        cos, sin = np.cos(np.deg2rad(degrees)) / (1 + zoom), np.sin(np.deg2rad(degrees)) / (1 + zoom)
        (H, W), (Ho, Wo) = self.size_in, self.size_out
        maps = np.empty((len(chances), 2, 3), np.float32)
        turns = ((cos, -sin, down * H + H / 2 - 0.5), (mirror * sin, mirror * cos, right * W + W / 2 - 0.5))
        for row, (of_y, of_x, place) in enumerate(turns):
            a, b = of_y * (H / Ho), of_x * (W / Wo)                 # of a step of h, of a step of w
            maps[:, row] = np.stack([a, b, place - a * (Ho - 1) / 2 - b * (Wo - 1) / 2], 1)
        return maps, np.stack([1 + contrast, brightness], 1).astype(np.float32)

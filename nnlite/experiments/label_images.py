"""Images on the device, and as a classifier sees them: of its size and channels, normalised, in training augmented."""

import numpy as np

from ..data import images as image_data
from ..data.augment import Augmentation, plain
from ..errors import expected
from ..ops.reference import ReferenceOps
from ..rng import Rng

HALF = 2 ** 31   # of the 32-bit words: a word below flips an image
WARPS = "rotate", "shift", "zoom", "contrast", "brightness"
# Mean and deviation of a channel, in units of full scale, that published weights were trained with.
PUBLISHED = {"half": ((0.5,) * 3, (0.5,) * 3), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def seen_shape(settings, shape):
    """(H, W, C) of what the model sees of images of this shape."""
    return (*(settings["size"] or shape[:2]), settings["channels"] or shape[2])


def statistics(normalise, data):
    """Mean and deviation of each channel, in units of full scale, for that setting; None, None where it has none."""
    if normalise == "raw":
        return None, None
    if normalise in PUBLISHED:
        return PUBLISHED[normalise]
    return image_data.statistics(data.images, data.split["train"], data.source)


class LabelImages:
    """settings, data: as in LabelExperiment; pixels: mean and deviation of the training pixels where they are known.

    Flips and moves of whole pixels (ops.image_batch) are drawn for each step; with rotate, shift, zoom, contrast or
    brightness, or another size, images go through ops.warp_batch, and what becomes of them, flips too, is drawn for
    each epoch (see nnlite.data.augment). In evaluation they are resized and normalised, nothing else.
    """

    def __init__(self, settings, data, ops, *, dtype, seed, pixels):
        self.settings, self.ops, self.dtype = settings, ops, dtype
        self.shape, (H, W, C) = data.images.shape[1:], seen_shape(settings, data.images.shape[1:])
        self.size, self.channels = (H, W), C
        self.warps = bool(settings["size"]) or any(settings[name] for name in WARPS)
        self._check()
        self.pixels = None, None   # mean and deviation of each channel that the model sees, where they are used
        self.images = ops.asarray(data.images)
        self.shift, self.scale = (ops.asarray(np.resize(part, C), dtype) for part in self._normalisation(data, pixels))
        B = settings["batch_size"]
        self.rows = ops.zeros((B,), "int32")   # fixed places for what changes from step to step
        if self.warps:
            self.maps, self.tone = ops.zeros((B, 2, 3), "float32"), ops.zeros((B, 2), "float32")
            self.augmentation = Augmentation(
                count=len(data.images), size_in=self.shape[:2], size_out=self.size, seed=seed, flip=settings["flip"],
                **{name: settings[name] for name in WARPS})
        else:
            self.flip, self.moves = ops.zeros((B,), "uint8"), ops.zeros((B, 2), "int32")
            self.chances = Rng(ReferenceOps(), seed)   # of flips and moves, drawn on the host

    def _check(self):
        """Raise for settings that do not go together."""
        settings, own = self.settings, self.shape[2]
        if settings["move"] and self.warps:
            raise expected("--set move", "0 beside size, " + ", ".join(WARPS) + " (shift moves too)", settings["move"])
        if own not in (1, self.channels):
            raise expected("--set channels", f"0 for images of {own} channels", self.channels)
        if settings["normalise"] == "imagenet" and self.channels != 3:
            raise expected("--set normalise", "channels=3 beside 'imagenet', whose statistics are of three",
                           f"images of {self.channels}")

    def _normalisation(self, data, pixels):
        """(shift, scale), an entry for each channel: pixels 0-255 as x = (pixel - shift) scale."""
        kind = self.settings["normalise"]
        if kind == "raw":
            return np.zeros(1), np.ones(1)
        known = pixels if pixels[0] else statistics(kind, data)
        mean, std = (np.resize(np.asarray(part, np.float64), self.channels) for part in known)
        self.pixels = mean.tolist(), None if kind == "centred" else std.tolist()
        return 255 * mean, np.ones(1) if kind == "centred" else 1 / (255 * std)

    def prepare(self, iteration, rows, epochs):
        """Put what the step shows of the images rows (B,) where batch() finds it; epochs (B,): the epoch of each."""
        ops, settings = self.ops, self.settings
        ops.copy_into(self.rows, rows)
        if self.warps:
            maps, tone = self.augmentation.draw(rows, epochs)
            ops.copy_into(self.maps, maps)
            ops.copy_into(self.tone, tone)
            return
        self.chances.set_step(iteration)
        if settings["flip"]:
            words = self.chances.ops.random_words(1, len(rows), self.chances.key("flips"))[0]
            ops.copy_into(self.flip, words < HALF)
        if settings["move"]:
            words, most = self.chances.ops.random_words(len(rows), 2, self.chances.key("moves")), settings["move"]
            ops.copy_into(self.moves, (words.astype(np.uint64) * (2 * most + 1) >> 32).astype(np.int32) - most)

    def batch(self, part):
        """x of a slice of the prepared rows."""
        if self.warps:
            return self._warp(self.images, self.rows[part], self.maps[part], self.tone[part])
        return self._take(self.images, self.rows[part], self.flip[part], self.moves[part])

    def plain(self, images):
        """x of uint8 images (n, H, W, C), as they are."""
        ops, n = self.ops, len(images)
        images, rows = ops.asarray(images), ops.asarray(np.arange(n, dtype=np.int32))
        if self.settings["size"]:
            maps = np.repeat(plain(self.shape[:2], self.size)[None], n, 0)
            return self._warp(images, rows, ops.asarray(maps), ops.asarray(np.tile(np.float32([1, 0]), (n, 1))))
        return self._take(images, rows, ops.zeros((n,), "uint8"), ops.zeros((n, 2), "int32"))

    def _take(self, images, rows, flip, moves):
        return self._repeated(
            lambda shift, scale: self.ops.image_batch(images, rows, flip, moves, shift, scale, self.dtype))

    def _warp(self, images, rows, maps, tone):
        return self._repeated(
            lambda shift, scale: self.ops.warp_batch(images, rows, maps, tone, shift, scale, self.size, self.dtype))

    def _repeated(self, view):
        """view(shift, scale); grey images that are seen in three channels once for each, as each is normalised."""
        if self.shape[2] == self.channels:
            return view(self.shift, self.scale)
        return self.ops.concat([view(self.shift[c:c + 1], self.scale[c:c + 1]) for c in range(self.channels)], -1)

    def about(self):
        """How the images are normalised: {name: value}, as nnlite.export writes it."""
        mean, std = self.pixels
        return {"normalise": self.settings["normalise"], "pixel_mean": mean, "pixel_std": std}

    def describe(self):
        """What happens to the images, in lines for people."""
        settings, lines = self.settings, []
        seen = "x".join(map(str, (*self.size, self.channels)))
        if settings["size"] or settings["channels"]:
            lines.append(f"images are seen as {seen}")
        drawn = ["flip"] if settings["flip"] else []
        drawn += [f"move to {settings['move']} pixels"] if settings["move"] else []
        drawn += [f"{name} to {settings[name]:g}{' degrees' if name == 'rotate' else ''}" for name in WARPS
                  if settings[name]]
        return lines + ([f"augmentation: {', '.join(drawn)}"] if drawn else [])

"""cnn4 trained by nnlite and by PyTorch: the same weights and batches give the same losses."""

import numpy as np
import pytest

from nnlite.data.images import ImageSet
from nnlite.experiments import LabelExperiment
from nnlite.presets import PRESETS

torch = pytest.importorskip("torch", reason="PyTorch, of the extra peers, is not installed")
STEPS, BATCH = 20, 50


def random_images():
    chance = np.random.default_rng(1)
    rows = np.arange(400, dtype=np.int32)
    return ImageSet(chance.integers(0, 256, (400, 48, 48, 1)).astype(np.uint8),
                    chance.integers(0, 7, 400).astype(np.int32), tuple("abcdefg"),
                    {"train": rows[:300], "validation": rows[300:350], "test": rows[350:]}, "random images")


class Cnn4:
    """The layers of nnlite's model as PyTorch has them; pairs: (its parameter, nnlite's)."""

    def __init__(self, model, batch_norm, dtype):
        layers, self.pairs, found = [], [], iter(model.layers)

        def of(peer, layer, **names):
            layers.append(peer.to(dtype))
            self.pairs += [(getattr(peer, theirs), getattr(layer, ours)) for theirs, ours in names.items()]

        for C, K in zip((1, 32, 64, 96), (32, 64, 96, 128)):
            of(torch.nn.Conv2d(C, K, 3, padding=1), next(found), weight="W", bias="b")
            pooling = next(found)
            if batch_norm:
                of(torch.nn.BatchNorm2d(K), pooling, weight="g", bias="b")
            layers += [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        layers.append(Rows())
        next(found)
        of(torch.nn.Linear(3 * 3 * 128, 200), next(found), weight="W", bias="b")
        layers.append(torch.nn.ReLU())
        of(torch.nn.Linear(200, 7), next(found), weight="W", bias="b")
        self.net = torch.nn.Sequential(*layers)

    def take_weights(self, ops):
        with torch.no_grad():
            for theirs, ours in self.pairs:
                theirs.copy_(torch.tensor(ops.to_host(ours)).permute(*turned(ours.ndim)))


def turned(ndim):
    """(kh, kw, C, K) -> (K, C, kh, kw), (D, K) -> (K, D)."""
    return {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[ndim]


class Rows(torch.nn.Module):
    """(N, C, H, W) -> (N, H W C), the channel running fastest as in nnlite."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def peers_batch(e, iteration):
    """The batch of that step made by plain NumPy: statistics of the training part, flips from the counted words."""
    images, rows = e.data.images.astype(np.float64), e.train_rows[e.batches.rows(iteration)]
    part = images[e.train_rows]
    mean, std = (float(np.float32(number / 255)) for number in (part.mean(), part.std()))
    x = (images[rows] / 255 - mean) / std
    e.model.rng.set_step(iteration)
    flip = e.ops.to_host(e.ops.random_words(1, len(rows), e.model.rng.key("flips")))[0] < 2 ** 31
    x[flip] = x[flip][:, :, ::-1]
    return x.transpose(0, 3, 1, 2), e.data.labels[rows].astype(np.int64)


def losses(ops, dtype, batch_norm, anew):
    """The losses of both, each (STEPS,). anew: PyTorch is given nnlite's weights before each step, else once."""
    settings = {**PRESETS["cnn4"], "batch_norm": batch_norm, "batch_size": BATCH, "iterations": STEPS}
    e = LabelExperiment(settings, random_images(), ops, dtype=dtype, seed=7)
    real = getattr(torch, dtype)
    peer = Cnn4(e.model, batch_norm, real)
    peer.take_weights(ops)
    weights, others = ([p for p in peer.net.parameters() if (p.ndim > 1) == decays] for decays in (True, False))
    adam = torch.optim.Adam([{"params": weights, "weight_decay": 0.00172}, {"params": others}])
    ours, theirs = [], []
    for iteration in range(STEPS):
        if anew:
            peer.take_weights(ops)
        x, labels = peers_batch(e, iteration)
        ours.append(float(e.step(iteration)["loss"]))
        for group in adam.param_groups:
            group["lr"] = 0.00127 * 0.95 ** (iteration // 6)   # 300 images: 6 steps an epoch
        adam.zero_grad()
        loss = torch.nn.functional.cross_entropy(peer.net(torch.tensor(x, dtype=real)), torch.tensor(labels))
        loss.backward()
        adam.step()
        theirs.append(loss.item())
    return ours, theirs


@pytest.mark.parametrize("batch_norm", [True, False])
def test_each_loss_in_float32(batch_norm, fast_ops):
    """The same weights and batches at every step. Let go, the two drift apart by 1e-4 and more in 20 steps, as each
    of them does from its own float64: Adam's first steps are the signs of gradients, whatever their size."""
    ours, theirs = losses(fast_ops, "float32", batch_norm, True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert abs(theirs[-1] / theirs[0] - 1) > 0.05


@pytest.mark.parametrize("batch_norm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_twenty_steps_alone_in_float64(batch_norm, fast_ops):
    ours, theirs = losses(fast_ops, "float64", batch_norm, False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)
    assert abs(theirs[-1] / theirs[0] - 1) > 0.05

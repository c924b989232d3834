"""The models in plain PyTorch: what nnlite is compared with, in the benchmarks and in the parity tests."""

import torch
from torch import nn
from torch.nn import functional as F


def facts(device):
    """What this PyTorch is, for the report. Raises RuntimeError without the GPU that it is to run on.

    On a GPU its products have float32's precision, as nnlite's have, and its convolutions the fastest algorithm.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    return {"what": f"torch {torch.__version__}, {torch.get_num_threads()} threads"}


def waiter(device):
    """A function that waits until the device has done everything."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def compile_as(mode, model):
    """The model as the mode of that name runs it; a model meets few shapes, and each is compiled for itself."""
    if mode == "graphs":
        return torch.compile(model, mode="reduce-overhead", dynamic=False)
    if mode == "frozen":   # in inference: norms are folded into convolutions, weights laid out for oneDNN
        torch._inductor.config.freezing = True
    return torch.compile(model, dynamic=False) if mode in ("compiled", "frozen") else model


class Vae(nn.Module):
    """Models 1, 2 and 3, with the sizes and names of nnlite.models.vae.Vae."""

    def __init__(self, encoder, decoder, *, conditional, reconstruction_variance, samples=3, triplet_samples=10,
                 keep_prob=0.9):
        super().__init__()
        self.conditional, self.reconstruction_variance = conditional, reconstruction_variance
        self.samples, self.triplet_samples = samples, triplet_samples
        self.encoder = mlp([*encoder[:-1], 2 * encoder[-1]], keep_prob)
        self.decoder = mlp(decoder, keep_prob)

    def terms(self, inputs, x, y, weight, kl_scale, triplet_scale, noise=torch.randn_like):
        """The loss terms of a batch: inputs (B + 3V, D or 2D), x and y (B, D), weight (V,) or None."""
        B, L = len(x), self.samples
        mu, log_var = self.encoder(inputs).chunk(2, 1)
        z = sample(mu[:B], log_var[:B], L, noise)
        f = self.decoder(torch.cat([z, y.repeat_interleave(L, 0)], 1) if self.conditional else z)
        squared = ((x.repeat_interleave(L, 0) - f) ** 2).sum()
        reconstruction = squared / (2 * self.reconstruction_variance * L * B)
        kl = kl_scale * -0.5 * (1 + log_var[:B] - mu[:B] ** 2 - log_var[:B].exp()).sum()
        if weight is None:
            return reconstruction, kl
        r, p, n = sample(mu[B:], log_var[B:], self.triplet_samples, noise).chunk(3)
        gap = (r - p).norm(dim=1) - (r - n).norm(dim=1)
        return reconstruction, kl, triplet_scale * (weight.repeat_interleave(self.triplet_samples)
                                                    * F.softplus(gap)).sum()

    def forward(self, *batch, **options):
        return sum(self.terms(*batch, **options))


def mlp(sizes, keep_prob):
    """Linear layers, ELU and dropout behind all but the last."""
    layers = []
    for a, b in zip(sizes[:-2], sizes[1:-1]):
        layers += [nn.Linear(a, b), nn.ELU(), nn.Dropout(1 - keep_prob)]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def sample(mu, log_var, samples, noise):
    """z = mu + sigma eps, `samples` consecutive rows for each row of mu."""
    mu, sigma = mu.repeat_interleave(samples, 0), (log_var / 2).exp().repeat_interleave(samples, 0)
    return mu + sigma * noise(mu)


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


# -- classifiers of images: x (B, C, H, W) -> logits, the layers and their order as in nnlite.models ------------------

class Classifier(nn.Module):
    """net behind the preparation of its batch: uint8 images (B, C, H, W), mirrored where flip (B,), normalised; float
    images are taken as they are.

    shift and scale (C,); class_weight (K,) or None. forward gives the loss and how many images are called right.
    """

    def __init__(self, net, shift, scale, *, class_weight=None, smoothing=0.0):
        super().__init__()
        self.net, self.smoothing = net, smoothing
        self.register_buffer("class_weight", class_weight)
        self.register_buffer("shift", shift[:, None, None])
        self.register_buffer("scale", scale[:, None, None])

    def forward(self, images, labels, flip=None):
        if flip is not None:
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        x = images if images.is_floating_point() else (images.float() - self.shift) * self.scale
        logits = self.net(x)
        loss = F.cross_entropy(logits, labels, self.class_weight, label_smoothing=self.smoothing)
        return loss, (logits.argmax(1) == labels).sum()


class Rows(nn.Module):
    """(B, C, H, W) -> (B, H W C), the channel running fastest: a view of a tensor that lies channels last."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def classifier(settings, shape, classes):
    """The net of a preset's settings for images of `shape` (H, W, C)."""
    H, W, C = shape
    features, hidden = [], settings["hidden"]
    conv = lambda a, b, kernel, padding: nn.Conv2d(a, b, kernel, padding=padding)
    relu = lambda: nn.ReLU(inplace=True)
    if settings["model"] == "cnn3":
        features = [conv(C, settings["filters"], 5, 2), relu(), nn.MaxPool2d(2)]
    elif settings["model"] == "cnn4":
        for a, b in zip([C, *settings["filters"]], settings["filters"]):
            norm = [nn.BatchNorm2d(b)] if settings["batch_norm"] else []
            features += [conv(a, b, 3, 1), *norm, relu(), nn.MaxPool2d(2)]
    elif settings["model"] == "cnn5":
        features = [conv(C, 36, 5, 1), relu(), nn.AvgPool2d(2)]
        for a, b in ((36, 48), (48, 48)):
            features += [conv(a, b, 3, 1), relu(), conv(b, b, 3, 1), relu(), nn.AvgPool2d(2)]
    features = nn.Sequential(*features, Rows())
    with torch.no_grad():
        size = features(torch.zeros(1, C, H, W)).shape[1]
        features.apply(lambda module: isinstance(module, nn.BatchNorm2d) and module.reset_running_stats())
    sizes, dense = [size, *(hidden if isinstance(hidden, list) else [hidden])], []
    for a, b in zip(sizes, sizes[1:]):
        dense += [nn.Linear(a, b), relu()]
        if settings.get("keep_prob", 1.0) < 1:
            dense.append(nn.Dropout(1 - settings["keep_prob"]))
    return nn.Sequential(features, *dense, nn.Linear(sizes[-1], classes))


OPTIMISERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad,
              "rmsprop": torch.optim.RMSprop}


def optimiser(settings, model, implementation):
    """The preset's optimiser, weight decay on weights alone; implementation: "default", "foreach" or "fused"."""
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings["l2"]},
              {"params": [p for p in parameters if p.ndim == 1]}]
    options = {"momentum": settings["momentum"]} if settings["optimiser"] == "sgd" else {}
    if implementation != "default":
        options[implementation] = True
    return OPTIMISERS[settings["optimiser"]](groups, lr=settings["learning_rate"], **options)


# -- the same weights -------------------------------------------------------------------------------------------------

def load_weights(net, path):
    """What nnlite.weights.save wrote, into a net of torch_peers."""
    from safetensors.torch import load_file
    net.load_state_dict(load_file(path))


AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}   # (D, K) -> (K, D), (kh, kw, C, K) -> (K, C, kh, kw)


def copy_parameters(parameters, model):
    """nnlite Parameters -> the torch model; both have them in the order of the forward pass."""
    with torch.no_grad():
        for entry, parameter in zip(parameters.table, model.parameters(), strict=True):
            value = torch.tensor(parameters.ops.to_host(parameters.value(entry)))
            parameter.copy_(value.permute(AXES[value.ndim]))

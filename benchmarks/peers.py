"""The face VAEs in plain PyTorch: what nnlite is compared with, in the benchmarks and in the parity tests."""

import torch
from torch import nn
from torch.nn import functional as F


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


def copy_parameters(parameters, model):
    """nnlite Parameters -> the torch model; both have their matrices in the order of the forward pass."""
    values = iter(parameters.table)
    with torch.no_grad():
        for module in linears(model):
            module.weight.copy_(_tensor(parameters, next(values)).T)
            module.bias.copy_(_tensor(parameters, next(values)))


def _tensor(parameters, entry):
    return torch.tensor(parameters.ops.to_host(parameters.value(entry)))

"""Three variational autoencoders of 3D face landmarks: plain, given the neutral face, with a triplet prior.

    model 1   q(z|x) = N(mu(x), diag sigma^2(x)),    p(z) = N(0, I),   p(x|z)   = N(f(z), s^2 I)
    model 2   q(z|x, y), p(x|z, y): the neutral face y of the same person is a second input of both networks
    model 3   model 2 with the prior  p(Z) ~ exp(-phi(Z, S) / lambda) prod_i N(z_i | 0, I),
              phi(Z, S) = sum_t w_t ln(1 + exp(d(z_ref, z_plus) - d(z_ref, z_minus)))

The loss per training point is written out in nnlite.losses.
"""

import math
from typing import NamedTuple

from .. import losses
from ..errors import expected
from ..layers import ConditionalDense, Dense, GaussianSample, Layer, Linear, Sequential


class Batch(NamedTuple):
    """What one step sees: B data rows and V triplets (V = 0 without a triplet prior).

    inputs (B + 3V, D) for model 1, [x, y] (B + 3V, 2D) for models 2 and 3: the data rows, then all references,
    all plus and all minus faces; x (B, D) the faces; y (B, D) their neutral faces or None; weight (V,) or None.
    """

    inputs: object
    x: object
    y: object
    weight: object


class Vae(Layer):
    """encoder: sizes [inputs, hidden ..., K]; decoder: sizes [K or K + D, hidden ..., D].

    ELU and dropout (keep probability `keep_prob`) behind every hidden layer; the encoder ends in 2K numbers
    [mu, ln sigma^2], the decoder in f, both linear.
    samples: L, of each data row; triplet_samples: M, of each face of a triplet.
    """

    def __init__(self, encoder, decoder, *, conditional, reconstruction_variance, topological_variance=1.0,
                 samples=3, triplet_samples=10, keep_prob=0.9):
        super().__init__()
        self.conditional = conditional
        self.features, self.latent_size = decoder[-1], encoder[-1]
        self._check_sizes(encoder, decoder)
        self.reconstruction_variance, self.topological_variance = reconstruction_variance, topological_variance
        self.samples, self.triplet_samples = samples, triplet_samples

        hidden = [Dense(a, b, keep_prob=keep_prob) for a, b in zip(encoder[:-2], encoder[1:-1])]
        self.encoder = Sequential(*hidden, Linear(encoder[-2], 2 * self.latent_size))
        self.sample = GaussianSample(samples)
        self.sample_triplets = GaussianSample(triplet_samples)
        if conditional:
            self.first = ConditionalDense(self.latent_size, self.features, decoder[1], keep_prob=keep_prob)
        else:
            self.first = Dense(self.latent_size, decoder[1], keep_prob=keep_prob)
        hidden = [Dense(a, b, keep_prob=keep_prob) for a, b in zip(decoder[1:-2], decoder[2:-1])]
        self.decoder = Sequential(*hidden, Linear(decoder[-2], decoder[-1]))

    def _check_sizes(self, encoder, decoder):
        D, K = self.features, self.latent_size
        times, plus = (2, D) if self.conditional else (1, 0)
        if len(encoder) < 3 or encoder[0] != times * D:
            raise expected("encoder", f"[{times * D}, hidden sizes, K] for faces of {D} numbers", list(encoder))
        if len(decoder) < 3 or decoder[0] != K + plus:
            raise expected("decoder", f"[{K + plus}, hidden sizes, {D}] for {K} latent dimensions", list(decoder))

    def build(self, ops, *, dtype="float32", seed=0):
        super().build(ops, dtype=dtype, seed=seed)
        # Weights that change from step to step, where a captured step can read them.
        self.kl_scale, self.triplet_scale = ops.scalar(1, "float64"), ops.scalar(1, "float64")
        return self

    def set_weights(self, *, points, batch_size, beta=1.0, triplets=0, triplet_batch=1, triplet_beta=1.0):
        """The weights of KL and triplet term from now on: beta / B and beta_T T / (N V M lambda)."""
        self.ops.set_scalar(self.kl_scale, beta / batch_size)
        self.ops.set_scalar(self.triplet_scale, triplet_beta * triplets / (
            points * triplet_batch * self.triplet_samples * self.topological_variance))

    def decode_samples(self, z, y, train):
        h = self.first.forward(z, y, train=train) if self.conditional else self.first.forward(z, train=train)
        return self.decoder.forward(h, train=train)

    def terms(self, batch, *, train):
        """The loss terms of a batch as {name: value}; with train=True also their gradients in every parameter.

        Backward is the forward upside down: each term hands back the gradient of what it was given.
        """
        ops, B = self.ops, len(batch.x)
        h = self.encoder.forward(batch.inputs, train=train)               # (B + 3V, 2K)
        z = self.sample.forward(h[:B], train=train)                       # (B L, K)
        f = self.decode_samples(z, batch.y, train)                        # (B L, D)

        scale = 1 / (2 * self.reconstruction_variance * self.samples * B)
        reconstruction, df = losses.squared_error(ops, f, batch.x, scale)
        kl, dh = losses.gaussian_kl(ops, h[:B], self.kl_scale)
        terms = {"reconstruction": reconstruction, "kl": kl}
        if batch.weight is not None:
            z_triplets = self.sample_triplets.forward(h[B:], train=train)  # (3 V M, K)
            terms["triplets"], dz_triplets = losses.triplet_softplus(ops, z_triplets, batch.weight, self.triplet_scale)
        if not train:
            return terms

        dz = self.first.backward(self.decoder.backward(df))
        dh = ops.add(dh, self.sample.backward(dz))
        if batch.weight is not None:
            dh = ops.concat([dh, self.sample_triplets.backward(dz_triplets)], 0)
        self.encoder.backward(dh, need_dx=False)
        return terms

    def elbo_constant(self):
        """-(D/2) ln(2 pi s^2): what the ELBO has besides minus the loss."""
        return -self.features / 2 * math.log(2 * math.pi * self.reconstruction_variance)

    # -- for people who have a trained model: NumPy in, NumPy out -------------------------------------------------

    def encode(self, x, y=None):
        """mu and ln sigma^2, each (n, K), of faces x (n, D) and their neutral faces y (n, D); model 1 ignores y."""
        ops = self.ops
        inputs = ops.asarray(x, self.dtype)
        if self.conditional:
            inputs = ops.concat([inputs, ops.asarray(y, self.dtype)], 1)
        h = ops.to_host(self.encoder.forward(inputs))
        return h[:, :self.latent_size].copy(), h[:, self.latent_size:].copy()

    def decode(self, z, y=None):
        """The mean face f (n, D) for latents z (n, K) and neutral faces y (n, D)."""
        ops = self.ops
        y = ops.asarray(y, self.dtype) if self.conditional else None
        return ops.to_host(self.decode_samples(ops.asarray(z, self.dtype), y, False)).copy()

    def first_decoder_weights(self):
        """(K, H), or (K + D, H): how strongly the decoder listens to each latent (and neutral) dimension."""
        return self.ops.to_host(self.first.W).copy()


def vae1(encoder, decoder, **options):
    """Model 1: the plain VAE."""
    return Vae(encoder, decoder, conditional=False, **options)


def vae2(encoder, decoder, **options):
    """Model 2: given the neutral face."""
    return Vae(encoder, decoder, conditional=True, **options)


def vae3(encoder, decoder, **options):
    """Model 3: given the neutral face, with the triplet prior: the networks of model 2, trained on batches that have
    triplets."""
    return Vae(encoder, decoder, conditional=True, **options)

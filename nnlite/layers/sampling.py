"""Drawing from a Gaussian whose mean and variance the network computes."""

from ..errors import expected
from .base import Layer


class GaussianSample(Layer):
    """z = mu + sigma eps, eps ~ N(0, I): the reparametrisation of Kingma & Welling 2014, sect. 2.4

    h (N, 2K) = [mu, ln sigma^2], z (N L, K): L = `samples` consecutive rows for each row of h.

        dmu         = sum over the L samples of dz
        d ln sigma^2 = sum over the L samples of dz (z - mu) / 2      since sigma eps = z - mu
        dh = [dmu, d ln sigma^2]

    In evaluation too z is drawn: the mean is h[:, :K], for whoever wants that. Keeps h and z.
    """

    def __init__(self, samples):
        super().__init__()
        if samples < 1:
            raise expected("samples", "at least 1", samples)
        self.samples = samples

    def out_shape(self, h_shape):
        return (h_shape[0] * self.samples, h_shape[1] // 2)

    def forward(self, h, *, train=False):
        self.check(h, (None, None), "h", "(N, 2K)")
        if h.shape[1] % 2:
            raise expected(self.label, "h (N, 2K) with an even number of columns", h.shape)
        z = self.ops.gaussian_sample(h, self.samples, self.rng.key(self.name))
        self.keep(h, z, train=train)
        return z

    def backward(self, dz):
        h, z = self.take()
        self.check(dz, z.shape, "dz")
        return self.ops.gaussian_sample_backward(dz, h, z)

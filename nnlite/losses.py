"""Losses: functions that return their value and its gradient, from one pass over the data.

    value, dx = losses.squared_error(ops, f, x, scale)

A value is a float64 number (on a GPU a 0-d array that nobody has to wait for). `scale` multiplies value and gradient;
it may be a number or a 0-d array of the ops, for a weight that changes from step to step. The three terms of the
negative ELBO of the face VAEs, for a data batch of B points with L samples each and V triplets with M samples each:

    loss =   1/(2 s^2 L B) * sum_i sum_l ||x_i - f(z_il, y_i)||^2                           squared_error
           + beta / B * sum_i KL(q(z|x_i) || N(0, I))                                       gaussian_kl
           + beta_T T / (N V M lambda) * sum_t w_t sum_m ln(1 + exp(d(r, p) - d(r, n)))     triplet_softplus

each per point of the training set of N points and T triplets.
"""

from .errors import expected


def squared_error(ops, f, x, scale):
    """scale * sum ||x - f||^2

    f (N L, D), x (N, D): each row of x is the target of L consecutive rows of f.
    df = 2 scale (f - x). With scale 1/(2 s^2 L) this is -ln N(x | f, s^2 I), but for its constant.
    """
    if f.ndim != 2 or x.ndim != 2 or f.shape[1] != x.shape[1] or len(x) == 0 or len(f) % len(x):
        raise expected("squared_error", f"f (N L, D) for x {x.shape}", f.shape)
    return ops.squared_error(f, x, scale)


def gaussian_kl(ops, h, scale):
    """scale * sum_ik KL_ik,  KL = -1/2 (1 + ln sigma^2 - mu^2 - sigma^2)

    The divergence KL(N(mu, sigma^2) || N(0, 1)) in closed form (Kingma & Welling 2014, appendix B);
    h (N, 2K) = [mu, ln sigma^2].  dmu = scale mu,  d ln sigma^2 = scale (sigma^2 - 1) / 2.
    """
    if h.ndim != 2 or h.shape[1] % 2:
        raise expected("gaussian_kl", "h (N, 2K)", h.shape)
    return ops.gaussian_kl(h, scale)


def triplet_softplus(ops, z, weight, scale):
    """scale * sum_t w_t sum_m ln(1 + exp(d(r, p) - d(r, n)))

    z (3 V M, K): all references, then all plus, then all minus faces, M consecutive samples a triplet;
    weight (V,). d is the Euclidean distance. With g = scale w sigmoid(d(r, p) - d(r, n)):

        dp = g (p - r) / d(r, p),  dn = g (r - n) / d(r, n),  dr = -dp - dn

    Where two latents coincide the distance has a kink; its gradient is taken as 0.
    """
    if z.ndim != 2 or len(weight) == 0 or len(z) % (3 * len(weight)):
        raise expected("triplet_softplus", f"z (3 V M, K) for {len(weight)} weights", z.shape)
    return ops.triplet_softplus(z, weight, scale)

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


def softmax_cross_entropy(ops, logits, labels, *, class_weight=None, smoothing=0.0, soft=None, alpha=1.0):
    """1/V sum_i w_i ( alpha CE(label_i, p_i) + (1 - alpha) KL(soft_i || p_i) ),  p = softmax(logits),  V = sum_i w_i

    logits (N, K), labels (N,) int32 from 0 to K - 1; class_weight (K,): w_i = class_weight[label_i], else w_i = 1;
    smoothing: the label's target is 1 - smoothing + smoothing / K, every other class's smoothing / K (Szegedy et al.
    2016, sect. 7); soft (N, K): probabilities of another net, for distillation with weight 1 - alpha (Hinton et al.
    2015). The largest logit is subtracted before e^z is taken, so nothing overflows.

        dlogits_i = w_i / V (p_i - t_i),  t_i = alpha * label's target + (1 - alpha) soft_i
    """
    N, K = logits.shape if logits.ndim == 2 else (0, 0)
    if not N or not K:
        raise expected("softmax_cross_entropy", "logits (N, K)", logits.shape)
    for name, array, shape in (("labels", labels, (N,)), ("class_weight", class_weight, (K,)), ("soft", soft, (N, K))):
        if array is not None and array.shape != shape:
            raise expected("softmax_cross_entropy", f"{name} {shape} for logits {logits.shape}", array.shape)
    if soft is None and alpha != 1:
        raise expected("softmax_cross_entropy", "soft targets for alpha below 1", "none")
    return ops.softmax_cross_entropy(logits, labels, soft, alpha, class_weight, smoothing)

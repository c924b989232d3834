"""The blocks of EfficientNetV2 (Tan & Le 2021, fig. 2): expand the channels, look around, project them back."""

from .base import Layer
from .container import Sequential
from .conv import Conv2d, DepthwiseConv2d
from .dropout import StochasticDepth
from .norm import BatchNorm
from .squeeze_excite import SqueezeExcite

EPS = 1e-3   # of every batch norm of EfficientNet


class MBConv(Layer):
    """y = x + m f(x), or f(x) where stride or channels change

        f = project(excite(depthwise(expand(x))))

    expand: 1x1 to e C channels; depthwise: 3x3 with the stride; excite: SqueezeExcite with se C channels inside, C
    those of x; project: 1x1 to K channels. Batch norm behind each convolution, SiLU behind the first two. m: of
    StochasticDepth with `keep_prob`, 1 in evaluation.

        dx = dy + f'(m dy)

    x (N, H, W, C), y (N, ceil(H / stride), ceil(W / stride), K). Keeps nothing beside what its layers keep.
    """

    def __init__(self, in_channels, out_channels, *, expansion, stride=1, se=0.25, keep_prob=1.0):
        super().__init__()
        inner = in_channels * expansion
        self.branch = Sequential(
            expand=Conv2d(in_channels, inner, 1, bias=False), norm1=BatchNorm(inner, eps=EPS, activation="silu"),
            depthwise=DepthwiseConv2d(inner, 3, stride=stride, padding=1, bias=False),
            norm2=BatchNorm(inner, eps=EPS, activation="silu"),
            excite=SqueezeExcite(inner, max(1, int(in_channels * se))),
            project=Conv2d(inner, out_channels, 1, bias=False), norm3=BatchNorm(out_channels, eps=EPS))
        self.is_residual = stride == 1 and in_channels == out_channels
        self.depth = StochasticDepth(keep_prob)

    def out_shape(self, x_shape):
        return self.branch.out_shape(x_shape)

    def forward(self, x, *, train=False):
        f = self.branch.forward(x, train=train)
        if not self.is_residual:
            return f
        return self.ops.add(x, self.depth.forward(f, train=True) if train else f)

    def backward(self, dy):
        if not self.is_residual:
            return self.branch.backward(dy)
        return self.ops.add(dy, self.branch.backward(self.depth.backward(dy)))


class FusedMBConv(Layer):
    """MBConv with one 3x3 convolution in place of expand and depthwise, and no excite

        f = project(expand(x))       expand: 3x3 with the stride to e C channels, project: 1x1 to K channels

    With expansion 1 there is no project: the 3x3 convolution makes the K channels. Else as MBConv.
    """

    def __init__(self, in_channels, out_channels, *, expansion, stride=1, keep_prob=1.0):
        super().__init__()
        inner = in_channels * expansion if expansion > 1 else out_channels
        project = {} if expansion == 1 else {"project": Conv2d(inner, out_channels, 1, bias=False),
                                             "norm2": BatchNorm(out_channels, eps=EPS)}
        self.branch = Sequential(
            expand=Conv2d(in_channels, inner, 3, stride=stride, padding=1, bias=False),
            norm1=BatchNorm(inner, eps=EPS, activation="silu"), **project)
        self.is_residual = stride == 1 and in_channels == out_channels
        self.depth = StochasticDepth(keep_prob)

    out_shape, forward, backward = MBConv.out_shape, MBConv.forward, MBConv.backward

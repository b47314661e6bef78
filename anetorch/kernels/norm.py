"""Root-mean-square normalisation over channels."""

from __future__ import annotations

from anetorch.mil import Value, ops

__all__ = ["rms_norm"]


def rms_norm(x: Value, gain: Value, eps: float) -> Value:
    """x / sqrt(mean(x^2) + eps) * gain, over groups of `len(gain)` channels.

    One group is the norm of the residual stream; as many groups as heads is QK-norm.
    Keep it in fp32: in fp16 eps is below the smallest normal number and the sum of
    squares may overflow.

    Shapes:
        x `[1, G*C, 1, N]`, gain `[C]` -> `[1, G*C, 1, N]`

    Example:
        >>> p = mil.build(lambda x, g: rms_norm(x, g, 1e-5),
        ...               {"x": mil.spec((1, 8, 1, 5), "fp32"), "g": mil.spec((8,), "fp32")})
    """
    c, n = gain.shape[0], x.shape[3]
    groups = x.shape[1] // c
    h = x if groups == 1 else ops.reshape(x=x, shape=[groups, c, 1, n])
    mean = ops.reduce_mean(x=ops.square(x=h), axes=[1], keep_dims=True)
    y = ops.mul(x=h, y=ops.rsqrt(x=mean, epsilon=eps))
    y = ops.mul(x=y, y=ops.reshape(x=gain, shape=[1, c, 1, 1]))
    return y if groups == 1 else ops.reshape(x=y, shape=x.shape)

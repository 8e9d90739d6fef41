"""Sharding rules of the binary operators; importing `nnkernels.distributed` registers them.

Results may be sharded along batch, row and column dimensions, never along packed ones: a row of
bits has no owner on two ranks. Gradients that sum over a sharded dimension come as partial sums.
"""

from torch.distributed.tensor import Partial, Replicate, Shard

from nnkernels._sharding import register

# ---- packing ----


def _rows(first, outputs):
    """Rows are independent of each other."""

    def rules(**arguments):
        for dim in range(arguments[first].ndim - 1):
            yield [Shard(dim)] * outputs, {first: Shard(dim)}

    return rules


def _elements(first):
    def rules(**arguments):
        for dim in range(arguments[first].ndim):
            yield [Shard(dim)], {first: Shard(dim)}

    return rules


register("binary_pack", _rows("x", 1))
register("binary_pack_rowpop", _rows("x", 2))
register("binary_unpack", _rows("bits", 1))
register("binary_pack_biper", _rows("w", 1))
register("binary_pack_ternary", _rows("t", 2))
register("binary_popcount", _elements("t"))
register("binary_binarize", _elements("x"))
register("binary_square_wave", _elements("w"))


# ---- products ----


def _matmul(a, b, **_):
    batched = b.ndim > 2
    for dim in range(a.ndim - 1):
        shard = {key: Shard(dim) for key in ("a", "row_scale", "a_pop")}
        if batched and dim < a.ndim - 2:
            shard |= {"b": Shard(dim), "b_pop": Shard(dim)}
        yield [Shard(dim)], shard
    columns = Shard(b.ndim - 2)
    yield (
        [Shard(a.ndim - 1)],
        {"b": columns, "b_pop": columns, "col_scale": Shard(0), "bias": Shard(0)},
    )


def _linear(x, **arguments):
    for dim in range(x.ndim - 1):
        yield [Shard(dim)], {"x": Shard(dim), "row_scale": Shard(dim)}
    if "w_packed" not in arguments:
        keys = ("w_bits", "w_mask", "scale", "col_scale", "bias")
        yield [Shard(x.ndim - 1)], dict.fromkeys(keys, Shard(0))


register("binary_matmul", _matmul)
register("binary_hamming", _matmul)
register("binary_matmul_sign", lambda a, b, **_: list(_matmul(a, b))[:-1])
register(
    "binary_matmul_prepacked",
    lambda a, **_: (
        ([Shard(dim)], {key: Shard(dim) for key in ("a", "row_scale", "a_pop")})
        for dim in range(a.ndim - 1)
    ),
)
register("binary_linear", _linear)
register("binary_linear_prepacked", _linear)
register("binary_int8_matmul", _linear)
register(
    "binary_ternary_matmul",
    lambda a_mask, **_: (
        ([Shard(dim)], {"a_mask": Shard(dim), "a_sign": Shard(dim)})
        for dim in range(a_mask.ndim - 1)
    ),
)


# ---- training and convolution: images of a batch, or outputs of a layer ----


def _batch(first):
    def rules(**_):
        yield [Shard(0)], {first: Shard(0)}

    return rules


_OUTPUTS = dict.fromkeys(("w", "w_bits", "alpha", "bias"), Shard(0))


def _linear_train(outputs):
    def rules(x, **_):
        whole = [Replicate()]
        for dim in range(x.ndim - 1):
            kept = [Shard(dim), Shard(dim), Shard(dim), *whole]
            yield kept[:outputs], {"x": Shard(dim)}
        yield [Shard(x.ndim - 1), *whole, *whole, Shard(0)][:outputs], _OUTPUTS

    return rules


def _conv2d_train(outputs):
    def rules(**_):
        yield [Shard(0), Shard(0), Shard(0), Replicate()][:outputs], {"x": Shard(0)}

    return rules


def _gradients(needs, placements):
    """A gradient that is not needed is an empty tensor, the same everywhere."""
    return [
        placement if needs.get(key, True) else Replicate()
        for key, placement in zip(("need_x", "need_w", "need_alpha"), placements, strict=True)
    ]


def _linear_train_bwd(g, x_inside, **arguments):
    masked = x_inside.ndim == g.ndim
    for dim in range(g.ndim - 1):
        shard = {"g": Shard(dim), "x_bits": Shard(dim)} | (
            {"x_inside": Shard(dim)} if masked else {}
        )
        yield _gradients(arguments, [Shard(dim), Partial(), Partial()]), shard
    shard = _OUTPUTS | {"g": Shard(g.ndim - 1)}
    yield _gradients(arguments, [Partial(), Shard(0), Shard(0)]), shard


def _conv2d_train_bwd(x_inside, **arguments):
    keys = ("g", "x_bits", "x_inside") if x_inside.ndim == 4 else ("g", "x_bits")
    yield _gradients(arguments, [Shard(0), Partial(), Partial()]), dict.fromkeys(keys, Shard(0))


register("binary_conv2d", _batch("x"))
register("binary_conv2d_sign", _batch("x"))
register("binary_maxpool2d", _batch("bits"))
register("binary_linear_train", _linear_train(1))
register("binary_linear_train_fwd", _linear_train(4))
register("binary_linear_train_bwd", _linear_train_bwd)
register("binary_conv2d_train", _conv2d_train(1))
register("binary_conv2d_train_fwd", _conv2d_train(4))
register("binary_conv2d_train_bwd", _conv2d_train_bwd)

for _name in ("binary_prepack", "binary_conv2d_corr", "binary_planes_matmul"):
    register(_name, lambda **_: ())

"""Inputs and comparisons that the tests of the binary operators share."""

import itertools

import torch

from nnkernels.binary import reference

KS = (1, 31, 32, 33, 255, 256, 257, 1000)
ROWS = (1, 3, 63, 64, 65)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
RESULTS = (torch.int32, torch.int16, *FLOATS)
PAD_MODES = ("zero", "one", "minus_one")
SURROGATES = ("ste", "approxsign", "identity")

# Values whose sign is easy to get wrong: zeros, subnormals, infinities, NaN of both signs.
EDGES = [0.0, -0.0, 1e-45, -1e-45, 2.0**-126, -(2.0**-126), 1.0, -1.0, float("inf")]
EDGES += [-float("inf"), float("nan"), -float("nan")]


def name(value) -> str:
    """A readable test id of a dtype, a shape or an option."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.").replace("float", "fp")
    if isinstance(value, tuple):
        return "x".join(map(name, value))
    return str(value)


def normals(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def signs(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    """Random +-1."""
    generator = torch.Generator().manual_seed(seed)
    return (1 - 2 * torch.randint(0, 2, shape, generator=generator)).to(dtype)


def bits(*shape, seed=0) -> torch.Tensor:
    """Random +-1 [..., K], packed by the reference."""
    return reference.pack(signs(*shape, seed=seed))


def integers(low, high, *shape, seed=0, dtype=torch.int8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def windows():
    """Convolutions worth a case each: (H, W, C, O, KH, KW, stride, padding, dilation, groups)."""
    return [
        (1, 1, 1, 1, 1, 1, 1, 0, 1, 1),
        (5, 7, 3, 4, 3, 3, 1, 1, 1, 1),
        (8, 6, 33, 65, 3, 3, 2, 1, 1, 1),
        (9, 9, 64, 64, 3, 3, 1, 1, 1, 1),
        (7, 7, 257, 5, 1, 1, 1, 0, 1, 1),
        (6, 5, 300, 3, 1, 1, 2, 0, 1, 1),
        (9, 8, 12, 8, 3, 2, (2, 1), (2, 0), (1, 2), 2),
        (7, 9, 12, 12, 3, 3, 1, 2, 2, 4),
        (5, 5, 6, 6, 5, 5, 1, 2, 1, 6),
        (4, 4, 40, 70, 3, 3, 1, 3, 1, 1),
        (11, 3, 16, 9, 7, 1, 3, (3, 0), 1, 1),
        (5, 4, 40, 6, 1, 1, 1, 1, 1, 1),
        (4, 3, 100, 3, 3, 2, 1, 1, 1, 1),
        (4, 3, 250, 3, 2, 3, 1, 1, 1, 1),
        (3, 2, 1100, 3, 1, 2, 1, 0, 1, 1),
        (8, 9, 100, 20, 3, 2, 1, (2, 0), (2, 2), 1),
        (7, 8, 80, 40, 3, 3, 1, 1, 1, 2),
    ]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def convolution(window, batch=2, seed=0):
    """x [batch, C, H, W] and w [O, C / groups, KH, KW] of +-1, and the options of the call."""
    H, W, C, O, KH, KW, stride, padding, dilation, groups = window  # noqa: E741
    x, w = signs(batch, C, H, W, seed=seed), signs(O, C // groups, KH, KW, seed=seed + 1)
    return x, w, (pair(stride), pair(padding), pair(dilation), groups)


def packed_convolution(x, w, groups):
    """The same as bits, channels last and packed group by group."""
    image = x.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2)
    return reference.pack(image).flatten(3), reference.pack(w.permute(0, 2, 3, 1))


def direct_convolution(x, w, stride, padding, dilation, groups, pad_mode) -> torch.Tensor:
    """torch's own convolution of the padded numbers, as int64 [batch, O, OH, OW]."""
    value = {"zero": 0, "one": 1, "minus_one": -1}[pad_mode]
    pads = (padding[1], padding[1], padding[0], padding[0])
    image = torch.nn.functional.pad(x.double(), pads, value=value)
    out = torch.nn.functional.conv2d(image, w.double(), None, stride, 0, dilation, groups)
    return out.round().long()


def pad_bits_are_zero(words: torch.Tensor, K: int) -> bool:
    every = reference.unpack(words, 32 * words.shape[-1], torch.int8)
    return bool((every[..., K:] == 1).all())


def shapes():
    """Every K of the list with some M and N, and every M and N with some K."""
    return [
        *((3, 65, K) for K in KS),
        *((M, N, 257) for M, N in itertools.product(ROWS, ROWS)),
        (200, 130, 1000),
    ]


def relative_error(got, expected) -> float:
    scale = expected.abs().max().item() if expected.numel() else 0
    return ((got.double() - expected).abs().max().item() / scale) if scale else 0.0

"""The codec's arithmetic `arith=1` in exact rationals: slow, and meant to be read.

Every number is a `Fraction` that some binary32 holds; `rounded` is the one place where an operation
rounds. Encoder and decoder walk the tree by the same function, so they see the same integers by
construction; the compiled codec is tested to give the same ones. Tiny models only: a symbol costs
about h^2 + h K exact operations.

`model` is [pi, A, B, C, parent, order] as the operators take it; x is [N, D] integers.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from nnkernels.pc.errors import CorruptError

ZERO = Fraction(0)
# The coder's state lies in [2^32, 2^64) between symbols.
STATE = 1 << 32

Row = list[Fraction]


def rounded(value: Fraction) -> Fraction:
    """The nearest binary32, ties to even."""
    if value == 0:
        return ZERO
    quantum = Fraction(2) ** (_exponent(abs(value)) - 24)
    # round() of a Fraction takes ties to even.
    return round(value / quantum) * quantum


def _exponent(value: Fraction) -> int:
    """frexp: value = f * 2^e with f in [0.5, 1)."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    return e + 1 if value >= Fraction(2) ** e else e


def dot(x: Row, w: Iterable[Fraction]) -> Fraction:
    """acc = fma(x[a], w[a], acc), a ascending."""
    acc = ZERO
    for a, b in zip(x, w, strict=True):
        acc = rounded(a * b + acc)
    return acc


def times(x: Row, y: Row) -> Row:
    return [rounded(a * b) for a, b in zip(x, y, strict=True)]


def rescaled(row: Row) -> Row:
    """Divided by the power of two of its maximum; what is then below 2^-40 becomes 0."""
    if max(row) <= 0:
        raise CorruptError("pc codec: a row of the model died; freeze() makes models that cannot")
    scale = Fraction(2) ** -_exponent(max(row))
    return [a * scale if a * scale >= Fraction(1, 1 << 40) else ZERO for a in row]


def integer_cdf(alpha: Row, cumulative: Sequence[Row], precision: int) -> list[int]:
    """F(0) = 0 < F(1) < ... < F(K) = 2^precision; cumulative[v] is the column C[., v]."""
    K = len(cumulative) - 1
    total = (1 << precision) - K
    sums = [dot(alpha, column) for column in cumulative]
    r = rounded(Fraction(total) / sums[K])
    return [min(int(rounded(s * r)), total) + v for v, s in enumerate(sums[:K])] + [1 << precision]


class _Tables:
    """The tables as rows of fractions, and the children in coding order."""

    def __init__(self, model: Sequence):
        pi, A, B, C, parent, order = (table.tolist() for table in model)
        self.pi = [Fraction(p) for p in pi]
        self.A = [[[Fraction(p) for p in row] for row in matrix] for matrix in A]
        self.leaf = [[[Fraction(p) for p in v] for v in zip(*b, strict=True)] for b in B]
        self.cumulative = [[[Fraction(p) for p in v] for v in zip(*c, strict=True)] for c in C]
        self.order = order
        self.children = [[c for c in order if parent[c] == i] for i in range(len(parent))]


def walk(tables: _Tables, precision: int, code: Callable[[int, list[int]], int]) -> None:
    """One sample in coding order; `code` gets a variable and its CDF and returns its symbol."""

    def visit(i: int, alpha: Row) -> Row:
        """Codes the subtree of i and returns u_i."""
        symbol = code(i, integer_cdf(alpha, tables.cumulative[i], precision))
        u = tables.leaf[i][symbol]
        alpha = rescaled(times(alpha, u))
        for c in tables.children[i]:
            columns = zip(*tables.A[c], strict=True)
            below = visit(c, rescaled([dot(alpha, column) for column in columns]))
            beta = rescaled([dot(below, row) for row in tables.A[c]])
            alpha = rescaled(times(alpha, beta))
            u = rescaled(times(u, beta))
        return u

    visit(tables.order[0], rescaled(tables.pi))


def intervals(x, model: Sequence, precision: int = 20) -> list[list[tuple[int, int]]]:
    """(low, width) of every symbol in coding order, for every sample of x [N, D]."""
    tables = _Tables(model)
    found = []
    for sample in x.tolist():
        row: list[tuple[int, int]] = []

        def code(i: int, cdf: list[int], sample=sample, row=row) -> int:
            row.append((cdf[sample[i]], cdf[sample[i] + 1] - cdf[sample[i]]))
            return sample[i]

        walk(tables, precision, code)
        found.append(row)
    return found


def rans_encode(symbols: Sequence[tuple[int, int]], precision: int = 20) -> list[int]:
    """The 32-bit words of one lane: the final state, low word first, then what the decoder reads.

    The last symbol is coded first: a stack gives it back last.
    """
    state, pushed = STATE, []
    for low, width in reversed(symbols):
        if state >= width << (64 - precision):
            pushed.append(state % (1 << 32))
            state >>= 32
        state = (state // width << precision) + state % width + low
    return [state % (1 << 32), state >> 32, *reversed(pushed)]


class Decoder:
    """Reads the symbols of one lane."""

    def __init__(self, words: Sequence[int], precision: int = 20):
        self.state = words[0] + (words[1] << 32)
        self.words = list(words[2:])
        self.precision = precision

    def symbol(self, cdf: Sequence[int]) -> int:
        slot = self.state % (1 << self.precision)
        symbol = max(v for v in range(len(cdf) - 1) if cdf[v] <= slot)
        width = cdf[symbol + 1] - cdf[symbol]
        self.state = width * (self.state >> self.precision) + slot - cdf[symbol]
        if self.state < STATE:
            if not self.words:
                raise CorruptError("pc codec: a lane ends before its last symbol")
            self.state = (self.state << 32) + self.words.pop(0)
        return symbol

    def finish(self) -> None:
        if self.state != STATE or self.words:
            raise CorruptError("pc codec: a lane does not end in the state it began with")


def encode(x, model: Sequence, lanes: int, precision: int = 20) -> list[list[int]]:
    """The words of every lane; lane l codes samples l, l + lanes, ... one after another."""
    rows = intervals(x, model, precision)
    return [
        rans_encode([pair for row in rows[lane::lanes] for pair in row], precision)
        for lane in range(lanes)
    ]


def decode(
    words: Sequence[Sequence[int]], N: int, model: Sequence, precision: int = 20
) -> list[list[int]]:
    """The N samples of [variable] symbols that `encode` was given."""
    tables = _Tables(model)
    decoders = [Decoder(lane, precision) for lane in words]
    found = [[0] * len(tables.order) for _ in range(N)]
    for n, sample in enumerate(found):
        decoder = decoders[n % len(words)]

        def code(i: int, cdf: list[int], sample=sample, decoder=decoder) -> int:
            sample[i] = decoder.symbol(cdf)
            return sample[i]

        walk(tables, precision, code)
    for decoder in decoders:
        decoder.finish()
    return found

"""PCModel: a frozen circuit that codes data losslessly, the same bytes on every machine."""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from nnkernels import _checks, _host
from nnkernels.pc import checks, container, files, model_file, ops, sampling
from nnkernels.pc.errors import (
    ArgumentError,
    ChecksumError,
    CorruptError,
    FormatError,
    LimitError,
    ModelError,
    ModelMismatchError,
    ShapeError,
    SymbolRangeError,
)

# Called as progress(samples done, samples in all, bytes of the container so far).
Progress = Callable[[int, int, int], None]

LANES = 64
BLOCK = 4096
# Values that decompress() makes, unless its argument allows more.
LIMIT = 1 << 32
# Frozen parameters are at least this, so that no row of the codec dies.
SMALLEST = 2.0**-31


class PCModel:
    """A frozen circuit; `HCLT.freeze()` makes it, or `load()` reads it.

    Args:
        pi [h], A [D, h, h] (A[root] unused), B [D, h, K]: probabilities, float32, each at least
            2^-31, rows summing to 1.
        C: float32 [D, h, K + 1], running sums of B that do not fall; C[..., 0] = 0, C[..., K] = 1.
        parent, order: int64 [D], the tree and its coding order, a depth-first preorder.

    Raises TypeError (dtypes), ShapeError, StructureError (naming the node), ModelError.

    Everything that codes is stored in these tables and computed by the rule `arith=1` (see
    docs/pc.md): encoder and decoder agree on every integer, whatever the instruction set, the
    number of threads, the batch or the lanes. CPU tensors only.

    >>> data = model.compress(x)  # x: uint8 or int16 [N, ...], D values a sample
    >>> torch.equal(model.decompress(data), x)
    True
    """

    def __init__(self, pi: Tensor, A: Tensor, B: Tensor, C: Tensor, parent: Tensor, order: Tensor):
        op = "PCModel"
        tables = [pi, A, B, C, parent, order]
        checks.check_model(op, tables)
        if pi.device.type != "cpu":
            raise ValueError(f"{op}: pi is on {pi.device}; move the tables to the CPU")
        checks.check_parameters(op, pi, A, B, parent, order)
        tables = [table.detach().contiguous() for table in tables]
        # What stands there means nothing; one value makes equal models equal.
        tables[1] = tables[1].clone()
        tables[1][order[0]] = 1 / tables[1].shape[1]
        _check_frozen(op, *tables[:4])
        self._tables = tables
        self._identity: bytes | None = None

    # ---- what it is ----

    @property
    def tables(self) -> list[Tensor]:
        """[pi, A, B, C, parent, order]: the `model` argument of the operators."""
        return list(self._tables)

    @property
    def D(self) -> int:
        """Variables of a sample."""
        return self._tables[2].shape[0]

    @property
    def h(self) -> int:
        """Hidden states of a variable."""
        return self._tables[2].shape[1]

    @property
    def K(self) -> int:
        """Values of a variable, 0 to K - 1."""
        return self._tables[2].shape[2]

    @property
    def model_id(self) -> str:
        """32 hexadecimal digits: the first 16 bytes of the SHA-256 of the tables."""
        return self._id().hex()

    def _id(self) -> bytes:
        if self._identity is None:
            self._identity = model_file.model_id(self._arrays())
        return self._identity

    def _arrays(self) -> model_file.Tables:
        return model_file.Tables(*(table.numpy() for table in self._tables))

    def __repr__(self) -> str:
        return f"PCModel(D={self.D}, h={self.h}, K={self.K}, model_id={self.model_id})"

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Natural log-likelihood float32 [N] of samples x [N, D]; mask bool [N, D], True where a
        value is missing."""
        pi, A, B, _, parent, order = self._tables
        tables = pi, A, B, parent, order
        x = checks.symbols("PCModel.log_prob", x, self.D, self.K, mask)
        parts = [
            ops.forward(x[piece], *tables, None if mask is None else mask[piece])[0]
            for piece in sampling.pieces(len(x), self.D, self.h)
        ]
        return torch.cat(parts) if parts else pi.new_empty(0)

    # ---- the model file ----

    def save(self, path: str | os.PathLike) -> None:
        """Writes the model file; `path` is complete or untouched."""
        with files.replacing(path) as file:
            model_file.write(file, self._arrays(), self._id())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PCModel":
        """Reads a model file.

        Raises FormatError, TruncatedError, ChecksumError (with the byte) or ModelError; nothing is
        unpickled.
        """
        with open(path, "rb") as file:
            arrays, identity = model_file.read(str(path), file)
        model = cls(*(torch.from_numpy(array) for array in arrays))
        model._identity = identity
        return model

    # ---- compress ----

    def compress(
        self,
        x: Tensor | np.ndarray,
        lanes: int | None = None,
        precision: int = 20,
        block: int = BLOCK,
        independent: bool = False,
        mask: None = None,
    ) -> bytes:
        """Codes samples losslessly.

        Args:
            x: uint8 or int16 [N, ...], D values from 0 to K - 1 a sample.
            lanes: coder states of a block; each takes 8 bytes and decodes beside the others.
                Default: 64, halved until they are at most 0.5% of the data.
            precision: bits of a probability, 12 to 24, 2^precision >= 4 K.
            block: samples of a block; blocks are decoded apart.
            independent: one lane per sample.

        Returns:
            The container. `decompress` gives x back, bit for bit, on any machine.

        Raises TypeError, ShapeError, SymbolRangeError (with sample and variable), ArgumentError.
        """
        if mask is not None:
            raise ArgumentError("pc_compress: mask is given, but masked values cannot be coded")
        source = _Array("pc_compress", x, self.D, self.K)
        file = io.BytesIO()
        self._compress(source, file, lanes, precision, block, independent)
        return file.getvalue()

    def compress_file(
        self,
        src: str | os.PathLike,
        dst: str | os.PathLike,
        lanes: int | None = None,
        precision: int = 20,
        block: int = BLOCK,
        independent: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Codes the samples of a .npy or idx(.gz) file; see compress. Memory is that of one block;
        `dst` is complete or untouched."""
        with files.open_samples(src) as source, files.replacing(dst) as file:
            self._compress(source, file, lanes, precision, block, independent, progress)

    def _compress(self, source, file, lanes, precision, block, independent, progress=None) -> None:
        op = "pc_compress"
        _check_options(op, self.K, lanes, precision, block, independent)
        if math.prod(source.shape) != self.D:
            raise ShapeError(
                f"{op}: {source.name} has samples of shape {list(source.shape)}, "
                f"{math.prod(source.shape)} values; the model has D={self.D}"
            )
        writer = None
        for start in range(0, source.count, block):
            part = source.read(min(block, source.count - start))
            x = self._symbols(op, source.name, part, start)
            coded = None
            if writer is None:
                if independent:
                    lanes = block
                elif lanes is None:
                    lanes, coded = self._default_lanes(x, precision)
                writer = self._writer(file, source, lanes, precision, block)
            if coded is None:
                coded = ops.encode(x, self._tables, min(lanes, len(x)), precision)
            writer.block(part.reshape(len(part), self.D), *coded)
            if progress is not None:
                progress(start + len(x), source.count, writer.size)
        if writer is None:
            writer = self._writer(file, source, lanes or 1, precision, block)
        writer.finish()

    def _writer(self, file, source, lanes, precision, block):
        header = _host.ContainerHeader(
            precision=precision,
            D=self.D,
            K=self.K,
            N=source.count,
            dtype=str(source.dtype),
            dims=source.shape,
            block=block,
            lanes=lanes,
            model_id=self._id(),
        )
        return container.Writer(file, header)

    def _default_lanes(self, x: Tensor, precision: int):
        """Lanes for blocks like x, and x coded with them."""
        low, width = ops.intervals(x, self._tables, precision)
        bits = _coded_bits(width.numpy(), precision)
        lanes = min(LANES, len(x))
        while lanes > 1 and 8 * lanes > 0.005 * bits / 8:
            lanes //= 2
        return lanes, ops.rans_encode(low, width, lanes, precision)

    def _symbols(self, op: str, name: str, part: np.ndarray, start: int) -> Tensor:
        """Samples `start` and on as the operators take them, [n, D]."""
        flat = part.reshape(len(part), self.D)
        if flat.size and (flat.min() < 0 or flat.max() >= self.K):
            n, i = np.argwhere((flat < 0) | (flat >= self.K))[0]
            raise SymbolRangeError(
                f"{op}: {name}: sample {start + n}, variable {i} is {flat[n, i]}, expected 0 to "
                f"{self.K - 1}"
            )
        return torch.from_numpy(np.ascontiguousarray(flat))

    # ---- decompress ----

    def decompress(
        self,
        data: bytes,
        *,
        start: int = 0,
        stop: int | None = None,
        on_error: str = "raise",
        limit: int = LIMIT,
    ) -> Tensor:
        """The samples of a container, or samples start to stop - 1, as a new tensor.

        Args:
            data: what `compress` gave; bytes, memoryview or mmap.
            start, stop: only the blocks that hold these samples are decoded.
            on_error: "skip" leaves the samples of a damaged block out, with a warning that names
                them; "raise" raises.
            limit: values the result may have at most; beyond it nothing is allocated.

        Raises FormatError, TruncatedError, ChecksumError (with block and byte),
        ModelMismatchError, ShapeError, LimitError, ArgumentError; CorruptError would be a mistake
        of this package.
        """
        reader = self._reader("pc_decompress", data, on_error, limit)
        header = reader.header
        start, stop = _span("pc_decompress", start, stop, header.N)
        parts = [part for _, _, part in self._parts(reader, start, stop, on_error)]
        empty = np.empty((0, self.D), dtype=header.dtype)
        whole = np.concatenate([empty, *parts]) if len(parts) != 1 else parts[0]
        return torch.from_numpy(whole.reshape(len(whole), *header.dims))

    def decompress_file(
        self,
        src: str | os.PathLike,
        dst: str | os.PathLike,
        *,
        start: int = 0,
        stop: int | None = None,
        on_error: str = "raise",
        limit: int = 1 << 40,
        progress: Progress | None = None,
    ) -> None:
        """Writes the samples of a container as .npy; see decompress. Memory is that of one block;
        `dst` is complete or untouched."""
        with container.mapped(src) as data, files.replacing(dst) as file:
            reader = self._reader(str(src), data, on_error, limit)
            start, stop = _span(str(src), start, stop, reader.header.N)
            writer = files.NpyWriter(file, reader.header.dims, np.dtype(reader.header.dtype))
            for index, first, part in self._parts(reader, start, stop, on_error):
                writer.write(part.reshape(len(part), *reader.header.dims))
                if progress is not None:
                    progress(first + len(part) - start, stop - start, reader.end_of(index))
            writer.finish()

    def blocks(
        self, data: bytes, *, on_error: str = "raise", limit: int = LIMIT
    ) -> Iterator[tuple[int, Tensor]]:
        """(number of the first sample, samples) of one block after the other; see decompress.
        `limit` bounds one block."""
        reader = self._reader("pc_decompress", data, on_error, limit)
        for _, start, part in self._parts(reader, 0, reader.header.N, on_error):
            yield start, torch.from_numpy(part.reshape(len(part), *reader.header.dims))

    def _reader(self, name: str, data, on_error: str, limit: int) -> container.Reader:
        _checks.choice(name, "on_error", on_error, ("raise", "skip"))
        _checks.integer(name, "limit", limit)
        reader = container.Reader(name, data, limit, repair=on_error == "skip")
        header = reader.header
        if header.model_id != self._id():
            raise ModelMismatchError(
                f"{name}: was coded with model {header.model_id.hex()}, this is {self.model_id}; "
                "load the model it was coded with"
            )
        if (header.D, header.K) != (self.D, self.K):
            raise ShapeError(
                f"{name}: has D={header.D}, K={header.K}; the model has D={self.D}, K={self.K}"
            )
        if min(header.block, header.N) * self.D > LIMIT:
            raise LimitError(
                f"{name}: a block has up to {min(header.block, header.N)} samples of {self.D} "
                f"values, more than {LIMIT} in all"
            )
        return reader

    def _parts(
        self, reader: container.Reader, start: int, stop: int, on_error: str
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """The blocks that hold samples start to stop - 1: number, first sample, samples [n, D]."""
        header = reader.header
        if start >= stop:
            return
        for index in range(start // header.block, -(-stop // header.block)):
            first = index * header.block
            try:
                part = self._block(reader, index)
            except (FormatError, ChecksumError, CorruptError) as error:
                if on_error == "raise":
                    raise
                last = min(first + header.block, header.N) - 1
                warnings.warn(
                    f"samples {first} to {last} are left out: {error}", RuntimeWarning, stacklevel=3
                )
                continue
            begin = max(start - first, 0)
            yield index, first + begin, part[begin : stop - first]

    def _block(self, reader: container.Reader, index: int) -> np.ndarray:
        header = reader.header
        words, counts, crc = reader.block(index)
        try:
            x = ops.decode(words, counts, header.samples(index), self._tables, header.precision)
        except RuntimeError as error:
            if "corrupt" not in str(error):
                raise
            raise CorruptError(
                f"{reader.name}: block {index} does not decode, although its checksum fits: a "
                f"mistake of this package, please report it ({error})"
            ) from None
        part = x.numpy().astype(header.dtype, copy=False)
        reader.check(index, part, crc)
        return part


def bits(model, x: Tensor) -> float:
    """The bits that the model, an HCLT or a PCModel, needs for samples x [N, D] in all: the sum of
    -log2 p(x). A container is larger by at most 0.1%, 11 bytes a lane and block, 128 bytes, and 32
    a block.

    >>> bits(model, x) / x.numel()  # bits per dimension
    """
    with torch.no_grad():
        parts = [model.log_prob(part).double().sum() for part in x.split(512)]
    return -float(sum(parts)) / math.log(2)


# ---- data ----


class _Array:
    """Samples in memory, with the reading side of files.Samples."""

    def __init__(self, op: str, x: Tensor | np.ndarray, D: int, K: int):
        if isinstance(x, np.ma.MaskedArray):
            raise ArgumentError(f"{op}: x is masked, but masked values cannot be coded")
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x)
        flat = checks.symbols(op, x, D, K)
        if x.device.type != "cpu":
            raise ValueError(f"{op}: x is on {x.device}; move it to the CPU")
        self.name = "x"
        self.count, self.shape, self.dtype = len(x), tuple(x.shape[1:]), flat.numpy().dtype
        self._x = flat.numpy()
        self._position = 0

    def read(self, count: int) -> np.ndarray:
        start, self._position = self._position, self._position + count
        return self._x[start : self._position]


def _coded_bits(width: np.ndarray, precision: int) -> int:
    """Bits of the symbols with these widths [N, D], within one.

    By products and exact powers of two alone: the number of lanes, and so every byte, must not
    depend on anyone's logarithm.
    """
    powers = 0
    product = np.ones(len(width))
    for column in width.T:
        product, exponent = np.frexp(product * column)
        powers += int(exponent.sum())
    whole = 1.0
    for factor in product.tolist():
        whole, exponent = math.frexp(whole * factor)
        powers += exponent
    return width.size * precision - powers


# ---- checks ----


def _check_frozen(op: str, pi: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    """What the codec relies on beyond distributions: no small weight, sums that do not fall."""
    for name, table in {"pi": pi, "A": A, "B": B}.items():
        if table.min() < SMALLEST:
            at = (table < SMALLEST).nonzero()[0].tolist()
            raise ModelError(
                f"{op}: {name}{at} is {table[tuple(at)].item():g}, expected at least 2^-31; "
                "HCLT.freeze() makes such tables"
            )
    if not ((C[..., 0] == 0) & (C[..., -1] == 1)).all() or not (C[..., 1:] >= C[..., :-1]).all():
        raise ModelError(
            f"{op}: C holds no running sums from 0 to 1 that never fall; HCLT.freeze() makes them"
        )


def _check_options(op, K, lanes, precision, block, independent) -> None:
    checks.check_precision(op, precision, K)
    _checks.boolean(op, "independent", independent)
    _checks.integer(op, "block", block)
    if not 1 <= block < 2**31:
        raise ArgumentError(f"{op}: block is {block}, expected 1 to 2^31 - 1")
    if lanes is None:
        return
    checks.check_lanes(op, lanes)
    if independent:
        raise ArgumentError(f"{op}: lanes={lanes} and independent=True, expected one of them")
    if lanes > block:
        raise ArgumentError(f"{op}: lanes is {lanes}, expected at most block={block}")


def _span(name: str, start: int, stop: int | None, N: int) -> tuple[int, int]:
    _checks.integer(name, "start", start)
    stop = N if stop is None else stop
    _checks.integer(name, "stop", stop)
    if not 0 <= start <= stop <= N:
        raise ArgumentError(
            f"{name}: samples {start} to {stop} of {N}, expected 0 <= start <= stop <= {N}"
        )
    return start, stop

"""What goes wrong with circuits and with coded data; all are ValueErrors.

PCError
    ArgumentError          an option or an argument that cannot work
    ShapeError             data whose shape, dtype or size differs from the model's
    SymbolRangeError       a symbol outside 0..K-1, or data that is no integer
    StructureError         a parent array that is no tree
    ModelError             parameters that are no distributions
    FormatError            bytes that are no container or model file, or of another version
        TruncatedError     ... that end too early
    ChecksumError          bytes that were changed
    ModelMismatchError     data coded with another model
    LimitError             a header that asks for more than the caller allows
    CorruptError           a stream that decodes wrongly although its checksums fit
"""


class PCError(ValueError):
    """Any error of nnkernels.pc about the value of its input."""


class ArgumentError(PCError):
    """An option or an argument that cannot work."""


class ShapeError(PCError):
    """Data whose shape, dtype or size differs from the model's."""


class SymbolRangeError(PCError):
    """A symbol outside 0..K-1, or data that is not made of integers."""


class StructureError(PCError):
    """A parent array that describes no tree."""


class ModelError(PCError):
    """Parameters that are no probability distributions."""


class FormatError(PCError):
    """Bytes that are no container or model file, or one of an unknown version."""


class TruncatedError(FormatError):
    """A container or model file that ends too early."""


class ChecksumError(PCError):
    """Bytes that were changed since they were written."""


class ModelMismatchError(PCError):
    """Data that was coded with another model."""


class LimitError(PCError):
    """A header that asks for more memory than the caller allows."""


class CorruptError(PCError):
    """A stream that decodes wrongly although its checksums fit: a mistake of the implementation."""

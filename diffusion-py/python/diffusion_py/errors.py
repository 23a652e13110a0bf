"""The exceptions of this package, one for each kind of error.

Each inherits from the builtin exception of the same meaning, if there is one, so that
``except FileNotFoundError`` and ``except ValueError`` work as in the rest of Python.
"""

__all__ = [
    "Cancelled",
    "DeviceError",
    "DiffusionError",
    "FormatError",
    "InvalidArgumentError",
    "IoError",
    "NotFoundError",
    "OutOfMemoryError",
    "UnsupportedError",
    "WeightsError",
]


class DiffusionError(Exception):
    """The base of all exceptions of this package."""


class InvalidArgumentError(DiffusionError, ValueError):
    """An argument is out of range or does not fit the model."""


class NotFoundError(DiffusionError, FileNotFoundError):
    """A path, file or component does not exist."""


class IoError(DiffusionError, OSError):
    """Reading a file failed."""


class FormatError(DiffusionError, ValueError):
    """A file is damaged or not what its name says."""


class WeightsError(DiffusionError):
    """The tensors of a checkpoint do not fit its configuration."""


class UnsupportedError(DiffusionError):
    """A model, scheduler, option or device that this version or build does not know."""


class OutOfMemoryError(DiffusionError, MemoryError):
    """The run would not fit into memory; it was not started."""


class Cancelled(DiffusionError):
    """The callback returned ``False``, or the token was cancelled. The pipeline can be used as before."""


class DeviceError(DiffusionError):
    """The tensor layer or the device failed."""

"""What can be wrong with a layout. Messages have the arithmetic, and the nearest layouts that fit."""

from ..backends.errors import UnsupportedError, UsageError


class LayoutError(UsageError):
    """A layout cannot be used."""


class LayoutSyntaxError(LayoutError):
    """The text or the file is not a layout: an unknown axis or preset, a size that is no number."""


class AxisClashError(LayoutError):
    """One mesh axis would split two dimensions of one tensor."""


class DevicesError(LayoutError):
    """The layout takes more devices than there are."""


class IndivisibleError(LayoutError):
    """A dimension of the model does not split into that many parts."""


class LayoutMemoryError(LayoutError):
    """A device's share does not fit into its memory."""


class UnsupportedLayoutError(LayoutError, UnsupportedError):
    """A layout that means something, and that nothing here computes yet."""

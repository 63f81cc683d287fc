"""Pages of the KV cache, as the backends of platforms have them."""

_POSITIONS = {"tpu": 128}
_SMALL = 16
_LANES = {"tpu": 128}


def page_size(platform: str) -> int:
    """Positions of a page: a row of the batch fills whole ones."""
    return _POSITIONS.get(platform, _SMALL)


def cache_lanes(platform: str) -> int:
    """The keys of a device's heads at one position fill up multiples of so many numbers: a TPU's vector registers."""
    return _LANES.get(platform, 1)

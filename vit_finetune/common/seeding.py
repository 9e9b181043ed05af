"""One pure function from names and numbers to a seed.

Every random decision of a run is drawn from `derive_seed(run seed, purpose, position...)`, so no
generator state has to be saved and resuming needs nothing but a step number.
"""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order.

    Args:
        parts: integers and short strings, such as `(seed, "augment", epoch, index)`.

    Returns:
        A non-negative integer below 2**63: torch, numpy and `random` take it as it is.

    Source: BLAKE2b (RFC 7693) as a keyed mixing function; stable over Python versions and machines.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

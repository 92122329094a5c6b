"""Random generators as functions of what they are for, so that workers, ranks and resuming change nothing.

Everything random about a micro-batch follows from (seed, epoch, number): no generator is carried from one to the next.
"""

import numpy as np

# The first word of a stream's key: two purposes never share numbers. Values are part of what a seed means.
_ORDER, _MIXING, _ITEM, _TEST_VIEWS = range(4)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of an epoch's order of videos."""
    return _generator(seed, _ORDER, epoch)


def micro_batch_rng(seed: int, epoch: int, number: int) -> np.random.Generator:
    """Return the generator that mixes micro-batch `number` of an epoch."""
    return _generator(seed, _MIXING, epoch, number)


def item_rng(seed: int, epoch: int, number: int, position: int, *purpose: int) -> np.random.Generator:
    """Return a generator of the video at `position` of micro-batch `number`; `purpose` tells its generators apart."""
    return _generator(seed, _ITEM, epoch, number, position, *purpose)


def views_rng(seed: int, index: int) -> np.random.Generator:
    """Return the generator of the random test views of video `index`."""
    return _generator(seed, _TEST_VIEWS, index)


def _generator(seed: int, *key: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, found {seed}")
    # Philox: making one costs 10 us. A key longer than another that it begins with gives other numbers.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))

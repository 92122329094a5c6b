"""Random generators as functions of their purpose, so that workers, ranks and resuming change no result.

Everything random about a micro-batch follows from (seed, epoch, number): no generator passes from one to the next.
"""

import zlib

import numpy as np

# The first word of a stream's key: two purposes never share numbers. Changing a value changes the results of a seed.
_ORDER, _MIXING, _ITEM, _TEST_VIEWS, _PART, _CHANGE = range(6)


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of an epoch's order of videos."""
    return _generator(seed, _ORDER, epoch)


def micro_batch_rng(seed: int, epoch: int, number: int) -> np.random.Generator:
    """Return the generator that mixes micro-batch `number` of an epoch."""
    return _generator(seed, _MIXING, epoch, number)


def item_rng(seed: int, epoch: int, number: int, position: int, *purpose: int) -> np.random.Generator:
    """Return a generator for the video at `position` of micro-batch `number`; one for each `purpose`."""
    return _generator(seed, _ITEM, epoch, number, position, *purpose)


def part_rng(seed: int, epoch: int, number: int, part: str) -> np.random.Generator:
    """Return the generator of a part of training for micro-batch `number` of an epoch, one for each part's name."""
    return _generator(seed, _PART, epoch, number, zlib.crc32(part.encode()))


def views_rng(seed: int, index: int) -> np.random.Generator:
    """Return the generator of the random test views of video `index`."""
    return _generator(seed, _TEST_VIEWS, index)


def change_rng(seed: int, index: int, change: str) -> np.random.Generator:
    """Return the generator of a change of test video `index`, one for each change's name."""
    return _generator(seed, _CHANGE, index, zlib.crc32(change.encode()))


def _generator(seed: int, *key: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, found {seed}")
    # Philox: creating one costs 10 us. A key gives other numbers than any longer key that begins with it.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))

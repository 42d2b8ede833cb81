"""Auxiliary tensors as float16 and in 8 bits: their error is within the documented bounds."""

from __future__ import annotations

import numpy as np
import pytest
from codec_strategies import encode_file, same_bits
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from thoroughness import examples

from opq import dtypes
from opq.codec.auxiliary import LARGEST_LINEAR_ERROR, LARGEST_RELATIVE_ERROR, STORAGES, largest_error, restore, store
from opq.codec.entry import Entry
from opq.codec.file_reader import OpqFile
from opq.codec.verify import verify

POSITIVE = st.floats(2.0**-126, 2.0**100, width=32) | st.floats(0.5, 2.0, width=32) | st.floats(1.0, 1.0009765625, width=32)
VALUES = (
    st.floats(width=32, allow_infinity=False, allow_nan=False)
    | st.floats(-1.0, 1.0, width=32)
    | POSITIVE
    | st.sampled_from([0.0, -0.0, 2.0**-149, 3.4e38, -3.4e38])
)
FILLS = st.sampled_from([0.0, 1.0, 2.0, -1.0])


def vectors(elements):
    return arrays.arrays(st.sampled_from([np.float32, np.float64]), st.integers(16, 40), elements=elements, fill=FILLS)


def stored(array, requested):
    """The entry and the restored array."""
    storage, bounds, kept = store(array, requested)
    entry = Entry("a", array.shape, array.dtype.name, storage, 0, bounds=bounds)
    return entry, restore(kept, entry)


@pytest.mark.slow
@examples(400)
@example(np.array([1e300, *range(15)]), "uint8")
@given(vectors(VALUES) | vectors(POSITIVE), st.sampled_from(STORAGES))
def test_no_error_exceeds_the_stated_one(array, requested):
    """Each value comes back within the larger of the stated absolute and relative errors, for every storage."""
    entry, back = stored(array, requested)
    absolute, relative = largest_error(entry)
    error = np.abs(back.astype(np.float64) - array.astype(np.float64))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert (error <= np.maximum(absolute, relative * np.abs(array.astype(np.float64)))).all()


@pytest.mark.slow
@examples(400)
@given(vectors(VALUES) | vectors(POSITIVE))
def test_the_stated_error_is_within_the_documented_one(array):
    """In 8 bits the error is 1/500 of the span plus float32 rounding, at most 2^-4 of the median magnitude; or 2^-6 of each
    value if none is negative; or 2^-11, or in a tensor with negative values 2^-16 of the root mean square.
    """
    entry, back = stored(array, "uint8")
    absolute, relative = largest_error(entry)
    largest = float(np.abs(array).max())
    if entry.storage == "linear8":
        assert array.min() < 0
        span = float(array.max()) - float(array.min())
        assert absolute <= span / 500 + 2.0**-22 * largest
        assert span / 510 <= LARGEST_LINEAR_ERROR * np.median(np.abs(array[array != 0].astype(np.float64)))
    elif entry.storage == "relative8":
        assert array.min() >= 0
        assert relative <= LARGEST_RELATIVE_ERROR == 2.0**-6
    else:
        values = array.astype(np.float64)
        allowed = 2.0**-11 * np.abs(values)
        if (values < 0).any() and entry.storage == "float16":
            allowed = np.maximum(allowed, 2.0**-16 * np.sqrt(np.square(values).mean()))
        assert (np.abs(back.astype(np.float64) - values) <= allowed).all()
    if (array >= 0).all():  # a variance stays one
        assert ((back > 0) == (array > 0)).all()


def test_which_tensors_get_eight_bits():
    """Batch norms get grids; small, constant, integer, float16 and multidimensional tensors and infinite values do not."""
    random = np.random.default_rng(0)
    assert stored(random.normal(size=64), "uint8")[0].storage == "linear8"
    assert stored(random.uniform(0.01, 1.0, 64).astype(np.float32), "uint8")[0].storage == "relative8"
    wide = np.geomspace(1e-4, 1e4, 64)
    assert stored(wide, "uint8")[0].storage == "float16"
    outlying = np.append(random.normal(size=64), 200.0)  # as a dead channel has
    assert stored(outlying, "uint8")[0].storage == "float16"
    for array in (
        random.normal(size=15).astype(np.float32) * 1e-20,
        np.full(64, 1.0 / 3.0),
        np.arange(64),
        random.normal(size=64).astype(np.float16),
        random.normal(size=64).astype(dtypes.NUMPY["bfloat16"]),
        np.append(random.normal(size=64), np.nan),
        np.append(random.normal(size=64), np.inf),
        random.normal(size=(8, 8)) * 1e-20,
    ):
        entry, back = stored(array, "uint8")
        assert entry.storage == "exact"
        assert same_bits(back, array)


@pytest.mark.slow
@pytest.mark.parametrize("requested", STORAGES)
@given(st.lists(vectors(VALUES), max_size=4))
def test_files_give_back_the_stored_values(requested, tensors):
    """A file returns the result of `restore` for the output of `store`, and passes `verify`."""
    auxiliary = {f"x{number}": array for number, array in enumerate(tensors)}
    data = encode_file(auxiliary, requested)
    with OpqFile(data) as file:
        for name, array in auxiliary.items():
            assert same_bits(file[name], stored(array, requested)[1])
    verify(data)

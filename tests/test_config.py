"""What a user may ask for, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.config import CompressionOptions, parse_size, read_overrides, read_target, select
from opq.errors import SelectionError, TargetError
from opq.rate_distortion.layers import LayerConfig

NAMES = ["conv1.weight", "layer1.conv.weight", "layer2.conv.weight", "fc.weight"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("250000", 250_000),
        ("250kB", 250_000),
        ("250 KB", 250_000),
        ("1.5MiB", 1_572_864),
        ("2 gb", 2 * 10**9),
        ("7b", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    """KB is a thousand bytes, KiB 1024; case and a space do not matter."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "9" * 400, 10**400, True, "kB", "-5", "1e6", "12 parsecs", "0", "0.4", None, 0, -3])
def test_what_is_no_size_is_refused(text):
    """Anything else is a TargetError that shows how to write a size."""
    with pytest.raises(TargetError, match="size must be a positive number of bytes such as"):
        parse_size(text)


@given(st.integers(1, 2**60))
def test_an_integer_is_its_own_size(size):
    """An integer number of bytes is taken as it is."""
    assert parse_size(size) == size


@pytest.mark.parametrize(
    "options", [{}, {"sparsity": 0.5}, {"bits": 3}, {"ratio": 2, "size": 5}, {"ratio": 2, "sparsity": 0.5, "bits": 3}]
)
def test_a_target_is_exactly_one(options):
    """A ratio, or a size, or sparsity and bits: not less and not more."""
    with pytest.raises(
        TargetError, match="a target is a ratio, or a size, or sparsity and bits together, or else lossless; got"
    ):
        read_target(options)


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), float("inf"), "many", 1e-320, 1e300])
def test_a_ratio_is_a_positive_number(ratio):
    """Anything else is refused."""
    with pytest.raises(TargetError, match="ratio must be"):
        read_target({"ratio": ratio})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 4, "exlude": ["a"]}, "unknown option 'exlude'"),
        ({"overrides": {"fc.weight": 3}}, "expected an Override or a mapping"),
        ({"overrides": ["fc.weight"]}, "overrides must map"),
        ({"sensitivity": [1.0]}, "sensitivity must map"),
        ({"sensitivity": {3: 1.0}}, "sensitivity must map names or globs, got 3"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options, message):
    """A misspelt option, and values that are no mappings where mappings are meant, are TargetErrors."""
    with pytest.raises(TargetError, match=message):
        read_overrides(NAMES, options, joint=True) if "ratio" not in options else read_target(options)


def test_an_override_leaves_what_it_does_not_fix():
    """An Override that says nothing of sensitivity does not undo the one given."""
    found = read_overrides(NAMES, {"sensitivity": {"fc.weight": 9.0}, "overrides": {"fc.*": LayerConfig(bits=3)}}, joint=True)
    assert found["fc.weight"] == LayerConfig(sensitivity=9.0, bits=3.0)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, NAMES),
        ({"include": ["layer*"]}, NAMES[1:3]),
        ({"include": ["layer1*", "fc.weight"]}, [NAMES[1], NAMES[3]]),
        ({"exclude": ["fc*"]}, NAMES[:3]),
        ({"exclude": "conv1.weight"}, NAMES[1:]),
        ({"include": ["layer*"], "exclude": ["*2*"]}, [NAMES[1]]),
    ],
)
def test_globs_select(options, chosen):
    """`include` narrows, then `exclude` removes; a single glob may stand without a list."""
    assert select(NAMES, options) == chosen


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_glob_that_matches_nothing_is_an_error(option):
    """It is a typing error, and says which names there are."""
    with pytest.raises(SelectionError, match=f"{option} 'convv' matches no weight; there are 4: 'conv1.weight', "):
        select(NAMES, {option: ["convv"]})


def test_overrides_are_found_by_glob_and_the_last_one_counts():
    """Fields of several matching overrides add up; the same field is taken from the last."""
    overrides = {"layer*": {"bits": 4, "sensitivity": 2}, "layer1*": LayerConfig(bits=6, sparsity=0.5)}
    found = read_overrides(NAMES, {"overrides": overrides, "sensitivity": {"fc*": 3}}, joint=False)
    assert found["layer1.conv.weight"] == LayerConfig(sensitivity=2.0, sparsity=0.5, bits=6.0)
    assert found["layer2.conv.weight"] == LayerConfig(sensitivity=2.0, bits=4.0)
    assert found["fc.weight"] == LayerConfig(sensitivity=3.0)
    assert found["conv1.weight"] == LayerConfig()


@pytest.mark.parametrize(
    ("override", "joint", "message"),
    [
        ({"bitz": 3}, False, "unknown field 'bitz'"),
        ({"bits": "x"}, False, "bits must be a finite number"),
        ({"bits": 0.5}, False, r"bits must lie in \(1, 16\], got 0.5"),
        ({"bits": 0.0}, True, r"bits must lie in \(0, 16\], got 0"),
        ({"sparsity": 1.0}, False, r"sparsity must lie in \[0, 1\), got 1"),
        ({"sparsity": 0.0}, True, "exclude the tensor instead"),
        ({"step": 0.0}, True, "step must be positive"),
        ({"sensitivity": 0.0}, True, "sensitivity must be positive"),
        ({"bits": 3, "step": 0.1}, False, "bits and step cannot both be fixed"),
        ({"bits": 3, "sparsity": 0.1}, True, "sparsity and bits cannot both be fixed"),
    ],
)
def test_overrides_out_of_range_are_refused(override, joint, message):
    """Values out of range, unknown and contradicting ones are TargetErrors that name the weight or the glob."""
    with pytest.raises(TargetError, match=message):
        read_overrides(NAMES, {"overrides": {"fc.weight": override}}, joint=joint)


def test_selections_hold_globs_or_nothing():
    """None selects as an empty list does; what is no text is refused."""
    assert select(NAMES, CompressionOptions(include=None, exclude=None)) == NAMES
    for option in ("include", "exclude"):
        for value in (3, [3]):
            with pytest.raises(TargetError, match=f"{option} must hold globs, got"):
                select(NAMES, CompressionOptions(**{option: value}))

"""CompressionConfig and its keywords: what is accepted, what is refused, and the JSON round trip."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq.config import (
    CompressionConfig,
    LayerConfig,
    Lossless,
    Ratio,
    Size,
    TwoStage,
    as_config,
    parse_size,
    target_from_dict,
    target_to_dict,
    without_target,
)
from opq.errors import ConfigError, SelectionError, TargetError

NAMES = ["conv1.weight", "layer1.conv.weight", "layer2.conv.weight", "fc.weight"]

positive = st.floats(1e-9, 1e9)
byte_targets = st.builds(Ratio, positive) | st.builds(Size, st.integers(1, 2**62))
two_stage_targets = st.builds(TwoStage, st.floats(0.0, 0.999), st.floats(1.001, 16.0))
targets = byte_targets | two_stage_targets | st.just(Lossless())
globs = st.lists(st.text(max_size=8), max_size=3)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
layer_configs = st.builds(
    LayerConfig,
    sensitivity=numbers,
    sparsity=numbers,
    bits=numbers,
    step=numbers,
    scales=st.sampled_from([None, "none", "rows"]),
)


@st.composite
def configs(draw):
    """A config with any target and all fields that go with it."""
    target = draw(targets)
    fields = {"include": draw(globs), "exclude": draw(globs)}
    if not isinstance(target, Lossless):
        fields |= {
            "layers": draw(st.dictionaries(st.text(max_size=8), layer_configs, max_size=3)),
            "auxiliary": draw(st.sampled_from(["auto", "exact", "float16", "uint8"])),
            "batch_norm": draw(st.sampled_from(["auto", "keep", "folded"])),
            "batch_norm_eps": draw(st.floats(0.0, 1.0, exclude_max=True)),
        }
    if isinstance(target, Ratio | Size):
        fields["rounding"] = draw(st.sampled_from(["auto", "trellis", "compensated", "deadzone"]))
        fields["scales"] = draw(st.sampled_from(["none", "rows"]))
        fields["cost"] = draw(st.sampled_from(["auto", "balanced", "squared"]))
    return CompressionConfig(target=target, **fields)


def keywords_of(config):
    """The keywords that describe a config."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name != "target"}
    if isinstance(config.target, Lossless):
        values = {key: values[key] for key in ("include", "exclude")}
    target = target_to_dict(config.target)
    return {**values, **({"size": target["bytes"]} if "bytes" in target else target)}


@given(configs())
def test_a_config_survives_json(config):
    """A config that is written as JSON and read again is equal, with the same types."""
    again = CompressionConfig.from_json(config.to_json())
    assert again == config
    assert type(again.target) is type(config.target)
    assert CompressionConfig.from_dict(config.to_dict()) == config
    assert again.to_json() == config.to_json()


@given(configs())
def test_keywords_describe_the_same_config(config):
    """The keywords of a config give an equal config; a config is returned as it is."""
    assert as_config(None, keywords_of(config), "compress") == config
    assert as_config(config, {}, "compress") is config


@given(configs(), st.sampled_from([item.name for item in dataclasses.fields(CompressionConfig)]))
def test_configs_are_frozen(config, name):
    """No field can be assigned."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, getattr(config, name))


@given(targets)
def test_targets_survive_a_dict(target):
    """A target that is written as a dict and read again is equal."""
    assert target_from_dict(json.loads(json.dumps(target_to_dict(target)))) == target


def test_a_config_keeps_no_reference_to_its_arguments():
    """Changes of the list or dict that was given do not change the config."""
    exclude, layers = ["fc.*"], {"fc.*": LayerConfig(bits=3)}
    config = CompressionConfig(target=Ratio(4), exclude=exclude, layers=layers)
    exclude.append("conv1.*")
    layers.clear()
    assert config.exclude == ("fc.*",)
    assert config.layers == {"fc.*": LayerConfig(bits=3.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "opq-config-0"}, 'must be an object with "format": "opq-config-1"'),
        ({"exlude": ["a"]}, "config: unknown field 'exlude'; the fields are target, rounding"),
        (
            {"layers": {"fc": {"bitz": 3}}},
            r"layers\['fc'\]: unknown field 'bitz'; the fields are sensitivity, sparsity, bits, step",
        ),
        ({"layers": {"fc": 3}}, "layers must map names or globs to objects"),
        ({"layers": ["fc"]}, "layers must map names or globs to objects"),
        ({"layers": {"fc": {"bits": "x"}}}, "layer config: bits must be a finite number, got 'x'"),
        ({"layers": {"fc": {"bits": True}}}, "layer config: bits must be a finite number, got True"),
        ({"target": {"ratio": 4, "size": 3}}, "target must be an object with"),
        ({"target": None}, "target must be an object with"),
        ({"target": 4}, "target must be an object with"),
        ({"rounding": "shaped"}, "rounding must be one of 'auto', 'trellis', 'compensated', 'deadzone', got 'shaped'"),
        ({"rounding": ["auto"]}, "rounding must be one of"),
        ({"auxiliary": "half"}, "auxiliary must be one of 'auto', 'exact', 'float16', 'uint8', got 'half'"),
        ({"batch_norm": "canonical"}, "batch_norm must be one of 'auto', 'keep', 'folded', got 'canonical'"),
        ({"cost": "relative"}, "cost must be one of 'auto', 'balanced', 'squared', got 'relative'"),
        ({"batch_norm_eps": 1.0}, r"batch_norm_eps must lie in \[0, 1\), got 1.0"),
        ({"batch_norm_eps": "1e-5"}, "batch_norm_eps must be a finite number"),
        ({"include": 3}, "include must be a glob or a list of globs, got"),
        ({"exclude": [3]}, "exclude must be a glob or a list of globs, got"),
    ],
)
def test_a_malformed_document_is_refused(change, message):
    """Unknown fields and values out of range are a ConfigError that names the field."""
    document = json.loads(CompressionConfig(target=Ratio(4)).to_json())
    with pytest.raises(ConfigError, match=message):
        CompressionConfig.from_json(json.dumps({**document, **change}))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", "[]", "null", '{"format": 1}', "{}"])
def test_text_that_is_no_config_is_refused(text):
    """Text that is not JSON, or not an object with the format's name, is a ConfigError."""
    with pytest.raises(ConfigError):
        CompressionConfig.from_json(text)


@pytest.mark.parametrize("document", [None, 3, [], "x"])
def test_a_document_that_is_no_mapping_is_refused(document):
    """`from_dict` takes mappings only."""
    with pytest.raises(ConfigError, match="config must be an object"):
        CompressionConfig.from_dict(document)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 4, "exlude": ["a"]}, r"compress\(\) got an unexpected keyword argument 'exlude'; did you mean 'exclude'\?"),
        ({"ratio": 4, "layer": {}}, "did you mean 'layers'"),
        ({"ration": 4}, "did you mean 'ratio'"),
        ({"ratio": 4, "overrides": {}}, "unexpected keyword argument 'overrides'"),
        (
            {"ratio": 4, "zzz": 1},
            "unexpected keyword argument 'zzz'; the keywords are ratio, size, sparsity, bits, lossless",
        ),
    ],
)
def test_an_unknown_keyword_is_a_type_error(options, message):
    """The TypeError names the nearest keyword, or all of them."""
    with pytest.raises(TypeError, match=message):
        as_config(None, options, "compress")
    if "ration" not in options:
        options = {key: value for key, value in options.items() if key != "ratio"}
    with pytest.raises(TypeError, match=message.replace("compress", "rd_curve")):
        without_target(options, "rd_curve", "the curve covers all sizes")


def test_a_config_excludes_keywords():
    """A config together with keywords, or another object instead of a config, is a TypeError."""
    config = CompressionConfig(target=Ratio(4))
    with pytest.raises(TypeError, match=r"plan\(\) takes a config or keywords, got both a config and 'exclude'"):
        as_config(config, {"exclude": ["a"]}, "plan")
    with pytest.raises(TypeError, match=r"plan\(\) takes a CompressionConfig, or keywords such as ratio=8, got dict"):
        as_config({"ratio": 4}, {}, "plan")


@pytest.mark.parametrize("options", [{"ratio": 8}, {"size": "20kB"}, {"sparsity": 0.5, "bits": 4}, {"lossless": True}])
def test_without_target_refuses_a_target(options):
    """A function that chooses the target itself refuses a target, with the reason."""
    with pytest.raises(TargetError, match=f"{min(options, key=list(options).index)} must not be given: because"):
        without_target({**options, "exclude": ["a"]}, "rd_curve", "because")


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({"ratio": 8}, Ratio(8)),
        ({"size": "30kB"}, Size(30_000)),
        ({"sparsity": 0.7, "bits": 4}, TwoStage(0.7, 4)),
    ],
)
def test_keywords_and_config_give_the_same_plan(network, options, target):
    """`plan` and `compress` do the same with keywords and with the config they describe."""
    others = {
        "exclude": ["conv1.weight"],
        "layers": {"fc.*": LayerConfig(sensitivity=3.0)},
        "auxiliary": "float16",
        "batch_norm": "folded",
        "batch_norm_eps": 1e-3,
    }
    config = CompressionConfig(target=target, **others)
    assert opq.plan(network, config) == opq.plan(network, **options, **others)
    one, other = opq.compress(network, config), opq.compress(network, **options, **others)
    assert one.data == other.data
    assert one.plan == other.plan
    assert one.plan.target == target


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
def test_sizes_have_units(text, size):
    """1 kB is 1,000 bytes and 1 KiB is 1,024 bytes; case and a space do not matter."""
    assert parse_size(text) == size
    assert Size(text) == Size(size)


@pytest.mark.parametrize("text", ["", "9" * 400, 10**400, True, "kB", "-5", "1e6", "12 parsecs", "0", "0.4", None, 0, -3])
def test_an_invalid_size_is_refused(text):
    """Any other size is a TargetError that shows how to write one."""
    with pytest.raises(TargetError, match="size must be a positive number of bytes such as"):
        parse_size(text)
    with pytest.raises(TargetError, match="size must be a positive number of bytes such as"):
        Size(text)


@given(st.integers(1, 2**60))
def test_an_integer_is_its_own_size(size):
    """An integer number of bytes is the size."""
    assert parse_size(size) == size


@given(st.integers(1, 2**40), byte_targets)
def test_the_budget_is_the_largest_number_of_bytes_that_meets_the_target(dense, target):
    """The budget of a byte target is the largest number of bytes that meets it, at least 1."""
    budget = target.budget(dense)
    assert budget == CompressionConfig(target=target).budget(dense) >= 1
    if isinstance(target, Ratio):
        assert budget == 1 or dense / budget >= target.ratio * (1.0 - 1e-12)
        assert dense / (budget + 1) < target.ratio * (1.0 + 1e-12)
    else:
        assert budget == target.bytes


def test_other_targets_have_no_budget():
    """A two-stage or a lossless target has no byte budget."""
    assert TwoStage(0.5, 4).budget(100) is None
    assert Lossless().budget(100) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparsity": 0.5},
        {"bits": 3},
        {"ratio": 2, "size": 5},
        {"ratio": 2, "sparsity": 0.5, "bits": 3},
        {"ratio": 2, "lossless": True},
        {"lossless": False},
        {"ratio": None},
    ],
)
def test_exactly_one_target_must_be_given(options):
    """No target or several targets are a TargetError that lists the ones given."""
    with pytest.raises(
        TargetError,
        match="exactly one target must be given: ratio, size, sparsity and bits together, or lossless; got",
    ):
        as_config(None, options, "compress")


def test_none_counts_as_not_given():
    """A keyword that is None, or lossless=False, counts as not given."""
    options = {"ratio": 4, "size": None, "sparsity": None, "bits": None, "lossless": False, "include": None, "layers": None}
    assert as_config(None, options, "compress") == CompressionConfig(target=Ratio(4))
    assert without_target({"ratio": None, "lossless": False, "include": None, "exclude": "a"}, "rd_curve", "") == {
        "exclude": "a"
    }


@pytest.mark.parametrize(
    "ratio", [0, -1, float("nan"), float("inf"), "many", 1e-320, 1e300, True, None, np.array("x"), np.ones(2), 10**400]
)
def test_an_invalid_ratio_is_refused(ratio):
    """A ratio is a number from 1e-9 to 1e9."""
    with pytest.raises(TargetError, match="ratio must be"):
        Ratio(ratio)


@pytest.mark.parametrize("number", [np.nan, np.inf, "many", True, None])
def test_two_stage_targets_hold_finite_numbers(number):
    """A sparsity or width that is no finite number is a TargetError."""
    with pytest.raises(TargetError, match="sparsity must be a finite number"):
        TwoStage(number, 4)
    with pytest.raises(TargetError, match="bits must be a finite number"):
        TwoStage(0.5, number)


@pytest.mark.parametrize("number", [4, 4.0, np.float32(4), np.int64(4), np.array(4.0)])
def test_numbers_of_any_library_are_accepted(number):
    """Numbers become floats, so that configs compare equal and go to JSON."""
    assert Ratio(number) == Ratio(4.0)
    assert type(Ratio(number).ratio) is float
    assert type(LayerConfig(bits=number).bits) is float


@pytest.mark.parametrize("target", [4, "ratio", None, {"ratio": 4}])
def test_a_target_is_a_typed_object(target):
    """Any other object instead of a target is a TargetError."""
    with pytest.raises(TargetError, match="target must be a Ratio, Size, TwoStage or Lossless, got"):
        CompressionConfig(target=target)


@pytest.mark.parametrize("layers", [{"fc.weight": 3}, {"fc.weight": {"bits": 3}}, ["fc.weight"], {3: LayerConfig()}, "fc"])
def test_layers_of_the_wrong_kind_are_refused(layers):
    """`layers` maps text to LayerConfig objects."""
    with pytest.raises(ConfigError, match="layers must map names or globs to LayerConfig objects, got"):
        CompressionConfig(target=Ratio(4), layers=layers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounding", "deadzone"),
        ("auxiliary", "uint8"),
        ("auxiliary", "float16"),
        ("batch_norm", "folded"),
        ("cost", "balanced"),
        ("batch_norm_eps", 1e-3),
        ("layers", {"a": LayerConfig(bits=3)}),
    ],
)
def test_lossless_accepts_a_selection_only(field, value):
    """With a lossless target, any other setting that does not say what it does anyway is refused by name."""
    with pytest.raises(ConfigError, match=f"include, exclude and speed only; remove {field}"):
        CompressionConfig(target=Lossless(), **{field: value})
    CompressionConfig(target=Lossless(), include=("a",), exclude=("b",), auxiliary="exact", batch_norm="keep")


@pytest.mark.parametrize(
    ("target", "fields", "expected"),
    [
        (Ratio(4), {}, ("trellis", "balanced", "float16")),
        (Size(9), {"rounding": "compensated"}, ("compensated", "balanced", "float16")),
        (Ratio(4), {"rounding": "deadzone", "auxiliary": "uint8"}, ("deadzone", "squared", "uint8")),
        (Ratio(4), {"rounding": "deadzone", "cost": "balanced"}, ("deadzone", "balanced", "float16")),
        (Ratio(4), {"cost": "squared", "auxiliary": "exact"}, ("trellis", "squared", "exact")),
        (TwoStage(0.5, 4), {"cost": "squared"}, ("deadzone", "squared", "float16")),
    ],
)
def test_what_auto_means(target, fields, expected):
    """Rounding is trellis; costs are balanced, but squared with dead zones; float16 is the storage; a given setting counts."""
    config = CompressionConfig(target=target, **fields)
    assert (config.resolved_rounding, config.resolved_cost, config.resolved_auxiliary) == expected


def test_a_lossless_target_means_exact():
    """With a lossless target "auto" means exact."""
    assert CompressionConfig(target=Lossless()).resolved_auxiliary == "exact"


def test_a_two_stage_target_has_squared_costs():
    """Balanced costs together with sparsity and bits are a ConfigError."""
    with pytest.raises(ConfigError, match=r"cost \(='balanced'\) cannot be combined with sparsity and bits"):
        CompressionConfig(target=TwoStage(0.5, 4), cost="balanced")


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, NAMES),
        ({"include": ["layer*"]}, NAMES[1:3]),
        ({"include": ["layer1*", "fc.weight"]}, [NAMES[1], NAMES[3]]),
        ({"exclude": ["fc*"]}, NAMES[:3]),
        ({"exclude": "conv1.weight"}, NAMES[1:]),
        ({"include": ["layer*"], "exclude": ["*2*"]}, [NAMES[1]]),
        ({"include": None, "exclude": None}, NAMES),
        ({"include": (glob for glob in ["fc*"])}, NAMES[3:]),
    ],
)
def test_globs_select(options, chosen):
    """`include` restricts, then `exclude` removes; a single glob needs no list."""
    assert as_config(None, {"ratio": 4, **options}, "plan").select(NAMES) == chosen


def test_a_name_with_glob_characters_matches_itself():
    """A literal name matches itself, whatever characters it has."""
    assert CompressionConfig(target=Ratio(4), include="a[0]*").select(["a[0]*", "a0b"]) == ["a[0]*", "a0b"]


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_glob_without_a_match_is_an_error(option):
    """The SelectionError names the option and the weights."""
    config = CompressionConfig(target=Ratio(4), **{option: ["convv"]})
    with pytest.raises(SelectionError, match=f"{option} 'convv' matches no weight; there are 4: 'conv1.weight', "):
        config.select(NAMES)


def test_a_layer_glob_without_a_match_is_an_error():
    """A glob of `layers` that matches no weight is a SelectionError."""
    config = CompressionConfig(target=Ratio(4), layers={"convv": LayerConfig(bits=3)})
    with pytest.raises(SelectionError, match="layers 'convv' matches no weight"):
        config.layer_configs(NAMES)


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("value", [3, [3], [None]])
def test_selections_hold_globs(option, value):
    """A glob that is not text is a ConfigError."""
    with pytest.raises(ConfigError, match=f"{option} must be a glob or a list of globs, got"):
        CompressionConfig(target=Ratio(4), **{option: value})


def test_layer_configs_add_up_and_the_last_one_counts():
    """Fields of several matching configs are combined; the same field is taken from the last one."""
    layers = {
        "layer*": LayerConfig(bits=4, sensitivity=2),
        "layer1*": LayerConfig(bits=6, sparsity=0.5),
        "fc*": LayerConfig(sensitivity=3),
    }
    found = CompressionConfig(target=TwoStage(0.5, 4), layers=layers).layer_configs(NAMES)
    assert found["layer1.conv.weight"] == LayerConfig(sensitivity=2.0, sparsity=0.5, bits=6.0, scales="auto")
    assert found["layer2.conv.weight"] == LayerConfig(sensitivity=2.0, bits=4.0, scales="auto")
    assert found["fc.weight"] == LayerConfig(sensitivity=3.0, scales="auto")
    assert found["conv1.weight"] == LayerConfig(scales="auto")


def test_a_layer_config_keeps_fields_that_another_one_leaves_out():
    """A config without a sensitivity does not reset the one given before."""
    layers = {"fc.weight": LayerConfig(sensitivity=9.0), "fc.*": LayerConfig(bits=3)}
    found = CompressionConfig(target=Ratio(4), layers=layers).layer_configs(NAMES)
    assert found["fc.weight"] == LayerConfig(sensitivity=9.0, bits=3.0, scales="auto")
    assert found["fc.weight"].is_fixed
    assert not LayerConfig(sensitivity=9.0, scales="rows").is_fixed


@pytest.mark.parametrize("scales", ["none", "rows"])
def test_a_layer_config_has_the_scales_of_the_config_or_its_own(scales):
    """A weight has the scales of its layer config; without one, those of the config."""
    layers = {"fc.weight": LayerConfig(scales="rows"), "conv1.*": LayerConfig(scales="none"), "layer1*": LayerConfig(bits=3)}
    found = CompressionConfig(target=Ratio(4), scales=scales, layers=layers).layer_configs(NAMES)
    assert {name: config.scales for name, config in found.items()} == {
        "conv1.weight": "none", "layer1.conv.weight": scales, "layer2.conv.weight": scales, "fc.weight": "rows",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "target", "message"),
    [
        ({"bits": 0.5}, TwoStage(0.5, 4), r"bits must lie in \(1, 16\], got 0.5"),
        ({"bits": 0.0}, Ratio(4), r"bits must lie in \(0, 16\], got 0"),
        ({"sparsity": 1.0}, TwoStage(0.5, 4), r"sparsity must lie in \[0, 1\), got 1"),
        ({"sparsity": 0.0}, Ratio(4), "exclude the tensor instead"),
        ({"step": 0.0}, Ratio(4), "step must be positive"),
        ({"step": 1e-40}, Ratio(4), "step must be positive and a normal float32"),
        ({"sensitivity": 0.0}, Ratio(4), "sensitivity must be positive"),
        ({"bits": 3, "step": 0.1}, TwoStage(0.5, 4), "bits and step cannot both be fixed"),
        ({"bits": 3, "sparsity": 0.1}, Size(1000), "sparsity and bits cannot both be fixed"),
        ({"scales": "rows"}, TwoStage(0.5, 4), "scales must be 'none' with sparsity and bits, got 'rows'"),
    ],
)
def test_layer_configs_out_of_range_are_refused(layer, target, message):
    """Values that are out of range or contradict each other are a ConfigError that names the weight."""
    config = CompressionConfig(target=target, layers={"fc.*": LayerConfig(**layer)})
    with pytest.raises(ConfigError, match=rf"layers\['fc\.weight'\]: .*{message}"):
        config.layer_configs(NAMES)


@pytest.mark.parametrize("value", ["x", float("nan"), float("inf"), True, [3]])
@pytest.mark.parametrize("field", ["sensitivity", "sparsity", "bits", "step"])
def test_layer_configs_hold_finite_numbers(field, value):
    """A value that is no finite number is a ConfigError."""
    with pytest.raises(ConfigError, match=f"layer config: {field} must be a finite number, got"):
        LayerConfig(**{field: value})


def test_unknown_scales_are_refused():
    """Scales other than none and rows are a ConfigError, and so are scales with sparsity and bits."""
    with pytest.raises(ConfigError, match="layer config: scales must be one of 'auto', 'none', 'rows', got 'columns'"):
        LayerConfig(scales="columns")
    with pytest.raises(ConfigError, match="scales must be one of 'auto', 'none', 'rows', got None"):
        CompressionConfig(target=Ratio(4), scales=None)
    with pytest.raises(ConfigError, match=r"scales \(='rows'\) cannot be combined with sparsity and bits"):
        CompressionConfig(target=TwoStage(0.5, 4), scales="rows")
    with pytest.raises(ConfigError, match="remove scales"):
        CompressionConfig(target=Lossless(), scales="rows")


def test_layer_configs_refuse_unknown_fields():
    """An unknown field, or a positional one, is a TypeError."""
    with pytest.raises(TypeError):
        LayerConfig(bitz=3)
    with pytest.raises(TypeError):
        LayerConfig(3.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LayerConfig().bits = 3

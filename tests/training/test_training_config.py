"""Laws of TrainingConfig: its checks, its JSON, and its learning rate schedule."""

import dataclasses
import json
from dataclasses import FrozenInstanceError, fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq import TrainingConfig

open_unit = st.floats(0.0, 1.0, exclude_max=True)
positive = st.floats(1e-300, 1e300)
configs = st.integers(1, 10**6).flatmap(
    lambda epochs: st.builds(
        TrainingConfig,
        epochs=st.just(epochs),
        mask_update_epochs=st.none() | st.integers(0, epochs - 1),
        reserve=open_unit,
        seed=st.integers(0, 2**64),
        learning_rate=positive,
        momentum=open_unit,
        weight_decay=st.floats(0.0, 1e300),
        warmup=st.floats(0.0, 1.0),
        max_grad_norm=st.none() | positive,
        label_weight=st.floats(0.0, 1.0),
        temperature=positive,
        ema_decay=st.none() | open_unit,
    )
)


@given(configs)
def test_json_reads_back_equal(config):
    """`from_json` of `to_json` is an equal config, and the text is JSON with the format's name and every field."""
    text = config.to_json()
    assert TrainingConfig.from_json(text) == config
    document = json.loads(text)
    assert document.pop("format") == "opq-training-config-1"
    assert set(document) == {field.name for field in fields(TrainingConfig)} - {"optimizer"}
    assert config.describe() == {**document, "optimizer": None}


def test_missing_fields_have_their_defaults():
    """A config file may hold only what differs from the defaults, but always the number of epochs."""
    assert TrainingConfig.from_json('{"format": "opq-training-config-1", "epochs": 3}') == TrainingConfig(epochs=3)
    with pytest.raises(opq.ConfigError, match="epochs"):
        TrainingConfig.from_json('{"format": "opq-training-config-1", "seed": 3}')


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"epoch": 3}, "unknown field 'epoch'"),
        ({"optimizer": "SGD"}, "unknown field 'optimizer'"),
        ({"format": "opq-config-1"}, '"format": "opq-training-config-1"'),
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"epochs": True}, "epochs must be an integer >= 1, got True"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(change, problem):
    """Unknown fields, another format and values out of range each raise a ConfigError that names them."""
    document = {"format": "opq-training-config-1", "epochs": 3, **change}
    with pytest.raises(opq.ConfigError, match=problem):
        TrainingConfig.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000])
def test_text_that_is_no_config_is_refused(text):
    """Whatever the text is, the error is a ConfigError."""
    with pytest.raises(opq.ConfigError):
        TrainingConfig.from_json(text)


@pytest.mark.parametrize("key", ["epochs", "mask_update_epochs", "seed", "learning_rate", "momentum", "warmup", "ema_decay"])
@pytest.mark.parametrize("value", ["1", [1], {}])
def test_values_of_the_wrong_kind_are_refused(key, value):
    """Text, lists and objects instead of numbers raise a ConfigError, in the constructor and in JSON."""
    with pytest.raises(opq.ConfigError, match=f"^{key} must be an? "):
        TrainingConfig(**{"epochs": 3, key: value})
    with pytest.raises(opq.ConfigError):
        TrainingConfig.from_json(json.dumps({"format": "opq-training-config-1", "epochs": 3, key: value}))


def test_numbers_of_numpy_become_floats():
    """Numbers of NumPy are stored in JSON like any other number."""
    config = TrainingConfig(epochs=3, learning_rate=np.float32(0.5), weight_decay=0, ema_decay=np.float64(0.25))
    assert config == TrainingConfig(epochs=3, learning_rate=0.5, weight_decay=0.0, ema_decay=0.25)
    assert TrainingConfig.from_json(config.to_json()) == config


def test_a_config_is_frozen_and_accepts_keywords_only():
    """Its fields cannot be set, positions are refused, and a keyword that does not exist is a TypeError."""
    config = TrainingConfig(epochs=3)
    for field in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, field.name, 1)
    with pytest.raises(TypeError):
        TrainingConfig(3)
    with pytest.raises(TypeError, match="learning_rat"):
        TrainingConfig(epochs=3, learning_rat=0.1)
    with pytest.raises(opq.ConfigError, match="mask_update_epochs"):
        replace(TrainingConfig(epochs=3, mask_update_epochs=2), epochs=2)  # a copy is checked too
    assert dataclasses.asdict(replace(config, epochs=4)) == dataclasses.asdict(TrainingConfig(epochs=4))


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("epochs", [0, -1, 1.0, True]),
        ("mask_update_epochs", [-1, 3, 1.0, True]),
        ("reserve", [-0.1, 1.0, NAN]),
        ("seed", [-1, 0.5, True]),
        ("learning_rate", [0.0, -1.0, INFINITY, NAN]),
        ("momentum", [-0.1, 1.0, NAN]),
        ("weight_decay", [-1.0, INFINITY, NAN]),
        ("warmup", [-0.1, 2.0, NAN]),
        ("max_grad_norm", [0.0, -1.0, INFINITY, NAN]),
        ("label_weight", [-0.5, 1.5, NAN]),
        ("temperature", [0.0, INFINITY, NAN]),
        ("ema_decay", [-0.1, 1.0, NAN]),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, values):
    """The error names the field and the value."""
    for value in values:
        with pytest.raises(opq.ConfigError, match=rf"^{field} must .*, got {value!r}$"):
            TrainingConfig(**{"epochs": 3, field: value})


def test_an_optimizer_is_described_but_does_not_go_to_json():
    """The description of an optimizer has its name and its arguments, without memory addresses."""
    config = TrainingConfig(epochs=1, optimizer=partial(torch.optim.AdamW, betas=(0.9, 0.99)))
    with pytest.raises(opq.ConfigError, match="optimizer"):
        config.to_json()
    described = config.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["optimizer"] == "AdamW"
    assert "0.99" in described["optimizer_arguments"]
    with_address = TrainingConfig(epochs=1, optimizer=partial(torch.optim.SGD, foreach=object()))
    assert " at 0x" not in with_address.describe()["optimizer_arguments"]


def test_the_rate_rises_and_falls():
    """The learning rate rises in the warmup, reaches 1, and then falls to nearly zero, but not below."""
    training = TrainingConfig(epochs=1, warmup=0.1)
    rates = [training.rate_at(step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.0 < rates[-1] < 0.01

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from od_finetune.config import overrides, pipeline
from od_finetune.errors import UserError
from od_finetune.protos import train_pb2

TEXT = """
model { ssd { num_classes: 3 box_coder { square_box_coder { } } } }
train_config {
  freeze_variables: "a"
  freeze_variables: "b"
  optimizer { momentum_optimizer { momentum_optimizer_value: 0.5 } }
  data_augmentation_options { random_horizontal_flip { } }
}
train_input_reader { tf_record_input_reader { input_path: "x" input_path: "y" } }
eval_input_reader { }
"""


@pytest.fixture
def config():
    return pipeline.parse(TEXT)


@pytest.mark.parametrize(
    "override, read, expected",
    [
        ("train_config.batch_size=4", lambda c: c.train_config.batch_size, 4),
        ("train_config.batch_size = 4", lambda c: c.train_config.batch_size, 4),
        ("train_config.seed=-0x10", lambda c: c.train_config.seed, -16),
        ("train_config.gradient_clipping_by_norm=1e-3", lambda c: c.train_config.gradient_clipping_by_norm, 1e-3),
        ("train_config.sync_replicas=true", lambda c: c.train_config.sync_replicas, True),
        ("train_config.sync_replicas=False", lambda c: c.train_config.sync_replicas, False),
        ("train_config.add_regularization_loss=0", lambda c: c.train_config.add_regularization_loss, False),
        (
            "train_config.fine_tune_checkpoint_version=V2",
            lambda c: c.train_config.fine_tune_checkpoint_version,
            train_pb2.V2,
        ),
        (
            "train_config.fine_tune_checkpoint_version=2",
            lambda c: c.train_config.fine_tune_checkpoint_version,
            train_pb2.V2,
        ),
        ("train_config.fine_tune_checkpoint=/a/b=c", lambda c: c.train_config.fine_tune_checkpoint, "/a/b=c"),
        ('train_config.fine_tune_checkpoint="with \'quotes\'"', lambda c: c.train_config.fine_tune_checkpoint,
         "with 'quotes'"),
        ("train_config.fine_tune_checkpoint=", lambda c: c.train_config.fine_tune_checkpoint, ""),
        ("train_config.freeze_variables[1]=c", lambda c: c.train_config.freeze_variables, ["a", "c"]),
        ("train_config.freeze_variables[-1]=c", lambda c: c.train_config.freeze_variables, ["a", "c"]),
        ("train_config.freeze_variables[+]=c", lambda c: c.train_config.freeze_variables, ["a", "b", "c"]),
        ("train_config.freeze_variables=c", lambda c: c.train_config.freeze_variables, ["c"]),
        ("train_config.freeze_variables=", lambda c: c.train_config.freeze_variables, []),
        ("train_config.freeze_variables=['p', 'q']", lambda c: c.train_config.freeze_variables, ["p", "q"]),
        # Looks like the start of a list, is a regular expression.
        ("train_config.freeze_variables=[a-z]+/w", lambda c: c.train_config.freeze_variables, ["[a-z]+/w"]),
        (
            "train_input_reader.tf_record_input_reader.input_path[0]=/d/train-?????-of-00010",
            lambda c: c.train_input_reader.tf_record_input_reader.input_path,
            ["/d/train-?????-of-00010", "y"],
        ),
        ("eval_input_reader[0].shuffle=false", lambda c: c.eval_input_reader[0].shuffle, False),
        ("eval_input_reader.shuffle=false", lambda c: c.eval_input_reader[0].shuffle, False),
        ("eval_input_reader[+].name=second", lambda c: [r.name for r in c.eval_input_reader], ["", "second"]),
        ("train_config.data_augmentation_options=[]", lambda c: len(c.train_config.data_augmentation_options), 0),
        (
            "train_config.data_augmentation_options[+]={random_adjust_hue {max_delta: 0.5}}",
            lambda c: [o.WhichOneof("preprocessing_step") for o in c.train_config.data_augmentation_options],
            ["random_horizontal_flip", "random_adjust_hue"],
        ),
        ("eval_config.super_categories[dog]=animal", lambda c: dict(c.eval_config.super_categories), {"dog": "animal"}),
        (
            "model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios=[1, 0.5]",
            lambda c: c.model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios,
            [1.0, 0.5],
        ),
    ],
)  # fmt: skip
def test_values(config, override, read, expected):
    overrides.apply(config, [override])
    found = read(config)
    if isinstance(expected, float):
        assert found == pytest.approx(expected)
    else:
        assert (list(found) if isinstance(expected, list) else found) == expected


def test_a_path_into_another_member_of_a_oneof_switches(config):
    overrides.apply(config, ["train_config.optimizer.adam_optimizer.epsilon=0.1"])
    assert config.train_config.optimizer.WhichOneof("optimizer") == "adam_optimizer"


def test_a_whole_message_replaces_and_an_empty_one_is_set(config):
    overrides.apply(config, ["train_config.optimizer.momentum_optimizer={learning_rate {}}"])
    momentum = config.train_config.optimizer.momentum_optimizer
    assert momentum.HasField("learning_rate") and not momentum.HasField("momentum_optimizer_value")
    overrides.apply(config, ["model.ssd.box_coder.faster_rcnn_box_coder={}"])
    assert config.model.ssd.box_coder.WhichOneof("box_coder_oneof") == "faster_rcnn_box_coder"


def test_overrides_apply_in_order(config):
    overrides.apply(config, ["train_config.num_steps=1", "train_config.num_steps=2"])
    assert config.train_config.num_steps == 2


@pytest.mark.parametrize(
    "override, parts",
    [
        ("train_config.batch_size", ["path=value"]),
        ("train_config..batch_size=3", ["not a path"]),
        ("=3", ["not a path"]),
        ("train_config.bach_size=4", ["TrainConfig has no field 'bach_size'", "did you mean 'batch_size'?"]),
        ("trainconfig.batch_size=4", ["did you mean 'train_config'?"]),
        ("train_config.optimizer={adam_optimiser {}}", ["Optimizer has no field", "did you mean 'adam_optimizer'?"]),
        ("train_config.batch_size=four", ["expected a non-negative integer", "'four'"]),
        ("train_config.batch_size=1.5", ["expected a non-negative integer"]),
        ("train_config.batch_size=-1", ["expected a non-negative integer"]),
        ("train_config.batch_size=", ["expected a non-negative integer"]),
        ("train_config.num_steps=99999999999", ["expected a non-negative integer"]),
        ("train_config.sync_replicas=yes please", ["expected a bool"]),
        ("train_config.gradient_clipping_by_norm=big", ["expected a float"]),
        ("train_config.fine_tune_checkpoint_version=V3", ["expected one of UNKNOWN, V1, V2"]),
        ("train_config.fine_tune_checkpoint_version=9", ["expected one of UNKNOWN, V1, V2"]),
        ("train_config.batch_size[0]=4", ["not repeated"]),
        ("train_config.batch_size.x=4", ["has no fields below it"]),
        ("train_config=4", ["message (TrainConfig)"]),
        ("model.ssd={num_clases: 3}", ["num_clases"]),
        ("eval_input_reader[3].shuffle=true", ["1 elements", "[3]", "[+]"]),
        ("eval_input_reader[one].shuffle=true", ["no index"]),
        ("eval_config.metrics_set[0]=coco", ["0 elements"]),
        ("model.ssd.anchor_generator.ssd_anchor_generator.aspect_ratios=[1, x]", ["a list of floats"]),
    ],
)
def test_errors_name_the_path_and_leave_the_config_alone(config, override, parts):
    before = pipeline.to_text(config)
    with pytest.raises(overrides.OverrideError) as caught:
        overrides.apply(config, [override])
    assert isinstance(caught.value, UserError)
    for part in [*parts, f"--set {override.split('=')[0]}"]:
        assert part in str(caught.value)
    assert pipeline.to_text(config) == before


def test_a_repeated_message_needs_an_index_once_there_are_two(config):
    overrides.apply(config, ["eval_input_reader[+].shuffle=true"])
    with pytest.raises(overrides.OverrideError, match="has 2 elements"):
        overrides.apply(config, ["eval_input_reader.shuffle=true"])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\"'")))
def test_any_text_reaches_a_string_field(text):
    config = pipeline.parse("")
    overrides.apply(config, [f'train_config.fine_tune_checkpoint="{text}"'])
    assert config.train_config.fine_tune_checkpoint == text


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_int64_reaches_an_int64_field(number):
    config = pipeline.parse("")
    overrides.apply(config, [f"train_config.seed={number}"])
    assert config.train_config.seed == number

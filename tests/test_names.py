import pytest

from od_finetune import names
from od_finetune.errors import UserError

CONV = "FeatureExtractor/MobilenetV2/Conv/weights"
HEAD = "BoxPredictor_0/ClassPredictor/biases"


@pytest.mark.parametrize(
    "canonical, snake",
    [
        ("FeatureExtractor/MobilenetV2/Conv/BatchNorm/gamma", "feature_extractor/mobilenet_v2/conv/batch_norm/gamma"),
        ("BoxPredictor_0/ClassPredictor_depthwise", "box_predictor_0/class_predictor_depthwise"),
        ("layer_19_1_Conv2d_2_1x1_256", "layer_19_1_conv2d_2_1x1_256"),
        ("WeightSharedConvolutionalBoxPredictor", "weight_shared_convolutional_box_predictor"),
        ("InceptionResnetV2/Conv2d_1a_7x7", "inception_resnet_v2/conv2d_1a_7x7"),
        ("FPNTop/Conv2D", "fpn_top/conv2d"),
        ("resnet_v1_50/block1", "resnet_v1_50/block1"),
    ],
)
def test_snake_name(canonical, snake):
    assert names.snake_name(canonical) == snake


@pytest.mark.parametrize(
    "pattern, matches",
    [
        ("feature_extractor", True),
        ("FeatureExtractor/MobilenetV2/Conv/", True),
        ("mobilenet_v2/conv", True),
        ("MobilenetV2", True),  # searched anywhere, not only at the start
        ("Conv1/kernel", True),  # the TF2 name
        ("kernel$", True),
        ("^Conv/", False),
        ("BoxPredictor", False),
        ("(?=FeatureExtractor).*weights", True),
        ("(?=MobilenetV2)", False),  # a look-ahead is anchored
        ("(?!FeatureExtractor)", False),
        ("(?!FeatureExtractor).*", False),
        ("(?!feature_extractor).*weights", False),
        ("(?!BoxPredictor).*", True),
        ("(?i)(?!featureextractor)", False),
        ("^((?!BoxPredictor).)*$", True),
        ("^((?!FeatureExtractor).)*$", False),
        ("^((?!feature_extractor).)*$", False),
        ("Conv(?!_1)", True),
        ("Conv(?!/)", False),  # Conv1/kernel would do, but the canonical name is what it excludes
        ("Mobilenet(?!V2)", False),
        ("(?<!Extractor/)MobilenetV2", False),
        (r"Conv[(?!]*/weights", True),  # no negation: inside a set
        (r"\(?!Conv", False),  # no negation: an escaped parenthesis
    ],
)
def test_pattern_matches(pattern, matches):
    assert names.pattern_matches(pattern, CONV, ["Conv1/kernel"]) is matches


def test_negation_does_not_slip_through_the_snake_case_spelling():
    pattern = "(?!FeatureExtractor|BoxPredictor_1)"
    assert names.pattern_matches(pattern, HEAD, ["BoxPredictor/ConvolutionalClassHead_0/ClassPredictor/bias"])
    assert not names.pattern_matches(pattern, HEAD.replace("_0", "_1"))
    assert not names.pattern_matches(pattern, CONV)


@pytest.mark.parametrize(
    "pattern, found",
    [("FeatureExtractor/(Conv", "(Conv"), ("*weights", "*weights"), ("a[b", "[b"), ("", "empty pattern")],
)
def test_invalid_pattern_says_where(pattern, found):
    with pytest.raises(UserError) as error:
        names.pattern_matches(pattern, CONV)
    assert found in str(error.value)


def test_rules_apply_in_order():
    rules = [("/weights$", "/kernel"), (r"^FeatureExtractor/(\w+)/", r"\1_"), ("_Conv/", "_conv/")]
    assert names.apply_rules(CONV, rules) == "MobilenetV2_conv/kernel"
    with pytest.raises(UserError, match="invalid group reference"):
        names.apply_rules(CONV, [(r"Conv", r"\1")])


def test_nearest_lists_different_scopes_best_first():
    known = [CONV, "FeatureExtractor/MobilenetV2/Conv_1/weights", HEAD, HEAD.replace("_0", "_1"), "BoxPredictor_0/x/y"]
    assert names.nearest("BoxPredicter_0", known) == [HEAD, HEAD.replace("_0", "_1")]
    assert names.nearest("feature_extracter", known) == [CONV]
    assert names.nearest("MobilenetV2/Conv_2", known)[0] == "FeatureExtractor/MobilenetV2/Conv_1/weights"
    assert names.nearest("qqqq", known) == []
    assert len(names.nearest("BoxPredictor_7", [f"BoxPredictor_{i}/w" for i in range(6)], n=2)) == 2


def test_common_scope():
    assert names.common_scope([CONV, "FeatureExtractor/MobilenetV2/expanded_conv/project/weights"]) == (
        "FeatureExtractor/MobilenetV2"
    )
    assert names.common_scope([CONV, HEAD]) == ""
    assert names.common_scope([]) == ""


def test_names_that_keras_numbers():
    for name in ("conv2d/kernel", "conv2d_12/bias", "batch_normalization_3/gamma", "a/residual_block_2/conv2d/kernel"):
        assert names.is_numbered(name), name
    for name in ("conv1_conv/kernel", "block_1_expand/kernel", "Head/PredictionTower/conv2d_0/kernel", "stem_conv2d/a"):
        assert not names.is_numbered(name), name

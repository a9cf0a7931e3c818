"""Files as tf_keras (Keras 2) and Keras 3 write them, and files that no Keras writes."""

import json
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from google.protobuf import text_format

from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config.detector import build_detector
from od_finetune.errors import UnreadableError, UserError
from od_finetune.protos import pipeline_pb2

# Written for either Keras; saves its models into the directory of its argument.
_MODELS = """
def models(keras):
    layers = keras.layers
    body = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="Conv1", use_bias=False),
            layers.BatchNormalization(name="bn_Conv1", epsilon=0.005),
            layers.DepthwiseConv2D(3, name="dw"),
            layers.BatchNormalization(name="bn2", scale=False, epsilon=0.002),
            layers.SeparableConv2D(5, 3, name="sep"),
        ],
        name="body",
    )
    image = keras.Input((8, 8, 3))
    pooled = layers.GlobalAveragePooling2D()(body(image))
    whole = keras.Model(image, layers.Dense(3, name="fc")(layers.Lambda(abs, name="magic")(pooled)))
    return body, whole


def fill(model):
    for i, weight in enumerate(model.weights):
        weight.assign(weight * 0 + i + 1)


def save(keras, directory):
    import numpy as np
    body, whole = models(keras)
    whole.compile("adam", "mse")
    whole.fit(np.zeros((1, 8, 8, 3)), np.zeros((1, 3)), verbose=0)
    fill(whole)
    for name, model in {"body": body, "whole": whole}.items():
        for ending in (".h5", ".keras"):
            model.save(f"{directory}/{name}{ending}")
        model.save_weights(f"{directory}/{name}.weights.h5")
    return body, whole
"""
BODY = {
    "Conv1/kernel": (3, 3, 3, 4),
    **{f"bn_Conv1/{leaf}": (4,) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")},
    "dw/depthwise_kernel": (3, 3, 4, 1),
    "dw/bias": (4,),
    **{f"bn2/{leaf}": (4,) for leaf in ("beta", "moving_mean", "moving_variance")},
    "sep/depthwise_kernel": (3, 3, 4, 1),
    "sep/pointwise_kernel": (1, 1, 4, 5),
    "sep/bias": (5,),
}
# A .weights.h5 of tf_keras does not hold the layers' names.
UNNAMED = {
    "Conv1": "conv2d",
    "bn_Conv1": "batch_normalization",
    "dw": "depthwise_conv2d",
    "bn2": "batch_normalization_1",
    "sep": "separable_conv2d",
    "fc": "dense",
}


@pytest.fixture(scope="module")
def keras2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras2")
    scope = {}
    exec(_MODELS, scope)
    return folder, *scope["save"](tf_keras, folder)


def _values(model):
    return {variable.name.removesuffix(":0"): variable.numpy() for variable in model.weights}


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("ending", [".h5", ".keras", ".weights.h5"])
@pytest.mark.parametrize("which", ["body", "whole"])
def test_tf_keras(keras2, ending, which):
    folder, body, whole = keras2
    source = open_source(folder / f"{which}{ending}")
    values = _values(body if which == "body" else whole)
    assert len(source.names()) == len(values)
    names = {**{name: name for name in source.names()}, **source.aliases()}
    for name, value in values.items():
        layer, _, leaf = name.partition("/")
        if ending == ".weights.h5":
            layer = UNNAMED[layer]
        np.testing.assert_array_equal(source.read(names[f"{layer}/{leaf}"]), value, err_msg=name)
    if ending != ".weights.h5":
        prefix = "body/" if which == "whole" and ending == ".keras" else ""
        assert source.epsilons == {f"{prefix}bn_Conv1": 0.005, f"{prefix}bn2": 0.002}
    # Of its layers a .weights.h5 has neither names nor order.
    assert (source.order() is None) == (ending == ".weights.h5")
    others = source.other_entries()
    assert bool(others) == (which == "whole") and all("optimizer" in name or "metrics" in name for name in others)


@pytest.mark.slow
def test_keras_3(tmp_path):
    """Keras 3 as TensorFlow brings it along, in a process of its own: two Keras in one do not go together."""
    program = f"import sys, keras\n{_MODELS}\nsave(keras, sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    for which in ("body", "whole"):
        first = None
        for ending in (".h5", ".keras", ".weights.h5"):
            source = open_source(tmp_path / f"{which}{ending}")
            names = {**{name: name for name in source.names()}, **source.aliases()}
            assert all(source.names()[names[name]] == shape for name, shape in BODY.items()), (which, ending)
            assert len(source.names()) == len(BODY) + (2 if which == "whole" else 0)
            values = [source.read(names[name]) for name in BODY]
            first = first or values
            for value, expected in zip(values, first, strict=True):
                np.testing.assert_array_equal(value, expected)
            if ending != ".weights.h5":
                assert sorted(source.epsilons.values()) == [0.002, 0.005]


class TestMobileNetV2:
    """tf_keras.applications.MobileNetV2 into ssd_mobilenet_v2: the TF2 names of the OD API are Keras' own."""

    @pytest.mark.parametrize("alpha", [pytest.param(1.0, marks=pytest.mark.slow), 0.35])
    def test_backbone(self, shared, tmp_path, alpha):
        model = tf_keras.applications.MobileNetV2((96, 96, 3), alpha, weights=None, include_top=False)
        rng = np.random.RandomState(0)
        for variable in model.weights:
            if len(variable.shape) == 1:
                variable.assign(rng.uniform(0.5, 1.5, size=variable.shape))
        path = str(tmp_path / "mobilenet_v2.h5")
        model.save_weights(path)
        detector = self._detector(shared, alpha)
        variables = detector.named_variables()
        plan = RestorePlan.compute(
            Target.of(detector), [(open_source(path), RestoreRequest(path, "classification"))]
        )
        backbone = [row for row in plan.rows if row.part == "backbone"]
        left = {row.name.rpartition("MobilenetV2/")[2].split("/")[0] for row in plan.with_status(Status.SHAPE_DIFFERS)}
        # Keras leaves the last convolution 1280 wide when it thins the others, the OD API thins it as well.
        assert len(backbone) == 260 and left == ({"Conv_1"} if alpha < 1 else set())
        assert sum(row.status is Status.RESTORED for row in backbone) == (255 if alpha < 1 else 260)
        plan.apply(variables)
        self._compare(model, detector, {"layer_15/expansion_output": "block_13_expand_relu"})
        if alpha == 1:
            self._compare(model, detector, {"layer_19": "out_relu"})

    def _detector(self, shared, alpha):
        config = shared / "reference" / "goldens" / "tf1_ssd_mobilenet_v2_coco" / "pipeline.config"
        pipeline = text_format.Parse(config.read_text(), pipeline_pb2.TrainEvalPipelineConfig())
        assert not pipeline.model.ssd.feature_extractor.use_explicit_padding
        pipeline.model.ssd.feature_extractor.depth_multiplier = alpha
        pipeline.model.ssd.feature_extractor.min_depth = 8
        detector = build_detector(pipeline.model)
        detector.build()
        return detector

    def _compare(self, model, detector, levels):
        """Keras pads by hand for stride 2, which is what SAME does: without use_explicit_padding the two agree."""
        images = tf.constant(np.random.RandomState(1).uniform(-1, 1, (2, 96, 96, 3)), tf.float32)
        features = detector.backbone(images)
        for level, layer in levels.items():
            expected = tf_keras.Model(model.input, model.get_layer(layer).output)(images).numpy()
            np.testing.assert_allclose(features[level], expected, atol=1e-4 * expected.std(), err_msg=level)


class TestNoKerasFile:
    """What the reader must not follow, inflate or believe."""

    def _open(self, path, match, error=UserError):
        with pytest.raises(error, match=match):
            open_source(path)

    def _h5(self, path):
        file = h5py.File(path, "w")
        file["dense/kernel"] = np.ones((3, 4), np.float32)
        return file

    def test_other_hdf5(self, tmp_path):
        self._h5(tmp_path / "a.h5").close()
        assert open_source(tmp_path / "a.h5").names() == {"dense/kernel": (3, 4)}
        h5py.File(tmp_path / "empty.h5", "w").close()
        self._open(tmp_path / "empty.h5", "without arrays")

    def test_links(self, tmp_path):
        with self._h5(tmp_path / "external.h5") as file:
            file["secret"] = h5py.ExternalLink("/etc/passwd", "/x")
        self._open(tmp_path / "external.h5", "refused: secret is a ExternalLink .to '/etc/passwd'")
        with self._h5(tmp_path / "soft.h5") as file:
            file["soft"] = h5py.SoftLink("/dense/kernel")
        self._open(tmp_path / "soft.h5", "refused: soft is a SoftLink")
        with self._h5(tmp_path / "cycle.h5") as file:
            file["dense/again"] = file["dense"]
        self._open(tmp_path / "cycle.h5", "another name")

    def test_values_in_other_files(self, tmp_path):
        with self._h5(tmp_path / "virtual.h5") as file:
            layout = h5py.VirtualLayout((4,), np.float32)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4,))
            file.create_virtual_dataset("v", layout)
        self._open(tmp_path / "virtual.h5", "v has its values in other files")
        with self._h5(tmp_path / "raw.h5") as file:
            file.create_dataset("e", (4,), np.float32, external=[("/etc/passwd", 0, 16)])
        self._open(tmp_path / "raw.h5", "e has its values in other files")

    def test_sizes_that_cannot_be(self, tmp_path):
        with self._h5(tmp_path / "huge.h5") as file:
            file.create_dataset("h", (1 << 20, 1 << 20), np.float32)
        self._open(tmp_path / "huge.h5", "h has shape .1048576, 1048576., which takes 4398046511104 bytes")
        with self._h5(tmp_path / "bomb.h5") as file:
            file.create_dataset("b", data=np.zeros((1 << 24,), np.float32), compression="gzip")
        self._open(tmp_path / "bomb.h5", "b has shape .16777216., which takes 67108864 bytes, in a file of")

    def test_compressed_weights_are_fine(self, tmp_path):
        value = np.random.RandomState(0).normal(size=(100, 100)).astype(np.float32)
        with h5py.File(tmp_path / "c.h5", "w") as file:
            file.create_dataset("w", data=value, compression="gzip", shuffle=True)
            file["big_endian"] = value.astype(">f4")
        source = open_source(tmp_path / "c.h5")
        np.testing.assert_array_equal(source.read("w"), value)
        np.testing.assert_array_equal(source.read("big_endian"), value)

    def test_archive(self, tmp_path):
        with self._h5(tmp_path / "w.h5"):
            pass
        weights = (tmp_path / "w.h5").read_bytes()

        def write(name, weights, config="{}", **options):
            with zipfile.ZipFile(tmp_path / name, "w", **options) as archive:
                archive.writestr("config.json", config)
                archive.writestr("model.weights.h5", weights)
            return tmp_path / name

        self._open(write("bomb.keras", bytes(1 << 26), compression=zipfile.ZIP_DEFLATED), "would unpack from")
        self._open(write("json.keras", weights, config="{"), "config is no JSON", UnreadableError)
        self._open(write("deep.keras", weights, config="[" * 100_000), "config is no JSON", UnreadableError)
        odd = {"config": {"layers": [1, {"config": 2}, {"class_name": 3, "config": {"name": 4, "epsilon": "x"}}]}}
        assert len(open_source(write("odd.keras", weights, config=json.dumps(odd))).names()) == 1
        content = write("cut.keras", weights).read_bytes()
        (tmp_path / "cut.keras").write_bytes(content[:-10])
        self._open(tmp_path / "cut.keras", "damaged or incompletely downloaded archive", UnreadableError)

    def test_damaged(self, tmp_path, keras2):
        content = (keras2[0] / "body.h5").read_bytes()
        (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
        self._open(tmp_path / "cut.h5", "damaged or half-written HDF5 file.*[Tt]runcated", UnreadableError)

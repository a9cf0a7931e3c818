import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from od_finetune.checkpoints.source import open_source
from od_finetune.errors import UnreadableError, UserError

GOLDEN = "tf2_ssd_mobilenet_v2_320x320_coco17_tpu-8"


def _arrays(*names, shape=(2, 3)):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name in names}


def test_tf1_names_shapes_values(tmp_path, save_tensors):
    values = _arrays("FeatureExtractor/MobilenetV1/Conv2d_0/weights", "BoxPredictor_0/ClassPredictor/biases")
    source = open_source(save_tensors(tmp_path / "model.ckpt", values))
    assert dict(source.names()) == dict.fromkeys(sorted(values), (2, 3))
    assert list(source.names()) == sorted(values)
    for name, value in values.items():
        np.testing.assert_array_equal(source.read(name), value)
    assert source.describe() == f"TF1 name-based checkpoint {tmp_path}/model.ckpt (2 weights, 0 other entries)"


def test_tf1_optimizer_slots_averages_and_counters_are_no_weights(tmp_path, save_tensors):
    weight = "FeatureExtractor/Conv/weights"
    slots = [f"{weight}/{slot}" for slot in ("Momentum", "RMSProp_1", "Adam", "ExponentialMovingAverage")]
    biased = [f"{weight}/average/biased"]
    scalars = {name: np.float32(1) for name in ("beta1_power", "train/beta2_power", "learning_rate")}
    counters = scalars | {"global_step": np.int64(7)}
    tensors = _arrays(weight, *slots, *biased) | counters | {"act_quant/min": np.float32(0)}
    source = open_source(save_tensors(tmp_path / "model.ckpt-7", tensors))
    assert list(source.names()) == ["FeatureExtractor/Conv/weights", "act_quant/min"]
    assert set(source.other_entries()) == {*slots, *biased, *counters}


@pytest.mark.parametrize(
    "written", ["model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt.meta", "", "checkpoint"]
)
def test_ways_to_write_the_path(tmp_path, save_tensors, written):
    save_tensors(tmp_path / "model.ckpt", _arrays("a"))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/where/it/was/trained/model.ckpt"\n')
    assert open_source(tmp_path / written).path == str(tmp_path / "model.ckpt")


def test_directory_without_state_file(tmp_path, save_tensors):
    save_tensors(tmp_path / "zoo" / "checkpoint" / "ckpt-0", _arrays("a"))
    assert open_source(tmp_path / "zoo").path.endswith("zoo/checkpoint/ckpt-0")
    save_tensors(tmp_path / "zoo" / "checkpoint" / "ckpt-10", _arrays("a"))
    save_tensors(tmp_path / "zoo" / "checkpoint" / "ckpt-9", _arrays("a"))
    with pytest.raises(UserError, match="has 3 checkpoints and no state file.*ckpt-0, ckpt-9, ckpt-10"):
        open_source(tmp_path / "zoo")


def test_state_file_names_the_latest(tmp_path):
    checkpoint = tf.train.Checkpoint(v=tf.Variable([1.0, 2.0]))
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), max_to_keep=2)
    manager.save()
    latest = manager.save()
    assert open_source(tmp_path).path == latest
    for file in tmp_path.glob("ckpt-2.*"):
        file.unlink()
    with pytest.raises(UserError, match="names the checkpoint ckpt-2, which is gone. The directory has: ckpt-1"):
        open_source(tmp_path)


def test_old_single_file_format(tmp_path):
    path = str(tmp_path / "inception_v3.ckpt")
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    tf.raw_ops.Save(filename=path, tensor_names=["InceptionV3/Conv2d_1a_3x3/weights"], data=[value])
    source = open_source(path)
    np.testing.assert_array_equal(source.read("InceptionV3/Conv2d_1a_3x3/weights"), value)


def test_tf2_names_are_the_full_names_of_the_object_graph(tmp_path, save_golden):
    values = save_golden(GOLDEN, tmp_path / "ckpt-0")
    source = open_source(tmp_path)
    assert source.kind == "TF2 object-based checkpoint"
    assert list(source.other_entries()) == ["save_counter"]
    assert set(source.names()) == values.keys() - {"save_counter"}
    assert source.aliases()["model/_feature_extractor/classification_backbone/layer_with_weights-0/kernel"] == (
        "Conv1/kernel"
    )
    bias = "BoxPredictor/ConvolutionalBoxHead_3/BoxEncodingPredictor/bias"
    for name in ("Conv1/kernel", "bn_Conv1/moving_variance", bias):
        np.testing.assert_array_equal(source.read(name), values[name])


def test_keras_model_with_optimizer(tmp_path):
    convolution = tf_keras.layers.Conv2D(2, 1, name="conv", input_shape=(4, 4, 3))
    model = tf_keras.Sequential([convolution, tf_keras.layers.BatchNormalization(name="bn")])
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 2)), verbose=0)
    model.save_weights(str(tmp_path / "weights"), save_format="tf")
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer, global_step=tf.Variable(3)).save(
        str(tmp_path / "c" / "ckpt")
    )
    expected = ["bn/beta", "bn/gamma", "bn/moving_mean", "bn/moving_variance", "conv/bias", "conv/kernel"]
    assert list(open_source(path).names()) == expected
    assert list(open_source(tmp_path / "weights").names()) == expected
    assert "global_step" in open_source(path).other_entries()


def test_legacy_keras_slots(tmp_path):
    variable = tf.Variable(tf.ones([3]), name="conv/kernel")
    optimizer = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)
    optimizer.apply_gradients([(tf.ones([3]), variable)])
    source = open_source(tf.train.Checkpoint(model=[variable], opt=optimizer).save(str(tmp_path / "ckpt")))
    assert list(source.names()) == ["conv/kernel"]


def test_shared_full_name_falls_back_to_the_object_path(tmp_path):
    checkpoint = tf.train.Checkpoint(a=tf.Variable([1.0]), b=tf.Variable([2.0]), c=tf.Variable([3.0], name="named"))
    source = open_source(checkpoint.write(str(tmp_path / "ckpt")))
    assert list(source.names()) == ["a", "b", "named"]
    np.testing.assert_array_equal(source.read("b"), [2.0])


def test_own_checkpoint_has_canonical_names(tmp_path):
    name = "FeatureExtractor/MobilenetV1/Conv2d_1.5/weights"
    model = {name: tf.Variable([1.0, 2.0]), "BoxPredictor_0/biases": tf.Variable([0.0])}
    optimizer = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)  # its slots hang below the variables' own paths
    optimizer.apply_gradients([(tf.constant([0.0, 0.0]), model[name])])
    checkpoint = tf.train.Checkpoint(
        step=tf.Variable(1, dtype=tf.int64),
        optimizer=optimizer,
        model=model,
        moving_average={name: tf.Variable([3.0, 4.0])},
    )
    source = open_source(checkpoint.write(str(tmp_path / "ckpt-1")))
    assert source.kind == "od_finetune checkpoint"
    assert list(source.names()) == ["BoxPredictor_0/biases", name]
    assert {f"moving_average/{name}", "step"} <= source.other_entries().keys()
    np.testing.assert_array_equal(source.read(name), [1.0, 2.0])


def test_a_file_that_is_no_checkpoint_is_not_its_own_nearest_name(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="not a checkpoint that can be read") as error:
        open_source(tmp_path / "notes.txt")
    assert "Did you mean" not in str(error.value)


def test_missing_path_lists_what_is_there(tmp_path, save_tensors):
    save_tensors(tmp_path / "model.ckpt-500", _arrays("a"))
    with pytest.raises(UserError, match=r"has: model.ckpt-500. Did you mean \S*/model.ckpt-500\?"):
        open_source(tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=f"{tmp_path}/run does not exist. {tmp_path} has: model.ckpt-500"):
        open_source(tmp_path / "run" / "model.ckpt")
    with pytest.raises(UserError, match="empty"):
        open_source("")


def test_other_file_is_no_checkpoint(tmp_path):
    (tmp_path / "weights.npy").write_bytes(b"\x93NUMPY" + bytes(100))
    with pytest.raises(UserError, match="not a checkpoint that can be read; known formats: .*TensorFlow checkpoint"):
        open_source(tmp_path / "weights.npy")


class TestHalfWritten:
    @pytest.fixture
    def prefix(self, tmp_path, save_tensors):
        names = [f"scope/layer_{i}/weights" for i in range(50)]
        return save_tensors(tmp_path / "model.ckpt", _arrays(*names, shape=(40,)))

    def _cut(self, path, keep):
        with open(path, "r+b") as file:
            file.truncate(keep)

    def test_index_without_data(self, prefix, tmp_path):
        (tmp_path / "model.ckpt.data-00000-of-00001").unlink()
        with pytest.raises(UserError, match="half-written.*no model.ckpt.data-00000-of-00001"):
            open_source(prefix)

    def test_data_without_index(self, prefix, tmp_path):
        (tmp_path / "model.ckpt.index").unlink()
        with pytest.raises(UserError, match="half-written.*model.ckpt.index is missing"):
            open_source(prefix)

    def test_missing_shard(self, prefix, tmp_path):
        (tmp_path / "model.ckpt.data-00000-of-00001").rename(tmp_path / "model.ckpt.data-00001-of-00002")
        with pytest.raises(UserError, match="1 of 2 data files are missing: model.ckpt.data-00000-of-00002"):
            open_source(prefix)

    @pytest.mark.parametrize("keep", [0, 7, 100, 400])
    def test_cut_index(self, prefix, keep):
        self._cut(prefix + ".index", keep)
        with pytest.raises(UserError, match=f"half-written.*{keep} bytes.*cut short"):
            open_source(prefix)

    @pytest.mark.parametrize("keep", [0, 100, 7999])
    def test_cut_data(self, prefix, keep):
        self._cut(prefix + ".data-00000-of-00001", keep)
        with pytest.raises(UserError, match=f"half-written.*have {keep} bytes, the index promises at least 8000"):
            open_source(prefix)

    def test_flipped_bit_in_the_data(self, prefix):
        with open(prefix + ".data-00000-of-00001", "r+b") as file:
            file.seek(1)
            byte = file.read(1)[0]
            file.seek(1)
            file.write(bytes([byte ^ 1]))
        source = open_source(prefix)
        with pytest.raises(UserError, match="half-written or damaged.*scope/layer_0/weights cannot be read"):
            source.read("scope/layer_0/weights")
        assert source.read("scope/layer_1/weights").shape == (40,)

    def test_data_cut_after_opening(self, prefix):
        source = open_source(prefix)
        self._cut(prefix + ".data-00000-of-00001", 100)
        with pytest.raises(UnreadableError, match="half-written or damaged.*scope/layer_9/weights cannot be read"):
            source.read("scope/layer_9/weights")

    def test_flipped_bits_in_the_index_never_crash(self, prefix):
        content = bytearray(open(prefix + ".index", "rb").read())
        refused = 0
        for position in range(0, len(content) - 8, 97):
            damaged = content.copy()
            damaged[position] ^= 0x10
            with open(prefix + ".index", "wb") as file:
                file.write(damaged)
            try:
                source = open_source(prefix)
                for name in source.names():
                    source.read(name)
            except UserError:
                refused += 1
        assert refused > 0

    def test_damaged_object_graph(self, tmp_path, save_tensors):
        tensors = _arrays("model/a/b") | {"_CHECKPOINTABLE_OBJECT_GRAPH": b"\xff\xff\xff"}
        prefix = save_tensors(tmp_path / "ckpt-1", tensors)
        with pytest.raises(UserError, match="object graph cannot be read"):
            open_source(prefix)

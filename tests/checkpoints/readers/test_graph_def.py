"""Frozen graphs and SavedModels, as TensorFlow writes them."""

import functools
import time

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.tools.optimize_for_inference_lib import fold_batch_norms

from od_finetune.checkpoints.plan import RestorePlan, RestoreRequest, Status, Target
from od_finetune.checkpoints.source import open_source
from od_finetune.config.detector import build_detector
from od_finetune.errors import UnreadableError, UserError
from od_finetune.protos import pipeline_pb2

tf1 = tf.compat.v1


@functools.cache
def _detector(config, **ssd):
    pipeline = text_format.Parse(config.read_text(), pipeline_pb2.TrainEvalPipelineConfig())
    detector = build_detector(pipeline.model)
    detector.build()
    return detector


def _plan(detector, source, type="full"):
    return RestorePlan.compute(Target.of(detector), [(source, RestoreRequest(source.path, type))])


def _inputs(detector):
    images = np.random.RandomState(0).randint(0, 256, (1, 96, 96, 3)).astype(np.uint8)
    return detector.preprocess(tf.constant(images))


def _predictions(detector):
    predictions = detector.predict(*_inputs(detector))
    return {name: predictions[name].numpy() for name in ("box_encodings", "class_predictions_with_background")}


def _randomize(detector, seed=0):
    """Weights and statistics as different from their start values as those of a trained network."""
    rng = np.random.RandomState(seed)
    for name, variable in detector.named_variables().items():
        low = 0.5 if name.endswith(("gamma", "moving_variance")) else -0.5
        if name.endswith("weights"):
            variable.assign(rng.normal(size=variable.shape) * (2 / np.prod(variable.shape[:-1])) ** 0.5)
        else:
            variable.assign(rng.uniform(low, low + 1, size=variable.shape))
    return {name: variable.numpy() for name, variable in detector.named_variables().items()}


def _frozen(detector):
    """The network, frozen as TF2 does it: constants are named after the operations that read the variables."""
    inputs, shapes = _inputs(detector)

    def predict(x):
        predictions = detector.predict(x, shapes)
        return predictions["box_encodings"], predictions["class_predictions_with_background"]

    function = tf.function(predict, autograph=False).get_concrete_function(tf.TensorSpec(inputs.shape, tf.float32))
    return convert_variables_to_constants_v2(function).graph.as_graph_def()


def _named_as_tf1(graph, variables):
    """The same with constants under the variables' names and `<name>/read` between, as TF1 froze graphs."""
    nodes = {node.name: node for node in graph.node}
    by_value = {variable.numpy().tobytes(): name for name, variable in variables.items()}
    for node in graph.node:
        for i, name in enumerate(node.input):
            source = nodes.get(name)
            if source is None or source.op != "Identity" or nodes[source.input[0].split(":")[0]].op != "Const":
                continue
            constant = nodes[source.input[0]]
            named = by_value[tf.make_ndarray(constant.attr["value"].tensor).tobytes()]
            node.input[i] = f"{named}/read"
            source.name, source.input[0], constant.name = f"{named}/read", named, named
            nodes |= {source.name: source, named: constant}
    return graph


def _without_identities(graph):
    """TensorFlow's folding wants the constants themselves as inputs."""
    graph = tf1.GraphDef.FromString(graph.SerializeToString())
    passed = {node.name: node.input[0] for node in graph.node if node.op == "Identity"}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = passed.get(name, name) if node.op != "Identity" else name
    return graph


@pytest.fixture(scope="module")
def tiny(tiny_config):
    """A small detector and a frozen graph of it."""
    detector = _detector(tiny_config)
    values = _randomize(detector)
    return detector, values, _predictions(detector), _frozen(detector)


def _write(path, graph):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.SerializeToString())
    return path


@pytest.mark.parametrize("naming", ["TF2", "TF1"])
def test_frozen_graph_restores_every_variable(tiny, tmp_path, naming):
    detector, values, _, graph = tiny
    if naming == "TF1":
        copy = tf1.GraphDef.FromString(graph.SerializeToString())
        graph = _named_as_tf1(copy, dict(zip(values, map(tf.constant, values.values()), strict=True)))
    source = open_source(_write(tmp_path / "frozen_inference_graph.pb", graph))
    assert source.kind == "frozen TensorFlow graph" and source.notes == ()
    assert open_source(tmp_path).path == source.path
    plan = _plan(detector, source)
    plan.check()
    assert plan.sources[0].unused == ()
    for row in plan.rows:
        np.testing.assert_array_equal(source.read(row.source), values[row.name], err_msg=row.name)
    norms = [name.removesuffix("/gamma") for name in values if name.endswith("/gamma")]
    assert source.epsilons == dict.fromkeys(norms, pytest.approx(0.001))


def test_folded_graph_predicts_the_same(tiny, tmp_path):
    detector, values, expected, graph = tiny
    folded = fold_batch_norms(_without_identities(graph))
    assert not any(node.op.startswith("FusedBatchNorm") for node in folded.node)
    source = open_source(_write(tmp_path / "folded.pb", folded))
    plan = _plan(detector, source)
    plan.check()
    norms = sum(name.endswith("/gamma") for name in values)
    assert f"{norms} batch norms were folded" in source.notes[0]
    plan.apply(detector.named_variables())
    for name, prediction in _predictions(detector).items():
        np.testing.assert_allclose(prediction, expected[name], atol=1e-4 * expected[name].std(), err_msg=name)


class TestSavedModel:
    def test_frozen_by_tf1(self, tiny, tmp_path):
        detector, values, _, graph = tiny
        with tf.Graph().as_default() as imported, tf1.Session() as session:
            tf1.import_graph_def(graph, name="")
            tensors = {"x": imported.get_tensor_by_name("x:0")}
            tf1.saved_model.simple_save(session, str(tmp_path / "saved_model"), tensors, tensors)
        source = open_source(tmp_path)  # as the zoo's archives have it
        assert (source.kind, source.path) == ("SavedModel with frozen variables", str(tmp_path / "saved_model"))
        assert _plan(detector, source).sources[0].unused == ()
        np.testing.assert_array_equal(source.read(next(iter(source.names()))), values[next(iter(source.names()))])

    def test_constants_in_a_function(self, tiny, tmp_path):
        detector, values, _, graph = tiny
        function = tf1.wrap_function(lambda: tf1.import_graph_def(graph, name=""), [])
        last = graph.node[-1].name + ":0"
        module = tf.Module()
        module.f = function.prune("x:0", last)
        tf.saved_model.save(module, str(tmp_path), signatures=module.f)
        source = open_source(tmp_path / "saved_model.pb")
        assert source.names().keys() & values.keys() and _plan(detector, source, "detection").problem is None
        for name in source.names():
            np.testing.assert_array_equal(source.read(name), values[name], err_msg=name)

    def test_variables_of_tf1(self, tmp_path):
        with tf.Graph().as_default(), tf1.Session() as session:
            x = tf1.placeholder(tf.float32, [None, 4])
            outputs = {"y": x @ tf1.get_variable("scope/weights", [4, 3])}
            session.run(tf1.global_variables_initializer())
            tf1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": x}, outputs)
        source = open_source(tmp_path / "m")
        assert source.kind == "SavedModel with a TF1 name-based checkpoint"
        assert source.names() == {"scope/weights": (4, 3)}

    def test_variables_of_tf2_under_the_exporters_object_path(self, tmp_path):
        module = tf.Module()
        module._model = tf.Module()
        module._model._feature_extractor = tf.Module()
        module._model._feature_extractor.kernel = tf.Variable(tf.ones([2, 3]), name="Conv1/kernel")
        tf.saved_model.save(module, str(tmp_path / "m"))
        source = open_source(tmp_path / "m")
        assert source.kind == "SavedModel with a TF2 object-based checkpoint"
        assert source.names() == {"Conv1/kernel": (2, 3)}
        assert source.aliases()["model/_feature_extractor/kernel"] == "Conv1/kernel"
        np.testing.assert_array_equal(source.read("Conv1/kernel"), np.ones([2, 3]))

    @pytest.mark.slow
    def test_of_the_tf2_zoo(self, shared, save_golden, tmp_path):
        """The exporter's checkpoint is the trained one under `_model`: its object graph, recorded, says how."""
        golden = "tf2_ssd_mobilenet_v2_320x320_coco17_tpu-8"
        values = save_golden(golden, tmp_path / "saved_model" / "variables" / "variables", exported=True)
        (tmp_path / "saved_model" / "saved_model.pb").write_bytes(b"\x08\x01")
        source = open_source(tmp_path)
        assert source.aliases()["model/_feature_extractor/classification_backbone/layer_with_weights-0/kernel"] == (
            "Conv1/kernel"
        )
        detector = _detector(shared / "reference" / "goldens" / golden / "pipeline.config")
        plan = _plan(detector, source)
        plan.check()
        plan.apply(detector.named_variables())
        names = detector.tf2_names()
        for name, variable in detector.named_variables().items():
            np.testing.assert_array_equal(variable, values[names[name]], err_msg=name)

    def test_of_this_project(self, trained):
        source = open_source(trained.export_dir / "saved_model")
        assert source.kind == "SavedModel with a od_finetune checkpoint"
        frozen = open_source(trained.export_dir / "frozen_inference_graph.pb")
        assert source.names() == frozen.names()
        for name in source.names():
            np.testing.assert_array_equal(source.read(name), frozen.read(name), err_msg=name)

    def test_without_weights(self, tmp_path):
        tf.saved_model.save(tf.Module(), str(tmp_path))
        with pytest.raises(UserError, match="without weights"):
            open_source(tmp_path)


class TestNoFrozenGraph:
    def test_graph_with_variables(self, tmp_path):
        with tf.Graph().as_default() as graph:
            tf1.get_variable("scope/weights", [4, 3])
        path = _write(tmp_path / "graph.pb", graph.as_graph_def())
        with pytest.raises(UserError, match="its 1 variables have no values. Use the checkpoint"):
            open_source(path)

    def _bytes(self, **tensor):
        graph = tf1.GraphDef()
        graph.node.add(name="x", op="Placeholder")
        graph.node.add(name="a/weights", op="Const").attr["value"].tensor.MergeFrom(tf.make_tensor_proto(1.0))
        graph.node[1].attr["value"].tensor.MergeFrom(tf1.AttrValue(tensor=tensor).tensor)
        return graph.SerializeToString()

    def test_cut_short(self, tmp_path, tiny):
        content = tiny[3].SerializeToString()
        (tmp_path / "g.pb").write_bytes(content[: len(content) // 2])
        with pytest.raises(UnreadableError, match="damaged or incompletely copied.*Copy it again"):
            open_source(tmp_path / "g.pb")

    def test_cut_short_after_opening(self, tmp_path, tiny):
        source = open_source(_write(tmp_path / "g.pb", tiny[3]))
        with open(tmp_path / "g.pb", "r+b") as file:
            file.truncate(1000)
        with pytest.raises(UnreadableError, match="has become shorter"):
            for name in source.names():
                source.read(name)

    @pytest.mark.parametrize("sizes", [[1 << 30, 1 << 30], [-5, 3], [1 << 62, 1 << 62]])
    def test_declared_shapes_that_cannot_be(self, tmp_path, sizes):
        shape = {"dim": [{"size": size} for size in sizes]}
        (tmp_path / "g.pb").write_bytes(self._bytes(tensor_shape=shape))
        with pytest.raises(UserError, match="shape"):
            open_source(tmp_path / "g.pb")

    def test_many_large_constants_of_one_number(self, tmp_path):
        graph = tf1.GraphDef()
        for i in range(4):
            node = graph.node.add(name=f"c{i}/weights", op="Const")
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0))
            node.attr["value"].tensor.tensor_shape.dim.add(size=5_000_000)
        (tmp_path / "g.pb").write_bytes(graph.SerializeToString())
        with pytest.raises(UserError, match="c3/weights has shape .5000000., which takes 20000000 bytes, in a file of"):
            open_source(tmp_path / "g.pb")

    def test_knotted_graph_ends(self, tmp_path):
        """Every convolution leads to the same chain and the same additions."""
        graph = tf1.GraphDef()
        for i in range(5000):
            graph.node.add(name=f"i{i}", op="Identity", input=[f"i{i - 1}" if i else "x"])
            graph.node.add(name=f"c{i}", op="Conv2D", input=["i4999", "w/weights"])
            graph.node.add(name=f"r{i}", op="Rsqrt", input=["add"])
        graph.node.add(name="x", op="Identity", input=[f"c{i}" for i in range(5000)])
        graph.node.add(name="m", op="Mul", input=[f"r{i}" for i in range(5000)] + [f"c{i}" for i in range(5000)])
        graph.node.add(name="w/weights", op="Const").attr["value"].tensor.CopyFrom(
            tf.make_tensor_proto(np.ones((1, 1, 2, 2), np.float32))
        )
        (tmp_path / "g.pb").write_bytes(graph.SerializeToString())
        started = time.monotonic()
        assert open_source(tmp_path / "g.pb").names() == {"w/weights": (1, 1, 2, 2)}
        assert time.monotonic() - started < 30

    def test_many_nodes_of_nothing(self, tmp_path):
        (tmp_path / "g.pb").write_bytes(self._bytes() + b"\x0a\x00" * 1000)
        with pytest.raises(UserError, match="a node without name or op"):
            open_source(tmp_path / "g.pb")


@pytest.fixture(scope="module")
def coco(shared, tmp_path_factory):
    from od_finetune.export import frozen_graph

    folder = shared / "data" / "ssdlite_mobilenet_v2_coco"
    detector = _detector(folder / "pipeline.config")
    checkpoint = open_source(folder / "model.ckpt")
    _plan(detector, checkpoint).apply(detector.named_variables())
    path = frozen_graph.export(detector, tmp_path_factory.mktemp("coco"), "image_tensor")
    return detector, checkpoint, path, _predictions(detector)


@pytest.mark.slow
class TestCoco:
    """The published ssdlite_mobilenet_v2_coco, frozen whole by this project's export."""

    def test_every_variable(self, coco):
        detector, checkpoint, path, _ = coco
        source = open_source(path)
        plan = _plan(detector, source)
        assert len(plan.with_status(Status.RESTORED)) == len(plan.rows) == 404 and plan.sources[0].unused == ()
        for row in plan.rows:
            np.testing.assert_array_equal(source.read(row.source), checkpoint.read(row.name), err_msg=row.name)

    def test_folded(self, coco, tmp_path):
        detector, _, path, expected = coco
        graph = fold_batch_norms(tf1.GraphDef.FromString(path.read_bytes()))
        source = open_source(_write(tmp_path / "folded.pb", graph))
        plan = _plan(detector, source)
        assert len(plan.with_status(Status.RESTORED)) == 404 and "76 batch norms were folded" in source.notes[0]
        plan.apply(detector.named_variables())
        for name, prediction in _predictions(detector).items():
            np.testing.assert_allclose(prediction, expected[name], atol=1e-4, err_msg=name)

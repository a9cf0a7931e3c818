"""Several sources, rules over names, pairing by order, demands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from od_finetune.checkpoints.arrays import HWIO, OIHW, ArraySource
from od_finetune.checkpoints.plan import Demand, RestorePlan, RestoreRequest, Status, Target
from od_finetune.errors import ShortfallError, UserError

NET = "FeatureExtractor/Net/"
SHAPES = {
    NET + "Conv_0/weights": (3, 3, 3, 4),
    NET + "Conv_0/BatchNorm/gamma": (4,),
    NET + "Conv_0/BatchNorm/beta": (4,),
    NET + "Conv_0/BatchNorm/moving_mean": (4,),
    NET + "Conv_0/BatchNorm/moving_variance": (4,),
    NET + "Conv_1/depthwise_weights": (3, 3, 4, 1),
    NET + "Conv_1/biases": (4,),
    NET + "Conv_2/weights": (1, 1, 4, 6),
    NET + "Conv_2/biases": (6,),
    NET + "Conv_3/weights": (1, 1, 6, 8),
    NET + "Conv_3/biases": (8,),
    "BoxPredictor/Box/weights": (1, 1, 8, 4),
    "BoxPredictor/Class/weights": (1, 1, 8, 2),
}
BACKBONE = [name for name in SHAPES if name.startswith(NET)]
HEAD = ["BoxPredictor/Box/weights", "BoxPredictor/Class/weights"]
TARGET = Target(
    SHAPES,
    {},
    lambda name: "backbone" if name.startswith(NET) else "head",
    lambda name: "Class" in name,
    epsilons={NET + "Conv_0/BatchNorm": 1e-3},
)


def _arrays(shapes, fill=None):
    rng = np.random.default_rng(3)
    return {
        name: rng.uniform(0.5, 1.5, shape).astype(np.float32) if fill is None else np.full(shape, fill, np.float32)
        for name, shape in shapes.items()
    }


def _source(values, layout=HWIO, path="net.bin", **fields):
    shapes = {name: value.shape for name, value in values.items()}
    return ArraySource(path, "arrays", shapes, values.__getitem__, layout, **fields)


def _request(index=0, **fields):
    return RestoreRequest("net.bin", field=f"train_config.restore[{index}]", **fields)


def _plan(*sources, demand=None, **request):
    """One source with the request's fields, or several with their own."""
    pairs = [(source, _request(**request)) if not isinstance(source, tuple) else source for source in sources]
    return RestorePlan.compute(TARGET, pairs, demand or Demand())


def _model():
    return {name: tf.Variable(tf.fill(shape, -1.0)) for name, shape in SHAPES.items()}


def _refused(*sources, **request):
    with pytest.raises(UserError) as error:
        _plan(*sources, **request).check()
    return str(error.value)


# As a PyTorch file would have the backbone: OIHW, and a classifier at its end.
def _torch(values):
    out = {}
    for name, value in values.items():
        leaf = name.rpartition("/")[2]
        if leaf == "depthwise_weights":
            value = value.transpose(2, 3, 0, 1).reshape(-1, 1, *value.shape[:2])
        elif leaf == "weights":
            value = value.transpose(3, 2, 0, 1)
        names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        norm = "BatchNorm" in name
        index = list(dict.fromkeys(other.rpartition("/")[0] for other in BACKBONE)).index(name.rpartition("/")[0])
        new = names[leaf] if norm else {"biases": "bias"}.get(leaf, "weight")
        out[f"body.{index}.{new}"] = value
    return out


class TestSeveralSources:
    def test_backbone_from_here_head_from_there(self):
        net, detector = _arrays({name: SHAPES[name] for name in BACKBONE}, 1.0), _arrays(SHAPES, 2.0)
        plan = _plan(
            (_source(net, path="net"), _request(type="classification")),
            (_source(detector, path="detector"), _request(1, scope=("^BoxPredictor/",))),
        )
        model = _model()
        plan.apply(model)
        for name, variable in model.items():
            np.testing.assert_array_equal(variable, np.full(SHAPES[name], 1.0 if name in BACKBONE else 2.0))
        assert {row.origin for row in plan.rows if row.name in BACKBONE} == {0}
        assert {row.origin for row in plan.rows if row.name in HEAD} == {1}
        lines = plan.text().splitlines()
        assert "Source 1: restoring from arrays net (11 weights, 0 other entries)" in lines
        assert f"Sources: 1: {len(BACKBONE)}, 2: 2, none: 0 variables" in lines
        assert any(line.endswith("of it scope ^BoxPredictor/") for line in lines)

    def test_the_later_has_the_last_word_on_what_it_restores(self):
        few = {NET + "Conv_0/weights": np.full((3, 3, 3, 4), 2.0, np.float32), HEAD[0]: np.zeros((9, 9), np.float32)}
        plan = _plan((_source(_arrays(SHAPES, 1.0)), _request()), (_source(few), _request(1)))
        rows = {row.name: row for row in plan.rows}
        assert (rows[NET + "Conv_0/weights"].origin, rows[NET + "Conv_2/weights"].origin) == (1, 0)
        assert (rows[HEAD[0]].origin, rows[HEAD[0]].status) == (0, Status.RESTORED)
        assert "Overruled by a later source: 1 of 13 variables" in plan.text()
        model = _model()
        plan.apply(model)
        assert model[NET + "Conv_0/weights"].numpy().max() == 2 and model[HEAD[0]].numpy().max() == 1

    def test_json_of_each_source_and_of_one_at_the_top(self):
        values = _arrays(SHAPES)
        one = json.loads(json.dumps(_plan(_source(values), map=[("Net", "Net")]).to_json()))
        assert one["checkpoint"] == "net.bin" and one["unused"] == []
        assert one["sources"][0]["map"] == [["Net", "Net"]] and one["sources"][0]["rules"] == {"same name": 13}
        two = _plan((_source(values), _request()), (_source(values), _request(1, scope=("Box",)))).to_json()
        assert "checkpoint" not in two and [part["restored"] for part in two["sources"]] == [11, 2]
        assert [part["found"] for part in two["sources"]] == [13, 2]
        assert two["rows"][0]["origin"] == 0 and two["rows"][0]["transform"] is None and "steps" not in two["rows"][0]

    def test_each_source_must_give_something(self):
        other = _arrays({"Other/kernel": (2, 2)})
        message = _refused((_source(_arrays(SHAPES)), _request()), (_source(other, path="other"), _request(1)))
        assert message.startswith("other (arrays)") and "would restore none of 11 variables of the backbone" in message

    def test_full_wants_every_variable_of_its_scope_only(self):
        values = _arrays(SHAPES)
        del values[HEAD[0]], values[NET + "Conv_3/biases"]
        assert _plan(_source(values), type="full", scope=("Conv_[0-2]/",)).problem is None
        message = _refused(_source(values), type="full", scope=(NET,))
        assert "1 of 11 do not match" in message and f"{NET}Conv_3/biases: not in the checkpoint" in message

    def test_type_and_scope_that_exclude_each_other(self):
        message = _refused(_source(_arrays(SHAPES)), type="classification", scope=("BoxPredictor",))
        assert "train_config.restore[0]" in message and "select no variable" in message


class TestRules:
    def test_map_in_order_on_the_result_of_the_one_before(self):
        values = {f"model.net.{name.replace('/', '|')}": value for name, value in _arrays(SHAPES).items()}
        plan = _plan(_source(values), map=(("^model", "m"), (r"^m\.net\.", ""), (r"\|", "/")))
        assert len(plan.with_status(Status.RESTORED)) == len(SHAPES)
        assert plan.rows[0].source == "model.net.FeatureExtractor|Net|Conv_0|weights"

    def test_only_and_skip_on_rewritten_names(self):
        values = {f"x/{name}": value for name, value in _arrays(SHAPES).items()}
        rules = {"only": ("^FeatureExtractor", "Box/"), "skip": ("Conv_0/BatchNorm",)}
        plan = _plan(_source(values), map=(("^x/", ""),), **rules)
        left = {row.name for row in plan.with_status(Status.NOT_IN_CHECKPOINT)}
        assert left == {HEAD[1], *(name for name in BACKBONE if "BatchNorm" in name)}
        assert plan.sources[0].excluded == tuple(sorted(f"x/{name}" for name in left))
        assert plan.sources[0].unused == ()
        assert "Left out by only and skip (5): x (5)" in plan.text()

    def test_everything_but_the_output_layer(self):
        plan = _plan(_source(_arrays(SHAPES)), skip=("BoxPredictor/Class",))
        assert [row.name for row in plan.rows if row.status is not Status.RESTORED] == [HEAD[1]]

    def test_aliases_follow_their_names(self):
        values = _arrays(SHAPES)
        paths = {f"net/v{index}": name for index, name in enumerate(values)}
        source = _source({f"old/{name}": value for name, value in values.items()},
                         second_names={path: f"old/{name}" for path, name in paths.items()})
        plan = _plan(source, map=(("^old/", ""),), skip=(r"net/v12$",))
        assert [row.name for row in plan.rows if row.status is not Status.RESTORED] == [HEAD[1]]

    @pytest.mark.parametrize("fields, words", [
        ({"map": (("Netz", "Net"),)}, ["restore[0].map[0].pattern: 'Netz' matches no name of the checkpoint", "Net/"]),
        ({"only": ("Conv", "Conf_1")}, ["restore[0].only[1]: 'Conf_1' matches no name", "Net/Conv_1"]),
        ({"skip": (r"^BoxPredicter/.*",)}, ["restore[0].skip[0]", "BoxPredictor/"]),
        ({"scope": ("FeatureExtractr",)}, ["restore[0].scope[0]", "matches no variable of the model", NET]),
        ({"map": (("Conv_[01]", "Conv"),)}, ["restore[0].map: the checkpoint's", "would both become"]),
    ])  # fmt: skip
    def test_a_rule_without_effect_or_sense_is_an_error(self, fields, words):
        values = {name: value for name, value in _arrays(SHAPES).items()}
        values[NET + "Conv_1/weights"] = values[NET + "Conv_0/weights"]
        message = _refused(_source(values), **fields)
        assert all(word in message for word in words), message

    def test_two_names_that_become_one_are_both_named(self):
        values = _arrays({"a/kernel": (2,), "b/kernel": (2,)})
        message = _refused(_source(values), map=(("^[ab]/", "c/"),))
        assert "the checkpoint's a/kernel and b/kernel would both become 'c/kernel'" in message


class TestMovingAverages:
    def test_average_in_place_of_the_weight(self):
        values = _arrays(SHAPES, 1.0) | _arrays({f"{HEAD[0]}/ExponentialMovingAverage": SHAPES[HEAD[0]]}, 2.0)
        shapes = {name: SHAPES[name] for name in SHAPES}
        others = {name: value.shape for name, value in values.items() if name not in shapes}
        source = ArraySource("net.bin", "arrays", shapes, values.__getitem__, others=others)
        plan, model = _plan(source, moving_averages=True), _model()
        plan.apply(model)
        assert {name for name, variable in model.items() if variable.numpy().max() == 2} == {HEAD[0]}
        assert "Notice: 1 of 13 weights are their moving averages" in plan.text()
        assert plan.to_json()["moving_averages"] is True

    def test_none_there_is_an_error(self):
        assert "moving averages are asked for, but it has none" in _refused(
            _source(_arrays(SHAPES)), moving_averages=True
        )


class TestByOrder:
    def test_layers_under_other_names_in_another_layout(self):
        values = _arrays({name: SHAPES[name] for name in BACKBONE})
        source = _source(_torch(values) | _arrays({"fc.weight": (10, 8), "fc.bias": (10,)}), OIHW)
        plan = _plan(source, type="classification", by_order=True, batch_norm_epsilon=1e-3)
        model = _model()
        plan.apply(model)
        for name in BACKBONE:
            np.testing.assert_array_equal(model[name], values[name], err_msg=name)
        assert {row.rule for row in plan.rows if row.name in BACKBONE} == {"by order"}
        assert plan.sources[0].unused == ("fc.bias", "fc.weight")
        lines = plan.text().splitlines()
        assert lines[lines.index("Pairs by order (5):") + 1] == f"  {NET}Conv_0 <- body.0 [3, 3, 3, 4]"
        assert f"  {NET}Conv_0/BatchNorm <- body.1 [4]" in lines

    def test_norms_listed_after_all_kernels(self):
        values = _torch(_arrays({name: SHAPES[name] for name in BACKBONE}))
        norm = {name: values.pop(name) for name in list(values) if name.startswith("body.1.")}
        plan = _plan(_source(values | norm, OIHW), type="classification", by_order=True)
        assert all(row.status is Status.RESTORED for row in plan.rows if row.name in BACKBONE)

    @pytest.mark.parametrize("lacking", [None, 1])
    def test_a_norm_that_the_file_lacks_is_noticed(self, lacking):
        """In a network of one width no shape tells that the norms behind it have moved up."""
        norm = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        shapes, file = {}, {}
        for layer in range(4):
            shapes[f"N/c{layer}/weights"], file[f"{layer}.conv.weight"] = (1, 1, 4, 4), np.zeros((4, 4, 1, 1))
            shapes |= {f"N/c{layer}/BatchNorm/{leaf}": (4,) for leaf in norm}
            if layer != lacking:
                file |= {f"{layer}.bn.{leaf}": np.zeros(4) for leaf in norm.values()}
        target = Target(shapes, {}, lambda name: "backbone", lambda name: False)
        plan = RestorePlan.compute(target, [(_source(file, OIHW), _request(by_order=True))])
        notices = [notice for notice in plan.sources[0].notices if "lack a batch norm" in notice]
        assert len(notices) == (lacking is not None)
        assert all("N/c1/BatchNorm is paired with 2.bn, but follows kernel 2" in notice for notice in notices)

    def test_the_first_n_layers_of_a_truncated_network(self):
        values = _torch(_arrays({name: SHAPES[name] for name in BACKBONE}))
        short = {name: value for name, value in values.items() if name < "body.3"}
        plan = _plan(_source(short, OIHW), type="classification", by_order=True)
        missing = {row.name for row in plan.with_status(Status.NOT_IN_CHECKPOINT)}
        assert missing == {name for name in BACKBONE if "Conv_2" in name or "Conv_3" in name}

    def _with_auxiliary(self):
        values = _torch(_arrays({name: SHAPES[name] for name in BACKBONE}))
        order = list(values)
        at = order.index("body.3.weight")
        aux = _arrays({"aux.0.weight": (7, 4, 1, 1), "aux.0.bias": (7,)})
        return {**{name: values[name] for name in order[:at]}, **aux, **{name: values[name] for name in order[at:]}}

    def test_an_auxiliary_head_shows_where_the_orders_diverge(self):
        message = _refused(_source(self._with_auxiliary(), OIHW), type="classification", by_order=True)
        assert "restore[0].by_order: the model's and the checkpoint's order diverge at kernel 3" in message
        assert f">   3  {NET}Conv_2 [1, 1, 4, 6]  <-  aux.0 [7, 4, 1, 1]" in message
        assert f"    2  {NET}Conv_1 [3, 3, 4, 1]  <-  body.2 [4, 1, 3, 3]" in message
        assert "They fit again from the checkpoint's body.3 on: if the model has no aux.0, name it in skip." in message

    def test_an_auxiliary_head_is_left_out_by_skip(self):
        plan = _plan(_source(self._with_auxiliary(), OIHW), type="classification", by_order=True, skip=("^aux",))
        assert all(row.status is Status.RESTORED for row in plan.rows if row.name in BACKBONE)

    def test_a_layer_that_the_checkpoint_lacks_is_left_out_by_scope(self):
        values = _torch(_arrays({name: SHAPES[name] for name in BACKBONE if "Conv_1" not in name}))
        source = _source(values, OIHW)
        message = _refused(source, type="classification", by_order=True)
        assert f"They fit again from the model's {NET}Conv_2 on" in message and "leave it out of scope" in message
        plan = _plan(source, type="classification", by_order=True, scope=("Conv_[023]/",))
        assert len(plan.with_status(Status.RESTORED)) == 9

    def test_class_outputs_may_differ(self):
        values = _arrays(SHAPES | {HEAD[1]: (1, 1, 8, 91)})
        scopes = list(dict.fromkeys(name.rpartition("/")[0] for name in values))
        odd = {f"l{scopes.index(name.rpartition('/')[0])}/{name.rpartition('/')[2]}": v for name, v in values.items()}
        plan = _plan(_source(odd), type="detection", by_order=True)
        assert [row.name for row in plan.with_status(Status.SHAPE_DIFFERS)] == [HEAD[1]]
        assert f"  {HEAD[1].rpartition('/')[0]} <- l6 [1, 1, 8, 91], model [1, 1, 8, 2]: not restored" in plan.text()

    def test_a_format_without_order_is_sorted_and_says_so(self):
        class Unordered(ArraySource):
            def order(self):
                return None

        values = _torch(_arrays({name: SHAPES[name] for name in BACKBONE}))
        renamed = {name.replace("body.", "l") if name < "body.1" else f"l1{name[5:]}": v for name, v in values.items()}
        shuffled = dict(sorted(renamed.items(), key=lambda item: item[0][::-1]))
        shapes = {name: value.shape for name, value in shuffled.items()}
        source = Unordered("net.bin", "arrays", shapes, shuffled.__getitem__, OIHW)
        plan = _plan(source, type="classification", by_order=True)
        assert all(row.status is Status.RESTORED for row in plan.rows if row.name in BACKBONE)
        assert "Notice: the format keeps no order" in plan.text()


class TestEpsilon:
    def _normalised(self, gamma, variance, epsilon):
        return gamma / np.sqrt(variance.astype(np.float64) + epsilon)

    @pytest.mark.parametrize("fields, request_fields, epsilon", [
        ({"layout": OIHW}, {}, 1e-5),
        ({"layout": OIHW, "epsilons": {"body.1": 2e-3}}, {}, 2e-3),
        ({"layout": OIHW, "epsilons": {"body.1": 2e-3}}, {"batch_norm_epsilon": 1e-4}, 1e-4),
    ])  # fmt: skip
    def test_gamma_makes_up_for_it(self, fields, request_fields, epsilon):
        values = _arrays({name: SHAPES[name] for name in BACKBONE})
        variance = NET + "Conv_0/BatchNorm/moving_variance"
        values[variance] = np.array([1e-6, 1e-3, 0.1, 3], np.float32)
        plan = _plan(_source(_torch(values), **fields), type="classification", by_order=True, **request_fields)
        gamma = NET + "Conv_0/BatchNorm/gamma"
        transforms = {row.name: row.transform for row in plan.rows}
        assert transforms[gamma] == f"epsilon {epsilon:g} -> 0.001" and transforms[variance] is None
        model = _model()
        plan.apply(model)
        np.testing.assert_allclose(
            self._normalised(model[gamma].numpy(), model[variance].numpy(), 1e-3),
            self._normalised(values[gamma], values[variance], epsilon),
            rtol=1e-6,
        )

    def test_none_is_assumed_of_tensorflows_own(self):
        assert all(row.transform is None for row in _plan(_source(_arrays(SHAPES))).rows)

    def test_the_same_is_left_bit_for_bit(self):
        plan = _plan(_source(_arrays(SHAPES)), batch_norm_epsilon=float(np.float32(1e-3)))
        assert all(row.transform is None for row in plan.rows)

    def test_variance_that_would_be_negative_is_warned_of(self, caplog):
        values = _arrays(SHAPES)
        del values[NET + "Conv_0/BatchNorm/gamma"]
        name = NET + "Conv_0/BatchNorm/moving_variance"
        values[name] = np.array([1e-6, 1, 2, 3], np.float32)
        model = _model()
        _plan(_source(values), batch_norm_epsilon=1e-5).apply(model)
        np.testing.assert_allclose(model[name], [0, 1 - 9.9e-4, 2 - 9.9e-4, 3 - 9.9e-4], rtol=1e-6)
        assert f"{name}: 1 of 4 channels vary so little" in caplog.text


class TestDemands:
    def _partly(self):
        values = _arrays(SHAPES)
        del values[NET + "Conv_3/weights"], values[HEAD[1]]
        return _source(values)

    def test_fraction_counts_parameters_without_class_outputs(self):
        plan = _plan(self._partly())
        total = sum(np.prod(shape) for name, shape in SHAPES.items() if name != HEAD[1])
        expected = float(1 - 48 / total)
        assert plan.to_json()["restored_fraction"] == pytest.approx(expected)
        assert _plan(self._partly(), demand=Demand(expected - 1e-6)).problem is None
        assert _plan(self._partly(), demand=Demand(expected + 1e-6)).problem is not None

    def test_fraction_is_of_what_types_and_scopes_select(self):
        plan = _plan(self._partly(), scope=("Conv_[0-2]",), demand=Demand(1.0))
        assert plan.problem is None and plan.to_json()["restored_fraction"] == 1.0

    @pytest.mark.parametrize("demand, words", [
        (Demand(0.95), ["train_config.min_restored_fraction: 0.95 of the parameters", "but it is 0.8"]),
        (Demand(require=("Conv_[23]/",)), ["train_config.require: 1 of the 4 variables", "Conv_3/weights: not in"]),
    ])  # fmt: skip
    def test_less_is_refused_before_anything_is_assigned(self, demand, words):
        plan, model = _plan(self._partly(), demand=demand), _model()
        with pytest.raises(ShortfallError) as error:
            plan.apply(model)
        assert error.value.exit_code == 3
        assert all(word in str(error.value) for word in words), error.value
        assert f"Refused: {words[0]}" in plan.text() and plan.to_json()["problem"] == str(error.value)
        assert all((variable.numpy() == -1).all() for variable in model.values())

    def test_require_that_matches_nothing(self):
        with pytest.raises(UserError, match=r"train_config.require\[0\]: 'Conf_0' matches no variable of the model"):
            _plan(self._partly(), demand=Demand(require=("Conf_0",)))

    def test_without_a_source_nothing_is_restored(self):
        plan = RestorePlan.compute(TARGET, [], Demand(0.1))
        assert plan.shortfall and [row.name for row in plan.rows] == list(SHAPES)
        with pytest.raises(ShortfallError, match="Nothing is restored at all: set train_config.fine_tune_checkpoint"):
            plan.apply(_model())

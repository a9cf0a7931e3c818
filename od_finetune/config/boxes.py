"""Messages about boxes -> the parts of `od_finetune.boxes`."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from od_finetune.boxes import anchors, coders, losses, matching, nms, sampling, scores, similarity, targets
from od_finetune.boxes.postprocess import Postprocessor
from od_finetune.boxes.ssd_loss import LossParts, SsdLossOptions
from od_finetune.errors import UserError
from od_finetune.protos import losses_pb2, post_processing_pb2


def _chosen(message: Message, oneof: str, field: str) -> tuple[str, Any]:
    """Name and value of a oneof's set field."""
    name = message.WhichOneof(oneof)
    if name is None:
        choices = ", ".join(sorted(entry.name for entry in message.DESCRIPTOR.oneofs_by_name[oneof].fields))
        raise UserError(f"{field} is empty; set one of: {choices}")
    return name, getattr(message, name)


def build_anchor_generator(config: Message, normalize: bool = True) -> anchors.AnchorGenerator:
    """`AnchorGenerator` message -> generator. `normalize` false: pixels where the message knows pixels (two-stage)."""
    name, chosen = _chosen(config, "anchor_generator_oneof", "anchor_generator")
    return _ANCHORS[name](chosen, normalize)


def _ssd_anchors(config: Message, normalize: bool) -> anchors.SsdAnchors:
    if not normalize:
        raise UserError("model.faster_rcnn.first_stage_anchor_generator: found ssd_anchor_generator, whose anchors are "
                        "relative to the image; expected grid_anchor_generator or multiscale_anchor_generator")
    return anchors.SsdAnchors.from_scales(
        config.num_layers, config.min_scale, config.max_scale, list(config.aspect_ratios), list(config.scales),
        config.interpolated_scale_aspect_ratio, config.reduce_boxes_in_lowest_layer,
        base_size=(config.base_anchor_height, config.base_anchor_width),
        strides=_pairs(config.height_stride, config.width_stride, "ssd_anchor_generator", "stride"),
        offsets=_pairs(config.height_offset, config.width_offset, "ssd_anchor_generator", "offset"))


def _pairs(heights: Any, widths: Any, message: str, what: str) -> list[tuple[float, float]] | None:
    if len(heights) != len(widths):
        raise UserError(f"{message}: {len(heights)} height_{what} but {len(widths)} width_{what}; give as many of each")
    return [(float(height), float(width)) for height, width in zip(heights, widths, strict=True)] or None


def _grid_anchors(config: Message, normalize: bool) -> anchors.GridAnchors:
    for field in ("scales", "aspect_ratios"):
        if not getattr(config, field):
            raise UserError(f"grid_anchor_generator.{field} is empty; without it there is no anchor at all")
    return anchors.GridAnchors(list(config.scales), list(config.aspect_ratios), (config.height, config.width),
                               (config.height_stride, config.width_stride),
                               (config.height_offset, config.width_offset), normalize)


def _multiscale_anchors(config: Message, normalize: bool) -> anchors.MultiscaleAnchors:
    if not config.aspect_ratios:
        raise UserError("multiscale_anchor_generator.aspect_ratios is empty; without it there is no anchor at all")
    return anchors.MultiscaleAnchors(config.min_level, config.max_level, config.anchor_scale,
                                     list(config.aspect_ratios), config.scales_per_octave,
                                     normalize and config.normalize_coordinates)


def _flexible_anchors(config: Message, normalize: bool) -> anchors.FlexibleGridAnchors:
    specs, strides, offsets = [], [], []
    for index, grid in enumerate(config.anchor_grid):
        if len(grid.base_sizes) != len(grid.aspect_ratios):
            raise UserError(f"flexible_grid_anchor_generator.anchor_grid[{index}]: {len(grid.base_sizes)} base_sizes "
                            f"but {len(grid.aspect_ratios)} aspect_ratios; give one pair per anchor")
        specs.append([anchors.AnchorSpec(*pair) for pair in zip(grid.base_sizes, grid.aspect_ratios, strict=True)])
        strides.append((float(grid.height_stride), float(grid.width_stride)))
        offsets.append((float(grid.height_offset), float(grid.width_offset)))
    return anchors.FlexibleGridAnchors(specs, strides, offsets, normalize and config.normalize_coordinates)


_ANCHORS = {
    "ssd_anchor_generator": _ssd_anchors,
    "grid_anchor_generator": _grid_anchors,
    "multiscale_anchor_generator": _multiscale_anchors,
    "flexible_grid_anchor_generator": _flexible_anchors,
}


def build_box_coder(config: Message) -> coders.BoxCoder:
    """`BoxCoder` message -> coder."""
    name, chosen = _chosen(config, "box_coder_oneof", "box_coder")
    return _CODERS[name](chosen)


def _keypoint_coder(config: Message) -> coders.KeypointCoder:
    if config.num_keypoints < 1:
        raise UserError("keypoint_box_coder.num_keypoints is not set; say how many keypoints each object has")
    return coders.KeypointCoder(config.num_keypoints, config.y_scale, config.x_scale, config.height_scale,
                                config.width_scale)


_CODERS = {
    "faster_rcnn_box_coder": lambda c: coders.FasterRcnnCoder(c.y_scale, c.x_scale, c.height_scale, c.width_scale),
    "mean_stddev_box_coder": lambda c: coders.MeanStddevCoder(c.stddev),
    "square_box_coder": lambda c: coders.SquareCoder(c.y_scale, c.x_scale, c.length_scale),
    "keypoint_box_coder": _keypoint_coder,
}


def build_matcher(config: Message) -> matching.Matcher:
    """`Matcher` message -> matcher. `use_matmul_gather` chooses a way to compute, not a result: it is not needed."""
    name, chosen = _chosen(config, "matcher_oneof", "matcher")
    if name == "bipartite_matcher":
        return matching.BipartiteMatcher()
    if chosen.ignore_thresholds:
        return matching.ArgmaxMatcher(None, force_match_for_each_row=chosen.force_match_for_each_row)
    try:
        return matching.ArgmaxMatcher(chosen.matched_threshold, chosen.unmatched_threshold,
                                      chosen.negatives_lower_than_unmatched, chosen.force_match_for_each_row)
    except ValueError as error:
        raise UserError(f"argmax_matcher: {error}") from error


def build_similarity(config: Message) -> similarity.Similarity:
    """`RegionSimilarityCalculator` message -> similarity."""
    name, chosen = _chosen(config, "region_similarity", "similarity_calculator")
    return _SIMILARITIES[name](chosen)


_SIMILARITIES = {
    "iou_similarity": lambda c: similarity.iou_similarity,
    "ioa_similarity": lambda c: similarity.ioa_similarity,
    "neg_sq_dist_similarity": lambda c: similarity.neg_sq_dist_similarity,
    "thresholded_iou_similarity": lambda c: similarity.ThresholdedIouSimilarity(c.iou_threshold),
}


def has_background(ssd: Message) -> bool:
    """Whether class predictions of this `Ssd` message have a background column."""
    return ssd.add_background_class or ssd.explicit_background_class


def unmatched_class_target(ssd: Message) -> list[float]:
    """What an anchor without object should predict, over all columns of the class predictions."""
    if ssd.add_background_class and ssd.explicit_background_class:
        raise UserError("ssd: add_background_class and explicit_background_class are both true; a classifier has one "
                        "background column (explicit_background_class means that num_classes counts it already)")
    foreground = ssd.num_classes if ssd.add_background_class else ssd.num_classes - 1
    return [0.0 if ssd.encode_background_as_zeros else 1.0] + [0.0] * foreground


def build_target_assigner(ssd: Message) -> targets.TargetAssigner:
    """`Ssd` message -> assigner."""
    return targets.TargetAssigner(build_similarity(ssd.similarity_calculator), build_matcher(ssd.matcher),
                                  build_box_coder(ssd.box_coder), ssd.negative_class_weight,
                                  unmatched_class_target(ssd))


def build_loss_options(ssd: Message) -> SsdLossOptions:
    """`Ssd` message -> how its loss is normalised and targeted."""
    return SsdLossOptions(ssd.normalize_loss_by_num_matches, ssd.normalize_loc_loss_by_codesize,
                          ssd.add_background_class)


def build_localization_loss(config: Message) -> Any:
    """`LocalizationLoss` message -> loss. `anchorwise_output` has no effect, as in the OD API: always per anchor."""
    name, chosen = _chosen(config, "localization_loss", "loss.localization_loss")
    return _LOCALIZATION[name](chosen)


_LOCALIZATION = {
    "weighted_l2": lambda c: losses.L2LocalizationLoss(),
    "weighted_smooth_l1": lambda c: losses.SmoothL1LocalizationLoss(c.delta),
    "weighted_iou": lambda c: losses.IouLocalizationLoss(),
    "l1_localization_loss": lambda c: losses.L1LocalizationLoss(),
    "weighted_giou": lambda c: losses.GiouLocalizationLoss(),
}


def build_classification_loss(config: Message) -> Any:
    """`ClassificationLoss` message -> loss; `anchorwise_output` as above."""
    name, chosen = _chosen(config, "classification_loss", "loss.classification_loss")
    return _CLASSIFICATION[name](chosen)


_CLASSIFICATION = {
    "weighted_sigmoid": lambda c: losses.SigmoidClassificationLoss(),
    "weighted_sigmoid_focal": lambda c: losses.SigmoidFocalClassificationLoss(
        c.gamma, c.alpha if c.HasField("alpha") else None),
    "weighted_softmax": lambda c: losses.SoftmaxClassificationLoss(c.logit_scale),
    "weighted_logits_softmax": lambda c: losses.SoftmaxAgainstLogitsClassificationLoss(c.logit_scale),
    "bootstrapped_sigmoid": lambda c: losses.BootstrappedSigmoidClassificationLoss(c.alpha, c.hard_bootstrap),
    "penalty_reduced_logistic_focal_loss": lambda c: losses.PenaltyReducedLogisticFocalLoss(c.alpha, c.beta),
    "weighted_dice_classification_loss": lambda c: losses.DiceClassificationLoss(
        c.squared_normalization, c.is_prediction_probability),
}


def build_losses(config: Message) -> LossParts:
    """`Loss` message -> parts of `ssd_loss`."""
    if config.equalization_loss.weight > 0.0:
        raise UserError("loss.equalization_loss.weight is set, but what it weighs was never published (the OD API "
                        "reads the field and does nothing with it); remove it")
    if config.HasField("hard_example_miner") and config.classification_loss.HasField("weighted_sigmoid_focal"):
        raise UserError("loss: hard_example_miner cannot be used with weighted_sigmoid_focal, which weighs hard "
                        "examples itself; remove one of the two")
    if config.classification_loss.HasField("weighted_dice_classification_loss"):
        raise UserError("loss.classification_loss.weighted_dice_classification_loss is a loss per class of a mask, not "
                        "per anchor; a detector's class loss cannot be it")
    return LossParts(
        localization=build_localization_loss(config.localization_loss),
        classification=build_classification_loss(config.classification_loss),
        localization_weight=config.localization_weight,
        classification_weight=config.classification_weight,
        miner=(
            build_miner(config.hard_example_miner, config.classification_weight, config.localization_weight)
            if config.HasField("hard_example_miner")
            else None
        ),
        sampler=_sampler(config) if config.HasField("random_example_sampler") else None,
        expected_weights=_expected_weights(config),
    )


def build_miner(miner: Message, classification_weight: float, localization_weight: float) -> sampling.HardExampleMiner:
    """`HardExampleMiner` message -> miner; the weights are those of the losses in its ranking."""
    kinds = {losses_pb2.HardExampleMiner.BOTH: sampling.MiningLoss.BOTH,
             losses_pb2.HardExampleMiner.CLASSIFICATION: sampling.MiningLoss.CLASSIFICATION,
             losses_pb2.HardExampleMiner.LOCALIZATION: sampling.MiningLoss.LOCALIZATION}
    return sampling.HardExampleMiner(
        miner.num_hard_examples if miner.num_hard_examples > 0 else None, miner.iou_threshold, kinds[miner.loss_type],
        classification_weight, localization_weight,
        miner.max_negatives_per_positive if miner.max_negatives_per_positive > 0 else None,
        miner.min_negatives_per_image)


def _sampler(config: Message) -> sampling.RandomExampleSampler:
    fraction = config.random_example_sampler.positive_sample_fraction
    if not 0.0 < fraction <= 1.0:
        raise UserError(f"loss.random_example_sampler.positive_sample_fraction is {fraction}; it must lie in (0, 1]")
    return sampling.RandomExampleSampler(fraction)


def _expected_weights(config: Message) -> sampling.ExpectedSampling | None:
    if config.expected_loss_weights == losses_pb2.Loss.NONE:
        return None
    kinds = {losses_pb2.Loss.EXPECTED_SAMPLING: sampling.ExpectedSampling,
             losses_pb2.Loss.REWEIGHTING_UNMATCHED_ANCHORS: sampling.ReweightUnmatched}
    return kinds[config.expected_loss_weights](config.desired_negative_sampling_ratio, config.min_num_negative_samples)


def build_postprocess(config: Message, sigmoid_first: bool = False) -> Postprocessor:
    """`PostProcessing` message -> postprocessor. `sigmoid_first`: scores go through a sigmoid before its converter."""
    converter = build_score_converter(config)
    convert = (lambda logits: converter(scores.sigmoid_scores(logits))) if sigmoid_first else converter
    return Postprocessor(build_nms(config.batch_non_max_suppression), convert)


def build_nms(config: Message) -> nms.MulticlassNms:
    """`BatchNonMaxSuppression` message -> NMS; the options carry the fields' names."""
    return nms.MulticlassNms(nms.NmsOptions(**{field: getattr(config, field) for field in nms.NmsOptions._fields}))


def build_score_converter(config: Message) -> scores.ScoreConverter:
    """`PostProcessing` message -> converter with its calibration."""
    converters = {post_processing_pb2.PostProcessing.IDENTITY: scores.identity_scores,
                  post_processing_pb2.PostProcessing.SIGMOID: scores.sigmoid_scores,
                  post_processing_pb2.PostProcessing.SOFTMAX: scores.softmax_scores}
    calibrate, on_logits = None, False
    if config.HasField("calibration_config"):
        name, chosen = _chosen(config.calibration_config, "calibrator", "post_processing.calibration_config")
        calibrate, on_logits = _CALIBRATORS[name](chosen), name == "temperature_scaling_calibration"
    return scores.ScoreConverter(converters[config.score_converter], config.logit_scale, calibrate, on_logits)


def _piecewise(pairs: Message) -> scores.PiecewiseLinear:
    return scores.PiecewiseLinear([(pair.x, pair.y) for pair in pairs.x_y_pair])


def _platt(parameters: Message) -> scores.PlattScaling:
    return scores.PlattScaling(parameters.a, parameters.b)


_CALIBRATORS = {
    "function_approximation": lambda c: _piecewise(c.x_y_pairs),
    "class_id_function_approximations": lambda c: scores.PerClass(
        {key: _piecewise(pairs) for key, pairs in c.class_id_xy_pairs_map.items()}),
    "sigmoid_calibration": lambda c: _platt(c.sigmoid_parameters),
    "class_id_sigmoid_calibrations": lambda c: scores.PerClass(
        {key: _platt(parameters) for key, parameters in c.class_id_sigmoid_parameters_map.items()}),
    "temperature_scaling_calibration": lambda c: scores.Temperature(c.scaler),
}

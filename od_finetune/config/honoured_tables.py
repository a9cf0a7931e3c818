"""TABLES: what od_finetune does with every field of the config language.

Each field of each message stands in exactly one of three tables:

- HONOURED: it does what its comment in `protos/` says;
- WITHOUT_EFFECT: it tunes machinery that od_finetune does not have, and leaving it out changes no result;
- UNHONOURED: it asks for something od_finetune cannot do (yet); a run refuses it.

Whoever implements a field moves its name. Messages are called by their name within the package `od_finetune.protos`.
Of PreprocessingStep only the steps that do not exist are listed; `config/augmentation.py: TABLE` has the others.
"""

from __future__ import annotations

ALL = "*"
STEPS = "PreprocessingStep"

HONOURED: dict[str, str] = {
    # The pipeline
    "TrainEvalPipelineConfig": "model train_config train_input_reader eval_config eval_input_reader",
    "DetectionModel": "ssd faster_rcnn center_net",
    # SSD
    "Ssd": "num_classes image_resizer feature_extractor box_coder matcher similarity_calculator "
    "encode_background_as_zeros negative_class_weight box_predictor anchor_generator post_processing "
    "normalize_loss_by_num_matches normalize_loc_loss_by_codesize loss freeze_batchnorm add_background_class "
    "explicit_background_class",
    "SsdFeatureExtractor": "type depth_multiplier min_depth conv_hyperparams "
    "override_base_feature_extractor_hyperparams pad_to_multiple use_explicit_padding use_depthwise num_layers "
    "fpn bifpn",
    "FeaturePyramidNetworks": ALL,
    "BidirectionalFeaturePyramidNetworks": ALL,
    # Faster R-CNN
    "FasterRcnn": "number_of_stages num_classes image_resizer feature_extractor first_stage_anchor_generator "
    "first_stage_atrous_rate first_stage_box_predictor_conv_hyperparams first_stage_box_predictor_kernel_size "
    "first_stage_box_predictor_depth first_stage_minibatch_size first_stage_positive_balance_fraction "
    "first_stage_nms_score_threshold first_stage_nms_iou_threshold first_stage_max_proposals "
    "first_stage_localization_loss_weight first_stage_objectness_loss_weight initial_crop_size maxpool_kernel_size "
    "maxpool_stride second_stage_box_predictor second_stage_batch_size second_stage_balance_fraction "
    "second_stage_post_processing second_stage_localization_loss_weight second_stage_classification_loss_weight "
    "second_stage_mask_prediction_loss_weight hard_example_miner second_stage_classification_loss "
    "clip_anchors_to_image use_combined_nms_in_first_stage "
    "context_config",
    "Context": ALL,
    "FasterRcnnFeatureExtractor": ALL,
    "MaskRCNNBoxPredictor": "fc_hyperparams use_dropout dropout_keep_probability box_code_size "
    "share_box_across_classes conv_hyperparams predict_instance_masks mask_prediction_conv_depth mask_height "
    "mask_width mask_prediction_num_conv_layers masks_are_class_agnostic convolve_then_upsample_masks",
    "RfcnBoxPredictor": ALL,
    "BoxPredictor": ALL,
    "ConvolutionalBoxPredictor": ALL,
    "ConvolutionalBoxPredictor.BoxEncodingsClipRange": ALL,
    "WeightSharedConvolutionalBoxPredictor": ALL,
    "WeightSharedConvolutionalBoxPredictor.BoxEncodingsClipRange": ALL,
    # CenterNet
    "CenterNet": "num_classes feature_extractor image_resizer use_depthwise compute_heatmap_sparse "
    "object_detection_task object_center_params keypoint_label_map_path keypoint_estimation_task mask_estimation_task "
    "densepose_estimation_task track_estimation_task temporal_offset_task deepmac_mask_estimation post_processing",
    "CenterNet.PredictionHeadParams": ALL,
    "CenterNet.ObjectDetection": ALL,
    "CenterNet.ObjectCenterParams": "object_center_loss_weight classification_loss heatmap_bias_init "
    "min_box_overlap_iou max_box_predictions keypoint_weights_for_center center_head_params peak_max_pool_kernel_size",
    "CenterNet.KeypointEstimation": ALL,
    "CenterNet.MaskEstimation": ALL,
    "CenterNet.DensePoseEstimation": ALL,
    "CenterNet.TrackEstimation": ALL,
    "CenterNet.TemporalOffsetEstimation": ALL,
    "CenterNet.DeepMACMaskEstimation": "classification_loss dim task_loss_weight pixel_embedding_dim "
    "allowed_masked_classes_ids mask_size use_xy network_type use_instance_embedding num_init_channels "
    "predict_full_resolution_masks postprocess_crop_size use_only_last_stage",
    "CenterNetFeatureExtractor": "type channel_means channel_stds bgr_ordering depth_multiplier use_separable_conv "
    "upsampling_interpolation",
    # Layers
    "Hyperparams": ALL,
    "Regularizer": ALL,
    "L1Regularizer": ALL,
    "L2Regularizer": ALL,
    "Initializer": ALL,
    "TruncatedNormalInitializer": ALL,
    "VarianceScalingInitializer": ALL,
    "RandomNormalInitializer": ALL,
    "BatchNorm": ALL,
    "GroupNorm": ALL,
    # Images
    "ImageResizer": ALL,
    "KeepAspectRatioResizer": ALL,
    "FixedShapeResizer": ALL,
    "ConditionalShapeResizer": ALL,
    "PadToMultipleResizer": ALL,
    "IdentityResizer": ALL,
    # Boxes
    "AnchorGenerator": ALL,
    "GridAnchorGenerator": ALL,
    "SsdAnchorGenerator": ALL,
    "MultiscaleAnchorGenerator": ALL,
    "FlexibleGridAnchorGenerator": ALL,
    "AnchorGrid": ALL,
    "BoxCoder": ALL,
    "FasterRcnnBoxCoder": ALL,
    "MeanStddevBoxCoder": ALL,
    "SquareBoxCoder": ALL,
    "KeypointBoxCoder": ALL,
    "Matcher": ALL,
    "ArgMaxMatcher": "matched_threshold unmatched_threshold ignore_thresholds negatives_lower_than_unmatched "
    "force_match_for_each_row",
    "RegionSimilarityCalculator": ALL,
    "NegSqDistSimilarity": ALL,
    "IouSimilarity": ALL,
    "IoaSimilarity": ALL,
    "ThresholdedIouSimilarity": ALL,
    # Losses
    "Loss": ALL,
    "LocalizationLoss": ALL,
    "WeightedL2LocalizationLoss": "",
    "WeightedSmoothL1LocalizationLoss": "delta",
    "WeightedIOULocalizationLoss": ALL,
    "WeightedGIOULocalizationLoss": ALL,
    "L1LocalizationLoss": ALL,
    "ClassificationLoss": "weighted_sigmoid weighted_softmax weighted_logits_softmax bootstrapped_sigmoid "
    "weighted_sigmoid_focal penalty_reduced_logistic_focal_loss",
    "WeightedSigmoidClassificationLoss": "",
    "WeightedSoftmaxClassificationLoss": "logit_scale",
    "WeightedSoftmaxClassificationAgainstLogitsLoss": "logit_scale",
    "BootstrappedSigmoidClassificationLoss": "alpha hard_bootstrap",
    "SigmoidFocalClassificationLoss": "gamma alpha",
    "PenaltyReducedLogisticFocalLoss": ALL,
    "HardExampleMiner": ALL,
    "RandomExampleSampler": ALL,
    # Post-processing
    "PostProcessing": "batch_non_max_suppression score_converter logit_scale calibration_config",
    "BatchNonMaxSuppression": "score_threshold iou_threshold max_detections_per_class max_total_detections "
    "use_class_agnostic_nms max_classes_per_detection soft_nms_sigma change_coordinate_frame use_hard_nms "
    "use_combined_nms use_cpu_nms",
    "CalibrationConfig": ALL,
    "FunctionApproximation": ALL,
    "ClassIdFunctionApproximations": ALL,
    "SigmoidCalibration": ALL,
    "ClassIdSigmoidCalibrations": ALL,
    "TemperatureScalingCalibration": ALL,
    "XYPairs": "x_y_pair",
    "XYPairs.XYPair": ALL,
    "SigmoidParameters": ALL,
    # Training
    "TrainConfig": "batch_size data_augmentation_options keep_checkpoint_every_n_hours optimizer "
    "gradient_clipping_by_norm fine_tune_checkpoint fine_tune_checkpoint_type fine_tune_checkpoint_version "
    "from_detection_checkpoint load_all_detection_checkpoint_vars num_steps bias_grad_multiplier "
    "update_trainable_variables freeze_variables merge_multiple_label_boxes add_regularization_loss "
    "max_number_of_boxes learning_rate_multiplier checkpoint_every_n_steps max_checkpoints_to_keep seed "
    "log_every_n_steps restore min_restored_fraction require class_transfer keep_classes "
    "freeze_through trainable_batch_norm unfreeze layer_decay weight_decay",
    "Restore": ALL,
    "NameMap": ALL,
    "LearningRateMultiplier": ALL,
    "ClassTransfer": ALL,
    "ClassRename": ALL,
    "NewClass": ALL,
    "KeepClasses": ALL,
    "BatchNormTraining": ALL,
    "Unfreeze": ALL,
    "WeightDecay": ALL,
    "Optimizer": ALL,
    "RMSPropOptimizer": ALL,
    "MomentumOptimizer": ALL,
    "AdamOptimizer": ALL,
    "LearningRate": ALL,
    "ConstantLearningRate": ALL,
    "ExponentialDecayLearningRate": ALL,
    "ManualStepLearningRate": ALL,
    "ManualStepLearningRate.LearningRateSchedule": ALL,
    "CosineDecayLearningRate": ALL,
    # Evaluation
    "EvalConfig": "batch_size num_visualizations num_examples eval_interval_secs metrics_set parameterized_metric "
    "super_categories keypoint_edge "
    "use_moving_averages min_score_threshold max_num_boxes_to_visualize skip_scores skip_labels "
    "visualize_groundtruth_boxes groundtruth_box_visualization_color "
    "include_metrics_per_category all_metrics_per_category eval_every_n_steps best_metric best_metric_is_loss "
    "early_stopping_patience early_stopping_min_delta eval_at_start",
    "ParameterizedMetric": ALL,
    "CocoKeypointMetrics": ALL,
    "KeypointEdge": ALL,
    # Data
    "InputReader": "label_map_path shuffle shuffle_buffer_size filenames_shuffle_buffer_size num_epochs "
    "sample_1_of_n_examples num_readers num_prefetch_batches read_block_length drop_remainder max_number_of_boxes "
    "use_display_name tf_record_input_reader sample_from_datasets_weights num_keypoints load_instance_masks mask_type "
    "load_dense_pose load_track_id load_keypoint_depth_features use_keypoint_label_map load_context_features",
    "TFRecordInputReader": ALL,
    "StringIntLabelMap": ALL,
    "StringIntLabelMapItem": "name id display_name keypoints",
    "StringIntLabelMapItem.KeypointMap": ALL,
    # Augmentation steps
    "RandomHorizontalFlip": ALL,
    "RandomVerticalFlip": ALL,
    "RandomRotation90": ALL,
    "RandomPixelValueScale": ALL,
    "RandomRGBtoGray": ALL,
    "RandomAdjustBrightness": ALL,
    "RandomAdjustContrast": ALL,
    "RandomAdjustHue": ALL,
    "RandomAdjustSaturation": ALL,
    "RandomDistortColor": ALL,
    "RGBtoGray": ALL,
    "NormalizeImage": ALL,
    "RandomImageScale": ALL,
    "RandomJitterBoxes": ALL,
    "RandomCropImage": ALL,
    "RandomPadImage": ALL,
    "RandomAbsolutePadImage": ALL,
    "RandomCropPadImage": ALL,
    "RandomCropToAspectRatio": ALL,
    "RandomBlackPatches": ALL,
    "RandomResizeMethod": ALL,
    "ResizeImage": ALL,
    "SubtractChannelMean": ALL,
    "RandomSelfConcatImage": ALL,
    "DropLabelProbabilistically": ALL,
    "RemapLabels": ALL,
    "RandomJpegQuality": ALL,
    "RandomDownscaleToTargetPixels": ALL,
    "RandomPatchGaussian": ALL,
    "RandomSquareCropByScale": ALL,
    "RandomScaleCropAndPadToSquare": ALL,
    "AdjustGamma": ALL,
    "SSDRandomCrop": ALL,
    "SSDRandomCropOperation": ALL,
    "SSDRandomCropPad": ALL,
    "SSDRandomCropPadOperation": ALL,
    "SSDRandomCropFixedAspectRatio": ALL,
    "SSDRandomCropFixedAspectRatioOperation": ALL,
    "SSDRandomCropPadFixedAspectRatio": ALL,
    "SSDRandomCropPadFixedAspectRatioOperation": ALL,
}

_BATCHES_BY_TF_DATA = "tf.data tunes its own parallelism and buffers"
_ONE_MACHINE = "training runs in one process"
_SAME_RESULT = "another way to compute the same result"
_LOSS_FORM = "the detector asks each loss for the form it needs"

WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "CenterNet": {"output_prediction_dict": "raw predictions are what the detector's predict returns"},
    "Ssd": {
        "inplace_batchnorm_update": "moving statistics are always updated with the step",
        "return_raw_detections_during_predict": "raw detections are always returned",
    },
    "FasterRcnn": {
        "inplace_batchnorm_update": "moving statistics are always updated with the step",
        "use_matmul_crop_and_resize": _SAME_RESULT,
        "use_matmul_gather_in_matcher": _SAME_RESULT,
        "resize_masks": "masks are resized once, with their image; this is about the model doing it again",
        "use_static_balanced_label_sampler": "it draws from the same distribution",
        "use_static_shapes": _SAME_RESULT,
        "use_static_shapes_for_eval": _SAME_RESULT,
        "use_partitioned_nms_in_first_stage": _SAME_RESULT,
        "return_raw_detections_during_predict": "raw detections are always returned",
    },
    "Loss.EqualizationLoss": {"exclude_prefixes": "the loss has no weight"},
    "ArgMaxMatcher": {"use_matmul_gather": _SAME_RESULT},
    "BipartiteMatcher": {"use_matmul_gather": _SAME_RESULT},
    "WeightedL2LocalizationLoss": {"anchorwise_output": _LOSS_FORM},
    "WeightedSmoothL1LocalizationLoss": {"anchorwise_output": _LOSS_FORM},
    "WeightedSigmoidClassificationLoss": {"anchorwise_output": _LOSS_FORM},
    "WeightedSoftmaxClassificationLoss": {"anchorwise_output": _LOSS_FORM},
    "WeightedSoftmaxClassificationAgainstLogitsLoss": {"anchorwise_output": _LOSS_FORM},
    "BootstrappedSigmoidClassificationLoss": {"anchorwise_output": _LOSS_FORM},
    "SigmoidFocalClassificationLoss": {"anchorwise_output": _LOSS_FORM},
    "BatchNonMaxSuppression": {
        "use_static_shapes": _SAME_RESULT,
        "use_partitioned_nms": _SAME_RESULT,
    },
    "XYPairs": {"training_data_type": "a note on how the pairs were found"},
    "TrainConfig": {
        "sync_replicas": _ONE_MACHINE,
        "startup_delay_steps": _ONE_MACHINE,
        "replicas_to_aggregate": _ONE_MACHINE,
        "run_fine_tune_checkpoint_dummy_computation": "variables are always built before a checkpoint is read",
        "batch_queue_capacity": _BATCHES_BY_TF_DATA,
        "num_batch_queue_threads": _BATCHES_BY_TF_DATA,
        "prefetch_queue_capacity": _BATCHES_BY_TF_DATA,
        "unpad_groundtruth_tensors": "losses leave padding out by the number of boxes (batch norms of CenterNet's "
        "DeepMAC and track classifier do not)",
        "retain_original_images": "training needs none; evaluation pictures have their own field",
    },
    "EvalConfig": {
        "max_evals": "evaluations follow the checkpoints",
        "eval_instance_masks": "coco_mask_metrics of metrics_set asks for masks",
        "save_graph": "there is no graph to save; SavedModels come from od-finetune export",
        "eval_master": _ONE_MACHINE,
        "retain_original_images": "what pictures need is kept",
        "retain_original_image_additional_channels": "what pictures need is kept",
        "use_dummy_loss_in_eval": "validation losses are always the real ones",
        "image_classes_field_map_empty_to_ones": "only metrics with image-level labels ask for it",
    },
    "InputReader": {
        "name": "a note for people",
        "num_parallel_batches": _BATCHES_BY_TF_DATA,
        "queue_capacity": _BATCHES_BY_TF_DATA,
        "min_after_dequeue": _BATCHES_BY_TF_DATA,
        "prefetch_size": _BATCHES_BY_TF_DATA,
        "num_parallel_map_calls": _BATCHES_BY_TF_DATA,
        "include_source_id": "the source id is always kept",
    },
    "StringIntLabelMapItem": {"frequency": "a note on the data set", "instance_count": "a note on the data set"},
}

UNHONOURED: dict[str, str] = {
    "TrainEvalPipelineConfig": "graph_rewriter",
    "DetectionModel": "experimental_model",
    "Ssd": "use_confidences_as_targets implicit_example_weight mask_head_config",
    "Ssd.MaskHead": ALL,
    "SsdFeatureExtractor": "replace_preprocessor_with_placeholder spaghettinet_arch_name",
    "MaskRCNNBoxPredictor": "predict_keypoints",
    "Loss.EqualizationLoss": "weight",
    "ClassificationLoss": "weighted_dice_classification_loss",
    "WeightedDiceClassificationLoss": ALL,
    "TargetAssigner": ALL,
    "TrainConfig": "use_multiclass_scores use_bfloat16 summarize_gradients",
    "EvalConfig": "visualization_export_dir export_path ignore_groundtruth keep_image_id_for_visualization_export "
    "recall_lower_bound recall_upper_bound force_no_resize skip_predictions_for_unlabeled_class",
    "InputReader": "num_additional_channels keypoint_type_weight load_multiclass_scores "
    "load_context_image_ids input_type frame_index external_input_reader expand_labels_hierarchy",
    "ExternalInputReader": ALL,
    "StringIntLabelMapItem": "ancestor_ids descendant_ids",
    "ExperimentalModel": ALL,
    "GraphRewriter": ALL,
    "Quantization": ALL,
    "FasterRcnn": "output_final_box_features output_final_box_rpn_features",
    "CenterNet.ObjectCenterParams": "use_labeled_classes",
    "CenterNet.DeepMACMaskEstimation": "mask_num_subsamples max_roi_jitter_ratio jitter_mode "
    "box_consistency_loss_weight color_consistency_threshold color_consistency_dilation color_consistency_loss_weight "
    "box_consistency_loss_normalize box_consistency_tightness color_consistency_warmup_steps "
    "color_consistency_warmup_start augmented_self_supervision_max_translation "
    "augmented_self_supervision_flip_probability augmented_self_supervision_loss_weight "
    "augmented_self_supervision_warmup_start augmented_self_supervision_warmup_steps augmented_self_supervision_loss "
    "augmented_self_supervision_scale_min augmented_self_supervision_scale_max "
    "pointly_supervised_keypoint_loss_weight ignore_per_class_box_overlap",
    "CenterNetFeatureExtractor": "use_depthwise",
    "ScaleBoxesToPixelCoordinates": ALL,
    "ConvertClassLogitsToSoftmax": ALL,
    "AutoAugmentImage": ALL,
    STEPS: "autoaugment_image convert_class_logits_to_softmax scale_boxes_to_pixel_coordinates",
}

# Of what is not honoured: why, and what to do instead, where the name of the field does not say it.
WHY_NOT: dict[tuple[str, str], tuple[str, str]] = {
    ("TrainEvalPipelineConfig", "graph_rewriter"): (
        "asks for quantisation-aware training, and training is in float only",
        "remove graph_rewriter to train in float (of a quantised checkpoint the weights restore, and its recorded "
        "ranges are not needed); quantise after training, with the tools for the device it is meant for",
    ),
}

REPLACED_BY: dict[tuple[str, str], str] = {
    ("TrainConfig", "from_detection_checkpoint"): 'write fine_tune_checkpoint_type: "detection" (or "classification")',
    ("TrainConfig", "load_all_detection_checkpoint_vars"): (
        'write fine_tune_checkpoint_type: "detection", with fine_tune_checkpoint_version V1 for heads too, V2 without'
    ),
    ("TrainConfig", "batch_queue_capacity"): "leave it out; num_prefetch_batches of the input reader is what is left",
    ("TrainConfig", "num_batch_queue_threads"): "leave it out",
    ("TrainConfig", "prefetch_queue_capacity"): "leave it out; see num_prefetch_batches of the input reader",
    ("TrainConfig", "max_number_of_boxes"): "set max_number_of_boxes of the input reader",
    ("EvalConfig", "num_examples"): "leave it out: an evaluation then reads all of its input",
    ("EvalConfig", "max_evals"): "leave it out: evaluations follow the checkpoints",
    ("InputReader", "queue_capacity"): "set shuffle_buffer_size",
    ("InputReader", "min_after_dequeue"): "set shuffle_buffer_size",
    ("InputReader", "prefetch_size"): "set num_prefetch_batches",
    ("InputReader", "num_parallel_map_calls"): "leave it out",
}

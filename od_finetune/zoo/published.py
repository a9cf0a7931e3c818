"""TABLE: what was published of each detector of the zoos.

The figures are those of tensorflow/models, research/object_detection/g3doc: tf1_detection_zoo.md and
tf2_detection_zoo.md. They say where a speed was measured, too: TF1's on a Titan X, at 600x600, with post-processing.
"""

from __future__ import annotations

from typing import NamedTuple

_COCO, _GPU = "COCO mAP", "GPU"  # where a line says nothing else


class Published(NamedTuple):
    """One archive of a zoo."""

    archive: str  # its name in `zoo.table`
    kind: str  # feature_extractor.type
    input: str  # of the network, in pixels: height x width, or the shorter and the longest side, 600..1024
    metric: str
    score: str  # as published, in percent; `boxes/keypoints` or `boxes/masks` where there are two; empty: none given
    milliseconds: str  # per image; empty: none given
    device: str  # it was measured on

    @property
    def parameters(self) -> int | None:
        """Numbers in all variables of the detector, moving statistics included; None where it was not counted."""
        return PARAMETERS.get(self.archive)


# archive, type, input, score, ms; COCO mAP and a GPU where nothing else is said behind.
_TEXT = """
ssd_mobilenet_v1_coco_2018_01_28 ssd_mobilenet_v1 300x300 21 30
ssd_mobilenet_v1_0.75_depth_300x300_coco14_sync_2018_07_03 ssd_mobilenet_v1 300x300 18 26
ssd_mobilenet_v1_quantized_300x300_coco14_sync_2018_07_18 ssd_mobilenet_v1 300x300 18 29
ssd_mobilenet_v1_0.75_depth_quantized_300x300_coco14_sync_2018_07_18 ssd_mobilenet_v1 300x300 16 29
ssd_mobilenet_v1_ppn_shared_box_predictor_300x300_coco14_sync_2018_07_03 ssd_mobilenet_v1_ppn 300x300 20 26
ssd_mobilenet_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03 ssd_mobilenet_v1_fpn 640x640 32 56
ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03 ssd_resnet50_v1_fpn 640x640 35 76
ssd_mobilenet_v2_coco_2018_03_29 ssd_mobilenet_v2 300x300 22 31
ssd_mobilenet_v2_quantized_300x300_coco_2019_01_03 ssd_mobilenet_v2 300x300 22 29
ssdlite_mobilenet_v2_coco_2018_05_09 ssd_mobilenet_v2 300x300 22 27
ssd_inception_v2_coco_2018_01_28 ssd_inception_v2 300x300 24 42
faster_rcnn_inception_v2_coco_2018_01_28 faster_rcnn_inception_v2 600..1024 28 58
faster_rcnn_resnet50_coco_2018_01_28 faster_rcnn_resnet50 600..1024 30 89
faster_rcnn_resnet50_lowproposals_coco_2018_01_28 faster_rcnn_resnet50 600..1024 - 64
rfcn_resnet101_coco_2018_01_28 faster_rcnn_resnet101 600..1024 30 92
faster_rcnn_resnet101_coco_2018_01_28 faster_rcnn_resnet101 600..1024 32 106
faster_rcnn_resnet101_lowproposals_coco_2018_01_28 faster_rcnn_resnet101 600..1024 - 82
faster_rcnn_inception_resnet_v2_atrous_coco_2018_01_28 faster_rcnn_inception_resnet_v2 600..1024 37 620
faster_rcnn_inception_resnet_v2_atrous_lowproposals_coco_2018_01_28 faster_rcnn_inception_resnet_v2 600..1024 - 241
faster_rcnn_nas_coco_2018_01_28 faster_rcnn_nas 1200x1200 43 1833
faster_rcnn_nas_lowproposals_coco_2018_01_28 faster_rcnn_nas 1200x1200 - 540
mask_rcnn_inception_resnet_v2_atrous_coco_2018_01_28 faster_rcnn_inception_resnet_v2 800..1365 36 771
mask_rcnn_inception_v2_coco_2018_01_28 faster_rcnn_inception_v2 800..1365 25 79
mask_rcnn_resnet101_atrous_coco_2018_01_28 faster_rcnn_resnet101 800..1365 33 470
mask_rcnn_resnet50_atrous_coco_2018_01_28 faster_rcnn_resnet50 800..1365 29 343
ssdlite_mobiledet_cpu_320x320_coco_2020_05_19 ssd_mobiledet_cpu 320x320 24.0 113 COCO mAP | Pixel 1
ssd_mobilenet_v2_mnasfpn_shared_box_predictor_320x320_coco_sync_2020_05_18 ssd_mobilenet_v2_mnasfpn 320x320 26.6 183 \
COCO mAP | Pixel 1
ssd_mobilenet_v3_large_coco_2020_01_14 ssd_mobilenet_v3_large 320x320 22.6 119 COCO mAP | Pixel 1
ssd_mobilenet_v3_small_coco_2020_01_14 ssd_mobilenet_v3_small 320x320 15.4 43 COCO mAP | Pixel 1
ssdlite_mobiledet_edgetpu_320x320_coco_2020_05_19 ssd_mobiledet_edgetpu 320x320 25.9 6.9 COCO mAP | Pixel 4 Edge TPU
ssdlite_mobilenet_edgetpu_coco_quant ssd_mobilenet_edgetpu 320x320 24.3 6.6 \
COCO mAP | Pixel 4 Edge TPU
ssdlite_mobiledet_dsp_320x320_coco_2020_05_19 ssd_mobiledet_dsp 320x320 28.9 12.3 COCO mAP | Pixel 4 DSP
faster_rcnn_resnet101_kitti_2018_01_28 faster_rcnn_resnet101 600..1987 87 79 Pascal mAP@0.5 | GPU
faster_rcnn_inception_resnet_v2_atrous_oid_2018_01_28 faster_rcnn_inception_resnet_v2 600..1024 37 727 \
Open Images mAP@0.5 | GPU
faster_rcnn_inception_resnet_v2_atrous_lowproposals_oid_2018_01_28 faster_rcnn_inception_resnet_v2 600..1024 - 347 \
Open Images mAP@0.5 | GPU
facessd_mobilenet_v2_quantized_320x320_open_image_v4 ssd_mobilenet_v2 320x320 73 20 Open Images mAP@0.5 | GPU
faster_rcnn_inception_resnet_v2_atrous_oid_v4_2018_12_12 faster_rcnn_inception_resnet_v2 600..1024 54 425 \
Open Images mAP@0.5 | GPU
ssd_mobilenet_v2_oid_v4_2018_12_12 ssd_mobilenet_v2 300x300 36 89 Open Images mAP@0.5 | GPU
ssd_resnet101_v1_fpn_shared_box_predictor_oid_512x512_sync_2019_01_20 ssd_resnet101_v1_fpn 512x512 38 237 \
Open Images mAP@0.5 | GPU
faster_rcnn_resnet101_fgvc_2018_07_19 faster_rcnn_resnet101 600..1024 58 395 Pascal mAP@0.5 | GPU
faster_rcnn_resnet50_fgvc_2018_07_19 faster_rcnn_resnet50 600..1024 55 366 Pascal mAP@0.5 | GPU
faster_rcnn_resnet101_ava_v2.1_2018_04_30 faster_rcnn_resnet101 600..1024 11 93 Pascal mAP@0.5 | GPU
faster_rcnn_resnet101_snapshot_serengeti_2020_06_10 faster_rcnn_resnet101 640x640 38 - COCO AP@0.5 | GPU
context_rcnn_resnet101_snapshot_serengeti_2020_06_10 faster_rcnn_resnet101 640x640 56 - COCO AP@0.5 | GPU
spaghettinet_edgetpu_s_2021_10_13 ssd_spaghettinet 320x320 26.3 1.3 COCO mAP | Pixel 6 Edge TPU
spaghettinet_edgetpu_m_2021_10_13 ssd_spaghettinet 320x320 27.4 1.4 COCO mAP | Pixel 6 Edge TPU
spaghettinet_edgetpu_l_2021_10_13 ssd_spaghettinet 320x320 28.0 1.7 COCO mAP | Pixel 6 Edge TPU
centernet_hg104_512x512_coco17_tpu-8 hourglass_104 512x512 41.9 70
centernet_hg104_512x512_kpts_coco17_tpu-32 hourglass_104 512x512 40.0/61.4 76
centernet_hg104_1024x1024_coco17_tpu-32 hourglass_104 1024x1024 44.5 197
centernet_hg104_1024x1024_kpts_coco17_tpu-32 hourglass_104 1024x1024 42.8/64.5 211
centernet_resnet50_v1_fpn_512x512_coco17_tpu-8 resnet_v1_50_fpn 512x512 31.2 27
centernet_resnet50_v1_fpn_512x512_kpts_coco17_tpu-8 resnet_v1_50_fpn 512x512 29.3/50.7 30
centernet_resnet101_v1_fpn_512x512_coco17_tpu-8 resnet_v1_101_fpn 512x512 34.2 34
centernet_resnet50_v2_512x512_coco17_tpu-8 resnet_v2_50 512x512 29.5 27
centernet_resnet50_v2_512x512_kpts_coco17_tpu-8 resnet_v2_50 512x512 27.6/48.2 30
centernet_mobilenetv2fpn_512x512_coco17_od mobilenet_v2_fpn 512x512 23.4 6
centernet_mobilenetv2fpn_512x512_coco17_kpts mobilenet_v2_fpn 512x512 41.7 6 keypoint mAP | GPU
efficientdet_d0_coco17_tpu-32 ssd_efficientnet-b0_bifpn_keras 512x512 33.6 39
efficientdet_d1_coco17_tpu-32 ssd_efficientnet-b1_bifpn_keras 640x640 38.4 54
efficientdet_d2_coco17_tpu-32 ssd_efficientnet-b2_bifpn_keras 768x768 41.8 67
efficientdet_d3_coco17_tpu-32 ssd_efficientnet-b3_bifpn_keras 896x896 45.4 95
efficientdet_d4_coco17_tpu-32 ssd_efficientnet-b4_bifpn_keras 1024x1024 48.5 133
efficientdet_d5_coco17_tpu-32 ssd_efficientnet-b5_bifpn_keras 1280x1280 49.7 222
efficientdet_d6_coco17_tpu-32 ssd_efficientnet-b6_bifpn_keras 1280x1280 50.5 268
efficientdet_d7_coco17_tpu-32 ssd_efficientnet-b6_bifpn_keras 1536x1536 51.2 325
ssd_mobilenet_v2_320x320_coco17_tpu-8 ssd_mobilenet_v2_keras 300x300 20.2 19
ssd_mobilenet_v1_fpn_640x640_coco17_tpu-8 ssd_mobilenet_v1_fpn_keras 640x640 29.1 48
ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8 ssd_mobilenet_v2_fpn_keras 320x320 22.2 22
ssd_mobilenet_v2_fpnlite_640x640_coco17_tpu-8 ssd_mobilenet_v2_fpn_keras 640x640 28.2 39
ssd_resnet50_v1_fpn_640x640_coco17_tpu-8 ssd_resnet50_v1_fpn_keras 640x640 34.3 46
ssd_resnet50_v1_fpn_1024x1024_coco17_tpu-8 ssd_resnet50_v1_fpn_keras 1024x1024 38.3 87
ssd_resnet101_v1_fpn_640x640_coco17_tpu-8 ssd_resnet101_v1_fpn_keras 640x640 35.6 57
ssd_resnet101_v1_fpn_1024x1024_coco17_tpu-8 ssd_resnet101_v1_fpn_keras 1024x1024 39.5 104
ssd_resnet152_v1_fpn_640x640_coco17_tpu-8 ssd_resnet152_v1_fpn_keras 640x640 35.4 80
ssd_resnet152_v1_fpn_1024x1024_coco17_tpu-8 ssd_resnet152_v1_fpn_keras 1024x1024 39.6 111
faster_rcnn_resnet50_v1_640x640_coco17_tpu-8 faster_rcnn_resnet50_keras 640x640 29.3 53
faster_rcnn_resnet50_v1_1024x1024_coco17_tpu-8 faster_rcnn_resnet50_keras 1024x1024 31.0 65
faster_rcnn_resnet50_v1_800x1333_coco17_gpu-8 faster_rcnn_resnet50_keras 800..1333 31.6 65
faster_rcnn_resnet101_v1_640x640_coco17_tpu-8 faster_rcnn_resnet101_keras 640x640 31.8 55
faster_rcnn_resnet101_v1_1024x1024_coco17_tpu-8 faster_rcnn_resnet101_keras 1024x1024 37.1 72
faster_rcnn_resnet101_v1_800x1333_coco17_gpu-8 faster_rcnn_resnet101_keras 800..1333 36.6 77
faster_rcnn_resnet152_v1_640x640_coco17_tpu-8 faster_rcnn_resnet152_keras 640x640 32.4 64
faster_rcnn_resnet152_v1_1024x1024_coco17_tpu-8 faster_rcnn_resnet152_keras 1024x1024 37.6 85
faster_rcnn_resnet152_v1_800x1333_coco17_gpu-8 faster_rcnn_resnet152_keras 800..1333 37.4 101
faster_rcnn_inception_resnet_v2_640x640_coco17_tpu-8 faster_rcnn_inception_resnet_v2_keras 640x640 37.7 206
faster_rcnn_inception_resnet_v2_1024x1024_coco17_tpu-8 faster_rcnn_inception_resnet_v2_keras 1024x1024 38.7 236
mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8 faster_rcnn_inception_resnet_v2_keras 1024x1024 39.0/34.6 301
"""


def _parse(line: str) -> Published:
    archive, kind, size, score, milliseconds, *rest = line.split(maxsplit=5)
    metric, device = rest[0].split(" | ") if rest else (_COCO, _GPU)
    return Published(archive, kind, size, metric, score.strip("-"), milliseconds.strip("-"), device)


TABLE: tuple[Published, ...] = tuple(_parse(line) for line in _TEXT.split("\n") if line)

# Numbers in all variables, for the archives whose config is at hand (or one of the same network at another input size).
# tests/test_published.py counts them anew.
_PARAMETERS = """
ssd_mobilenet_v1_coco_2018_01_28 6845183
ssd_mobilenet_v1_quantized_300x300_coco14_sync_2018_07_18 6845183
ssd_mobilenet_v1_0.75_depth_quantized_300x300_coco14_sync_2018_07_18 4129743
ssd_mobilenet_v1_ppn_shared_box_predictor_300x300_coco14_sync_2018_07_03 3795706
ssd_mobilenet_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03 12125178
ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03 32916218
ssd_mobilenet_v2_coco_2018_03_29 6103999
ssd_mobilenet_v2_quantized_300x300_coco_2019_01_03 6103999
ssdlite_mobilenet_v2_coco_2018_05_09 4551295
ssd_inception_v2_coco_2018_01_28 25053591
faster_rcnn_inception_v2_coco_2018_01_28 13337123
faster_rcnn_resnet50_coco_2018_01_28 44228555
faster_rcnn_resnet50_lowproposals_coco_2018_01_28 44228555
rfcn_resnet101_coco_2018_01_28 68607459
faster_rcnn_resnet101_coco_2018_01_28 63272907
faster_rcnn_resnet101_lowproposals_coco_2018_01_28 63272907
faster_rcnn_inception_resnet_v2_atrous_coco_2018_01_28 60080875
faster_rcnn_inception_resnet_v2_atrous_lowproposals_coco_2018_01_28 60080875
faster_rcnn_nas_coco_2018_01_28 105352605
faster_rcnn_nas_lowproposals_coco_2018_01_28 105352605
mask_rcnn_inception_resnet_v2_atrous_coco_2018_01_28 65007685
mask_rcnn_inception_v2_coco_2018_01_28 15904125
mask_rcnn_resnet101_atrous_coco_2018_01_28 69379365
mask_rcnn_resnet50_atrous_coco_2018_01_28 50335013
ssdlite_mobiledet_cpu_320x320_coco_2020_05_19 4205423
ssd_mobilenet_v2_mnasfpn_shared_box_predictor_320x320_coco_sync_2020_05_18 2503047
ssd_mobilenet_v3_large_coco_2020_01_14 3281199
ssdlite_mobiledet_edgetpu_320x320_coco_2020_05_19 4196095
ssdlite_mobilenet_edgetpu_coco_quant 3905055
faster_rcnn_resnet101_kitti_2018_01_28 62371347
faster_rcnn_inception_resnet_v2_atrous_oid_2018_01_28 63585235
faster_rcnn_inception_resnet_v2_atrous_lowproposals_oid_2018_01_28 63585235
facessd_mobilenet_v2_quantized_320x320_open_image_v4 5431942
faster_rcnn_inception_resnet_v2_atrous_oid_v4_2018_12_12 64007910
ssd_resnet101_v1_fpn_shared_box_predictor_oid_512x512_sync_2019_01_20 57308660
faster_rcnn_resnet101_fgvc_2018_07_19 91590087
faster_rcnn_resnet50_fgvc_2018_07_19 72545735
faster_rcnn_resnet101_ava_v2.1_2018_04_30 63170457
context_rcnn_resnet101_snapshot_serengeti_2020_06_10 79304253
centernet_hg104_512x512_coco17_tpu-8 191406652
centernet_hg104_512x512_kpts_coco17_tpu-32 194990822
centernet_hg104_1024x1024_coco17_tpu-32 191406652
centernet_hg104_1024x1024_kpts_coco17_tpu-32 194990822
centernet_resnet50_v1_fpn_512x512_kpts_coco17_tpu-8 25795827
centernet_resnet50_v2_512x512_kpts_coco17_tpu-8 30362931
efficientdet_d0_coco17_tpu-32 5622923
efficientdet_d2_coco17_tpu-32 10089063
efficientdet_d3_coco17_tpu-32 14279568
efficientdet_d5_coco17_tpu-32 36986475
efficientdet_d6_coco17_tpu-32 55825086
efficientdet_d7_coco17_tpu-32 55825086
ssd_mobilenet_v2_320x320_coco17_tpu-8 6103999
ssd_mobilenet_v1_fpn_640x640_coco17_tpu-8 12125178
ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8 2667002
ssd_resnet50_v1_fpn_640x640_coco17_tpu-8 32916218
ssd_resnet50_v1_fpn_1024x1024_coco17_tpu-8 32916218
ssd_resnet101_v1_fpn_1024x1024_coco17_tpu-8 51960570
ssd_resnet152_v1_fpn_640x640_coco17_tpu-8 67650298
ssd_resnet152_v1_fpn_1024x1024_coco17_tpu-8 67650298
faster_rcnn_resnet50_v1_640x640_coco17_tpu-8 28511847
faster_rcnn_resnet50_v1_1024x1024_coco17_tpu-8 28511847
faster_rcnn_resnet50_v1_800x1333_coco17_gpu-8 29241291
faster_rcnn_resnet101_v1_1024x1024_coco17_tpu-8 47556199
faster_rcnn_resnet101_v1_800x1333_coco17_gpu-8 48285643
faster_rcnn_resnet152_v1_640x640_coco17_tpu-8 63245927
faster_rcnn_resnet152_v1_1024x1024_coco17_tpu-8 63245927
mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8 65007685
ssd_mobilenet_v2_fpnlite_640x640_coco17_tpu-8 2667002
ssd_resnet101_v1_fpn_640x640_coco17_tpu-8 51960570
faster_rcnn_resnet101_v1_640x640_coco17_tpu-8 47556199
"""
PARAMETERS: dict[str, int] = {
    archive: int(count) for archive, count in (line.split() for line in _PARAMETERS.split("\n") if line)
}

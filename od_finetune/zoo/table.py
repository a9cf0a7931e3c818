"""TABLE: the published checkpoints by name. Names and addresses are those of tensorflow/models,
research/object_detection/g3doc: tf1_detection_zoo.md, tf2_detection_zoo.md, tf2_classification_zoo.md."""

from __future__ import annotations

from typing import NamedTuple

BASE_URL = "https://download.tensorflow.org/models/object_detection"
"""Where the archives lie. The published links say http; it is the same host."""

TF1, TF2, CLASSIFICATION = "TF1 detection", "TF2 detection", "TF2 classification"
ENDING = ".tar.gz"


class Entry(NamedTuple):
    """One published archive."""

    name: str  # of the archive, without its ending
    title: str  # what the zoo's table calls it
    zoo: str  # which table: TF1, TF2 or CLASSIFICATION
    path: str  # below BASE_URL
    base_url: str = BASE_URL


class Checksum(NamedTuple):
    """What an archive is known to be."""

    algorithm: str  # as hashlib calls it
    digest: str
    size: int | None = None  # bytes


# `title archive`; an archive that lies in a folder of its own has it in front.
_TF1 = """
ssd_mobilenet_v1_coco ssd_mobilenet_v1_coco_2018_01_28
ssd_mobilenet_v1_0.75_depth_coco ssd_mobilenet_v1_0.75_depth_300x300_coco14_sync_2018_07_03
ssd_mobilenet_v1_quantized_coco ssd_mobilenet_v1_quantized_300x300_coco14_sync_2018_07_18
ssd_mobilenet_v1_0.75_depth_quantized_coco ssd_mobilenet_v1_0.75_depth_quantized_300x300_coco14_sync_2018_07_18
ssd_mobilenet_v1_ppn_coco ssd_mobilenet_v1_ppn_shared_box_predictor_300x300_coco14_sync_2018_07_03
ssd_mobilenet_v1_fpn_coco ssd_mobilenet_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03
ssd_resnet_50_fpn_coco ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03
ssd_mobilenet_v2_coco ssd_mobilenet_v2_coco_2018_03_29
ssd_mobilenet_v2_quantized_coco ssd_mobilenet_v2_quantized_300x300_coco_2019_01_03
ssdlite_mobilenet_v2_coco ssdlite_mobilenet_v2_coco_2018_05_09
ssd_inception_v2_coco ssd_inception_v2_coco_2018_01_28
faster_rcnn_inception_v2_coco faster_rcnn_inception_v2_coco_2018_01_28
faster_rcnn_resnet50_coco faster_rcnn_resnet50_coco_2018_01_28
faster_rcnn_resnet50_lowproposals_coco faster_rcnn_resnet50_lowproposals_coco_2018_01_28
rfcn_resnet101_coco rfcn_resnet101_coco_2018_01_28
faster_rcnn_resnet101_coco faster_rcnn_resnet101_coco_2018_01_28
faster_rcnn_resnet101_lowproposals_coco faster_rcnn_resnet101_lowproposals_coco_2018_01_28
faster_rcnn_inception_resnet_v2_atrous_coco faster_rcnn_inception_resnet_v2_atrous_coco_2018_01_28
faster_rcnn_inception_resnet_v2_atrous_lowproposals_coco \
faster_rcnn_inception_resnet_v2_atrous_lowproposals_coco_2018_01_28
faster_rcnn_nas faster_rcnn_nas_coco_2018_01_28
faster_rcnn_nas_lowproposals_coco faster_rcnn_nas_lowproposals_coco_2018_01_28
mask_rcnn_inception_resnet_v2_atrous_coco mask_rcnn_inception_resnet_v2_atrous_coco_2018_01_28
mask_rcnn_inception_v2_coco mask_rcnn_inception_v2_coco_2018_01_28
mask_rcnn_resnet101_atrous_coco mask_rcnn_resnet101_atrous_coco_2018_01_28
mask_rcnn_resnet50_atrous_coco mask_rcnn_resnet50_atrous_coco_2018_01_28
ssd_mobiledet_cpu_coco ssdlite_mobiledet_cpu_320x320_coco_2020_05_19
ssd_mobilenet_v2_mnasfpn_coco ssd_mobilenet_v2_mnasfpn_shared_box_predictor_320x320_coco_sync_2020_05_18
ssd_mobilenet_v3_large_coco ssd_mobilenet_v3_large_coco_2020_01_14
ssd_mobilenet_v3_small_coco ssd_mobilenet_v3_small_coco_2020_01_14
ssd_mobiledet_edgetpu_coco ssdlite_mobiledet_edgetpu_320x320_coco_2020_05_19
ssd_mobiledet_dsp_coco ssdlite_mobiledet_dsp_320x320_coco_2020_05_19
faster_rcnn_resnet101_kitti faster_rcnn_resnet101_kitti_2018_01_28
faster_rcnn_inception_resnet_v2_atrous_oidv2 faster_rcnn_inception_resnet_v2_atrous_oid_2018_01_28
faster_rcnn_inception_resnet_v2_atrous_lowproposals_oidv2 \
faster_rcnn_inception_resnet_v2_atrous_lowproposals_oid_2018_01_28
facessd_mobilenet_v2_quantized_open_image_v4 facessd_mobilenet_v2_quantized_320x320_open_image_v4
faster_rcnn_inception_resnet_v2_atrous_oidv4 faster_rcnn_inception_resnet_v2_atrous_oid_v4_2018_12_12
ssd_mobilenetv2_oidv4 ssd_mobilenet_v2_oid_v4_2018_12_12
ssd_resnet_101_fpn_oidv4 ssd_resnet101_v1_fpn_shared_box_predictor_oid_512x512_sync_2019_01_20
faster_rcnn_resnet101_fgvc faster_rcnn_resnet101_fgvc_2018_07_19
faster_rcnn_resnet50_fgvc faster_rcnn_resnet50_fgvc_2018_07_19
faster_rcnn_resnet101_ava_v2.1 faster_rcnn_resnet101_ava_v2.1_2018_04_30
faster_rcnn_resnet101_snapshot_serengeti faster_rcnn_resnet101_snapshot_serengeti_2020_06_10
context_rcnn_resnet101_snapshot_serengeti context_rcnn_resnet101_snapshot_serengeti_2020_06_10
spaghettinet_edgetpu_s tf1/spaghettinet_edgetpu_s_2021_10_13
spaghettinet_edgetpu_m tf1/spaghettinet_edgetpu_m_2021_10_13
spaghettinet_edgetpu_l tf1/spaghettinet_edgetpu_l_2021_10_13
"""

# `date/archive title`, below `tf2/`.
_TF2 = """
20200713/centernet_hg104_512x512_coco17_tpu-8 CenterNet HourGlass104 512x512
20200711/centernet_hg104_512x512_kpts_coco17_tpu-32 CenterNet HourGlass104 Keypoints 512x512
20200713/centernet_hg104_1024x1024_coco17_tpu-32 CenterNet HourGlass104 1024x1024
20200711/centernet_hg104_1024x1024_kpts_coco17_tpu-32 CenterNet HourGlass104 Keypoints 1024x1024
20200711/centernet_resnet50_v1_fpn_512x512_coco17_tpu-8 CenterNet Resnet50 V1 FPN 512x512
20200711/centernet_resnet50_v1_fpn_512x512_kpts_coco17_tpu-8 CenterNet Resnet50 V1 FPN Keypoints 512x512
20200711/centernet_resnet101_v1_fpn_512x512_coco17_tpu-8 CenterNet Resnet101 V1 FPN 512x512
20200711/centernet_resnet50_v2_512x512_coco17_tpu-8 CenterNet Resnet50 V2 512x512
20200711/centernet_resnet50_v2_512x512_kpts_coco17_tpu-8 CenterNet Resnet50 V2 Keypoints 512x512
20210210/centernet_mobilenetv2fpn_512x512_coco17_od CenterNet MobileNetV2 FPN 512x512
20210210/centernet_mobilenetv2fpn_512x512_coco17_kpts CenterNet MobileNetV2 FPN Keypoints 512x512
20200711/efficientdet_d0_coco17_tpu-32 EfficientDet D0 512x512
20200711/efficientdet_d1_coco17_tpu-32 EfficientDet D1 640x640
20200711/efficientdet_d2_coco17_tpu-32 EfficientDet D2 768x768
20200711/efficientdet_d3_coco17_tpu-32 EfficientDet D3 896x896
20200711/efficientdet_d4_coco17_tpu-32 EfficientDet D4 1024x1024
20200711/efficientdet_d5_coco17_tpu-32 EfficientDet D5 1280x1280
20200711/efficientdet_d6_coco17_tpu-32 EfficientDet D6 1280x1280
20200711/efficientdet_d7_coco17_tpu-32 EfficientDet D7 1536x1536
20200711/ssd_mobilenet_v2_320x320_coco17_tpu-8 SSD MobileNet v2 320x320
20200711/ssd_mobilenet_v1_fpn_640x640_coco17_tpu-8 SSD MobileNet V1 FPN 640x640
20200711/ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8 SSD MobileNet V2 FPNLite 320x320
20200711/ssd_mobilenet_v2_fpnlite_640x640_coco17_tpu-8 SSD MobileNet V2 FPNLite 640x640
20200711/ssd_resnet50_v1_fpn_640x640_coco17_tpu-8 SSD ResNet50 V1 FPN 640x640 (RetinaNet50)
20200711/ssd_resnet50_v1_fpn_1024x1024_coco17_tpu-8 SSD ResNet50 V1 FPN 1024x1024 (RetinaNet50)
20200711/ssd_resnet101_v1_fpn_640x640_coco17_tpu-8 SSD ResNet101 V1 FPN 640x640 (RetinaNet101)
20200711/ssd_resnet101_v1_fpn_1024x1024_coco17_tpu-8 SSD ResNet101 V1 FPN 1024x1024 (RetinaNet101)
20200711/ssd_resnet152_v1_fpn_640x640_coco17_tpu-8 SSD ResNet152 V1 FPN 640x640 (RetinaNet152)
20200711/ssd_resnet152_v1_fpn_1024x1024_coco17_tpu-8 SSD ResNet152 V1 FPN 1024x1024 (RetinaNet152)
20200711/faster_rcnn_resnet50_v1_640x640_coco17_tpu-8 Faster R-CNN ResNet50 V1 640x640
20200711/faster_rcnn_resnet50_v1_1024x1024_coco17_tpu-8 Faster R-CNN ResNet50 V1 1024x1024
20200711/faster_rcnn_resnet50_v1_800x1333_coco17_gpu-8 Faster R-CNN ResNet50 V1 800x1333
20200711/faster_rcnn_resnet101_v1_640x640_coco17_tpu-8 Faster R-CNN ResNet101 V1 640x640
20200711/faster_rcnn_resnet101_v1_1024x1024_coco17_tpu-8 Faster R-CNN ResNet101 V1 1024x1024
20200711/faster_rcnn_resnet101_v1_800x1333_coco17_gpu-8 Faster R-CNN ResNet101 V1 800x1333
20200711/faster_rcnn_resnet152_v1_640x640_coco17_tpu-8 Faster R-CNN ResNet152 V1 640x640
20200711/faster_rcnn_resnet152_v1_1024x1024_coco17_tpu-8 Faster R-CNN ResNet152 V1 1024x1024
20200711/faster_rcnn_resnet152_v1_800x1333_coco17_gpu-8 Faster R-CNN ResNet152 V1 800x1333
20200711/faster_rcnn_inception_resnet_v2_640x640_coco17_tpu-8 Faster R-CNN Inception ResNet V2 640x640
20200711/faster_rcnn_inception_resnet_v2_1024x1024_coco17_tpu-8 Faster R-CNN Inception ResNet V2 1024x1024
20200711/mask_rcnn_inception_resnet_v2_1024x1024_coco17_gpu-8 Mask R-CNN Inception ResNet V2 1024x1024
20210507/extremenet ExtremeNet
"""

# Backbones trained on ImageNet, which the published TF2 configs start from: `archive title`.
_CLASSIFICATION = """
efficientnet_b0 EfficientNet B0
efficientnet_b1 EfficientNet B1
efficientnet_b2 EfficientNet B2
efficientnet_b3 EfficientNet B3
efficientnet_b4 EfficientNet B4
efficientnet_b5 EfficientNet B5
efficientnet_b6 EfficientNet B6
efficientnet_b7 EfficientNet B7
resnet50_v1 Resnet V1 50
resnet101_v1 Resnet V1 101
resnet152_v1 Resnet V1 152
inception_resnet_v2 Inception Resnet V2
mobilenet_v1 MobileNet V1
mobilenet_v2 MobileNet V2
"""


def _entry(path: str, title: str, zoo: str, name: str = "", base_url: str = BASE_URL) -> Entry:
    return Entry(name or path.rpartition("/")[2], title, zoo, path + ENDING, base_url)


def _rows(text: str) -> list[list[str]]:
    return [line.split(maxsplit=1) for line in text.split("\n") if line]


ENTRIES: tuple[Entry, ...] = (
    *(_entry(path, title, TF1) for title, path in _rows(_TF1)),
    _entry(
        "mobilenet_edgetpu/checkpoints/ssdlite_mobilenet_edgetpu_coco_quant",
        "ssd_mobilenet_edgetpu_coco",
        TF1,
        base_url="https://storage.cloud.google.com",
    ),
    *(_entry(f"tf2/{path}", title, TF2) for path, title in _rows(_TF2)),
    # Two archives of one name: the table marks this one as superseded.
    _entry("tf2/20200711/extremenet", "ExtremeNet (deprecated)", TF2, name="extremenet_20200711"),
    *(_entry(f"classification/tf2/20200710/{path}", title, CLASSIFICATION) for path, title in _rows(_CLASSIFICATION)),
)

# Published with the downloads of Intel's Open Model Zoo (models/public/*/model.yml), for archives of the TF1 zoo.
CHECKSUMS: dict[str, Checksum] = {
    "ssd_mobilenet_v1_coco_2018_01_28": Checksum(
        "sha256", "8788f89108519fd1102b8a5c2ac861cf6d86603571b6ce5bbd1c245b7fe005e3", 76541073
    ),
    "ssd_mobilenet_v2_coco_2018_03_29": Checksum(
        "sha256", "b9380178b2e35333f1a735e39745928488bdabeb9ed20bc6fa07af8172cb5adc", 187925923
    ),
    "ssdlite_mobilenet_v2_coco_2018_05_09": Checksum(
        "sha256", "542445cce834dbfbb7df1991425d475e85a2d7ec68c60a4f262bb18aac10c8b2"
    ),
    "ssd_mobilenet_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03": Checksum(
        "sha256", "e8886ece7f3a0993678440305a98f5be649a90b314c95ca94565c23ed20b1fb0", 135664441
    ),
    "ssd_resnet50_v1_fpn_shared_box_predictor_640x640_coco14_sync_2018_07_03": Checksum(
        "sha256", "b5ff24a4a013130ebbbf5da71fbbd05a5df27825184632899650f45833ffb66b", 366947246
    ),
    "faster_rcnn_resnet50_coco_2018_01_28": Checksum(
        "sha256", "0f898f96d6c416de192c516fb6fa773ae9f5ee253eb2ab4015445fbd6eb0ab76", 381355771
    ),
    "faster_rcnn_resnet101_coco_2018_01_28": Checksum(
        "sha384",
        "d39799f52422740e78f66b9f8df2c360b232fb39a1d895d89dbebf71c4a9e65369b8d42f52e442552f13d11fe23ca758",
        593445323,
    ),
    "faster_rcnn_inception_v2_coco_2018_01_28": Checksum(
        "sha256", "db3295e9a52d406540e84bdd056edeedbf938782a7bc4af7918aaa5dc30f0df5", 149119618
    ),
    "faster_rcnn_inception_resnet_v2_atrous_coco_2018_01_28": Checksum(
        "sha384",
        "4b44a30cd9b989bc1c0d2f247977389a7daab590a0154b333d80a23fafa9570de6a4bc38226ee67c5cdd5549d8ea96d5",
        672221478,
    ),
    "mask_rcnn_inception_v2_coco_2018_01_28": Checksum(
        "sha256", "4f57861c2ff1c87e92495789ee266e41a7dc79a038521d93a153be403b0b601f", 177817887
    ),
    "mask_rcnn_resnet50_atrous_coco_2018_01_28": Checksum(
        "sha256", "f3741f099bdb414e172cc8cc41370213a41afd04d7aa970f7854f09a75172481", 449505463
    ),
}

"""MobileDet for CPU, DSP, EdgeTPU and GPU: SSD. Types of the OD API's TF1 half."""

from __future__ import annotations

from od_finetune.config import necks
from od_finetune.config.rows import Family, Row
from od_finetune.models.backbones import mobiledet
from od_finetune.models.backbones.mobiledet import Architecture


def _row(architecture: Architecture, hardware: str) -> Row:
    family = Family(
        backbone=mobiledet.MobileDet,
        scope=f"FeatureExtractor/MobileDet{hardware}",
        override=mobiledet.override,
        backbone_rules=[],
        vocabularies=(),
        last_layer=0,  # nothing is named after it
    )
    return Row(
        family=family,
        defaults=mobiledet.DEFAULTS,
        keras=False,
        neck=necks.build_multires,
        levels=("C4", "C5"),
        tf2_scope=f"ssd_mobile_det_{hardware.lower()}_feature_extractor",
        arguments={"architecture": architecture},
    )


ROWS: dict[str, Row] = {
    "ssd_mobiledet_cpu": _row(mobiledet.CPU, "CPU"),
    "ssd_mobiledet_dsp": _row(mobiledet.DSP, "DSP"),
    "ssd_mobiledet_edgetpu": _row(mobiledet.EDGETPU, "EdgeTPU"),
    "ssd_mobiledet_gpu": _row(mobiledet.GPU, "GPU"),
}

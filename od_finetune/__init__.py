"""Fine-tuning of object detectors from a TensorFlow Object Detection API `pipeline.config`."""

__version__ = "0.1.0"

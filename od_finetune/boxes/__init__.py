"""Pure tensor maths on boxes: anchors, coders, matching, targets, losses, post-processing. Knows no config."""

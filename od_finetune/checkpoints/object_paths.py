"""Object paths of the OD API's TF2 checkpoints."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from od_finetune import object_keys
from od_finetune.errors import UserError
from od_finetune.fields import Detector, ObjectTree
from od_finetune.names import is_numbered


def of_numbered(detector: Detector, tf2_names: Mapping[str, str]) -> dict[str, str]:
    """Path by canonical name of the variables whose full name depends on what else a program creates; none where the
    OD API's TF2 half has no such detector."""
    numbered = [name for name, tf2_name in tf2_names.items() if is_numbered(tf2_name)]
    try:
        paths = object_paths(detector.tf2_objects()) if numbered else {}
    except UserError:
        return {}
    return {name: paths[name] for name in numbered if name in paths}


def object_paths(detector: ObjectTree) -> dict[str, str]:
    """Object path by canonical name of the variables below a detector's node, as TensorFlow finds them: by the first of
    the shortest ways from the root, `model/_feature_extractor/...`."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    queue: collections.deque[tuple[str, ObjectTree | str]] = collections.deque([(object_keys.MODEL, detector)])
    while queue:
        path, item = queue.popleft()
        if isinstance(item, str):
            found.setdefault(item, path)
        elif id(item) not in seen:
            seen.add(id(item))
            queue.extend((f"{path}/{object_keys.escape(name)}", child) for name, child in item.items())
    return found

from __future__ import annotations

import pytest

from od_finetune.checkpoints.class_match import ANEW, MEAN, RENAMED, SAME_NAME, ClassNames, match, near_misses
from od_finetune.data.label_map import Label
from od_finetune.errors import UserError


def names(*entries, path="map.pbtxt"):
    """Classes with ids from 1; an entry is a name or (name, display name)."""
    pairs = [entry if isinstance(entry, tuple) else (entry, entry) for entry in entries]
    return ClassNames([Label(i, *pair) for i, pair in enumerate(pairs, 1)], path)


SOURCE = names("star", "ring", "house", "fish", path="source.pbtxt")
TARGET = names("mug", "star", "ring", path="target.pbtxt")


def by_name(starts):
    return {start.name: (start.how, start.sources, start.source_ids) for start in starts}


def test_classes_are_carried_over_by_name_and_others_start_anew():
    starts = match(SOURCE, TARGET)
    assert [start.id for start in starts] == [1, 2, 3]
    assert by_name(starts) == {
        "mug": (ANEW, (), ()), "star": (SAME_NAME, ("star",), (1,)), "ring": (SAME_NAME, ("ring",), (2,)),
    }  # fmt: skip
    assert [start.carried for start in starts] == [False, True, True]


def test_a_new_class_starts_from_the_mean_of_named_parents():
    starts = by_name(match(SOURCE, TARGET, new=[("mug", ("house", "fish"))]))
    assert starts["mug"] == (MEAN, ("house", "fish"), (3, 4))


def test_a_new_class_without_parents_starts_anew_even_if_its_name_is_known():
    assert by_name(match(SOURCE, TARGET, new=[("star", ())]))["star"] == (ANEW, (), ())


def test_a_renamed_class_is_no_longer_known_by_its_own_name():
    starts = by_name(match(SOURCE, TARGET, rename=[("star", "ring"), ("ring", "star")]))
    assert starts["star"] == (RENAMED, ("ring",), (2,))
    assert starts["ring"] == (RENAMED, ("star",), (1,))
    starts = by_name(match(SOURCE, TARGET, rename=[("star", "mug")]))
    assert starts["mug"] == (RENAMED, ("star",), (1,)) and starts["star"] == (ANEW, (), ())


def test_display_names_serve_where_names_do_not():
    coco = names(("/m/01g317", "person"), ("/m/0199g", "bicycle"), path="coco.pbtxt")
    assert by_name(match(coco, names("person")))["person"] == (SAME_NAME, ("/m/01g317",), (1,))
    assert by_name(match(names("person"), coco))["/m/01g317"] == (SAME_NAME, ("person",), (1,))
    starts = by_name(match(coco, names("walker"), rename=[("person", "walker")]))
    assert starts["walker"] == (RENAMED, ("/m/01g317",), (1,))


def test_gaps_in_the_ids_are_kept():
    coco = ClassNames([Label(1, "person", "person"), Label(13, "stop sign", "stop sign")], "coco.pbtxt")
    assert by_name(match(coco, names("stop sign")))["stop sign"][2] == (13,)


@pytest.mark.parametrize(
    "rename, new, said",
    [
        ([("stra", "star")], [], r"rename\[0\].from: 'stra' is no class of source.pbtxt. The nearest it has: 'star'"),
        ([("star", "mugg")], [], r"rename\[0\].to: 'mugg' is no class of target.pbtxt. The nearest it has: 'mug'"),
        ([("star", "mug"), ("ring", "mug")], [], r"rename\[1\].to: 'mug' already is the new name of 'star'"),
        ([("star", "mug"), ("star", "ring")], [], r"rename\[1\].from: 'star' already became 'mug'.*init_from"),
        ([], [("cup", ("fish",))], r"new_class\[0\].name: 'cup' is no class of target.pbtxt. It has|nearest"),
        ([], [("mug", ("fsh",))], r"new_class\[0\].init_from\[0\]: 'fsh' is no class of source.pbtxt.*'fish'"),
        ([], [("mug", ("fish", "fish"))], r"new_class\[0\].init_from: names 'fish' twice"),
        ([], [("mug", ("fish",)), ("mug", ())], r"new_class\[1\].name: 'mug' already has a start"),
        ([("star", "mug")], [("mug", ("fish",))], r"new_class\[0\].name: 'mug' already has a start"),
        ([("", "mug")], [], r"rename\[0\].from: '' is no class of source.pbtxt. It has 'star'"),
    ],
)
def test_wrong_names_are_refused(rename, new, said):
    with pytest.raises(UserError, match=said):
        match(SOURCE, TARGET, rename, new)


def test_a_transfer_of_nothing_is_refused():
    with pytest.raises(UserError, match="no class of target.pbtxt .'cat'. is in source.pbtxt .*rename .* new_class"):
        match(SOURCE, names("cat", path="target.pbtxt"))


def test_another_spelling_is_pointed_out():
    target = names("Star", "ring", "hot_dog")
    source = names("star", "ring", "hot dog")
    assert near_misses(source, match(source, target)) == {"Star": "star", "hot_dog": "hot dog"}
    assert near_misses(SOURCE, match(SOURCE, TARGET)) == {}

from __future__ import annotations

import pytest

from od_finetune import text_table


def test_columns_are_aligned():
    rows = [["scope", "trained", "pattern"], ["a/b", "12", "x"], ["total", "3", ""]]
    assert text_table.lines(rows, numbers=[1]) == [
        "scope  trained  pattern",
        "a/b         12  x",
        "total        3",
    ]


def test_rows_have_one_length():
    with pytest.raises(ValueError):
        text_table.lines([["a", "b"], ["c"]])

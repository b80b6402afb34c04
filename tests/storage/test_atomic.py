"""Atomic writes: a path holds the old content or the new one, whatever happens in between."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_probsft.storage.atomic import atomic_write, link, partial_of, recover, remove, tidy
from tests.storage.trees import empty_folder, folders, names, quick, read, trees, write


@quick
@given(trees, trees | st.none(), trees | st.none())
def test_an_atomic_write_replaces_the_old_content_at_once(new: Any, old: Any, leftover: Any) -> None:
    """Also if an earlier attempt left a partial path. A folder does not replace a file."""
    refused = isinstance(new, dict) and isinstance(old, bytes)
    with empty_folder() as folder:
        target = folder / "a" / "target"
        target.parent.mkdir()
        for tree, path in ((old, target), (leftover, partial_of(target))):
            if tree is not None:
                write(tree, path)
        with pytest.raises(NotADirectoryError) if refused else nullcontext(), atomic_write(target) as partial:
            assert not os.path.lexists(partial)
            write(new, partial)
            assert read(target) == old
        assert read(folder) == {"a": {"target": old if refused else new}}


class OtherError(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


@quick
@given(
    trees | st.none(),
    trees | st.none(),
    st.sampled_from([OSError, ValueError, KeyboardInterrupt, SystemExit, OtherError]),
)
def test_an_error_while_writing_leaves_the_old_content(half: Any, old: Any, kind: type[BaseException]) -> None:
    with empty_folder() as folder:
        target, before = folder / "target", {} if old is None else {"target": old}
        if old is not None:
            write(old, target)
        with pytest.raises(kind), atomic_write(target) as partial:
            if half is not None:
                write(half, partial)
            raise kind
        assert read(folder) == before


@quick
@given(trees | st.none())
def test_a_writer_that_writes_nothing_leaves_the_old_content(old: Any) -> None:
    with empty_folder() as folder:
        target, before = folder / "target", {} if old is None else {"target": old}
        if old is not None:
            write(old, target)
        with pytest.raises(FileNotFoundError), atomic_write(target):
            pass
        assert read(folder) == before


@quick
@given(trees, folders, st.booleans())
def test_the_next_write_restores_a_folder_that_a_crash_left_renamed(new: Any, old: Any, fails: bool) -> None:
    """The crash came between the two renames. The next write of that path may fail or succeed."""
    with empty_folder() as folder:
        target = folder / "target"
        write(old, folder / ".target.old")
        write(new, partial_of(target))
        try:
            with atomic_write(target) as partial:
                assert read(target) == old
                write(new, partial)
                if fails:
                    raise OtherError
        except OtherError:
            assert read(folder) == {"target": old}
        else:
            assert read(folder) == {"target": new}


@quick
@given(trees | st.none(), folders)
def test_recover_restores_only_a_missing_folder(existing: Any, renamed: Any) -> None:
    with empty_folder() as folder:
        if existing is not None:
            write(existing, folder / "target")
        write(renamed, folder / ".target.old")
        recover(folder / "target")
        assert read(folder / "target") == (renamed if existing is None else existing)


@quick
@given(st.dictionaries(names, trees, max_size=4), st.dictionaries(names, trees, max_size=4))
def test_tidy_removes_leftovers_and_nothing_else(kept: Any, doomed: Any) -> None:
    kept = {name: tree for name, tree in kept.items() if not (name[0] == "." and Path(name).suffix)}
    endings = ("partial", "old", "deleted")
    with empty_folder() as folder:
        write(kept, folder)
        for index, tree in enumerate(doomed.values()):
            write(tree, folder / f".{index}.ckpt.{endings[index % 3]}")
        tidy(folder)
        assert read(folder) == kept


@quick
@given(st.dictionaries(names, trees, min_size=1, max_size=3), st.data())
def test_remove_deletes_one_path_and_follows_no_link(tree: Any, data: Any) -> None:
    with empty_folder() as folder:
        inside = folder / "inside"
        write(tree, inside)
        (folder / "link").symlink_to("inside")
        remove(folder / "link")
        assert read(folder) == {"inside": tree}
        name = data.draw(st.sampled_from(sorted(tree)))
        remove(inside / name)
        assert read(inside) == {other: content for other, content in tree.items() if other != name}
        remove(inside / name)


@quick
@given(st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=4))
def test_a_link_leads_to_its_last_target(targets: list[str]) -> None:
    """For files and folders in any order, the same target twice; and no leftovers remain."""
    content: dict[str, Any] = {"one": b"1", "two": {"a": b"2"}, "three": b"3", "four": {"b": b"4"}}
    with empty_folder() as folder:
        write(content, folder)
        for target in targets:
            link(folder / "last", folder / target)
            assert read(folder) == {**content, "last": content[target]}


def test_the_link_to_a_file_outlives_the_file(tmp_path: Path) -> None:
    write({"step": b"1", "folder": {"a": b"2"}}, tmp_path)
    link(tmp_path / "last", tmp_path / "step")
    remove(tmp_path / "step")
    assert (tmp_path / "last").read_bytes() == b"1"
    # The link to a folder is relative, so both can be moved together.
    link(tmp_path / "last", tmp_path / "folder")
    (tmp_path / "moved").mkdir()
    for name in ("folder", "last"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert read(tmp_path / "moved/last") == {"a": b"2"}


def test_a_link_is_symbolic_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    write({"a": b"1", "b": b"2"}, tmp_path)
    for name in ("a", "b"):
        link(tmp_path / "last", tmp_path / name)
    assert os.readlink(tmp_path / "last") == "b"
    assert read(tmp_path) == {"a": b"1", "b": b"2", "last": b"2"}

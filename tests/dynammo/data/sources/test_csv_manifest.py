from __future__ import annotations

from pathlib import Path

import pytest

from dynammo.data.sources import folder
from dynammo.data.sources.csv_manifest import load, read
from dynammo.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("one.png", "two.png", "sub/three.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def write(root: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = root / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_rows_become_samples(root: Path) -> None:
    path = write(
        root,
        "file,split,class,group,comment",
        "two.png,train,b,p1,hello",
        "",
        'sub/three.png,test,"b, c",,',
        " one.png , train, a ,  ,",
    )
    image_set = load(path)
    assert [(s.file, s.split, s.label, s.group) for s in image_set.samples] == [
        ("sub/three.png", "test", "b, c", None),
        ("one.png", "train", "a", None),
        ("two.png", "train", "b", "p1"),
    ]
    assert image_set.root == root
    assert load(root) == image_set


def test_group_is_optional_and_excel_is_understood(root: Path) -> None:
    write(root, "class,split,file", "a,train,./one.png", "a,test,two.png", encoding="utf-8-sig")
    files = [(sample.file, sample.group) for sample in load(root).samples]
    assert files == [("two.png", None), ("one.png", None)]


def test_a_csv_without_groups_lists_what_the_folders_hold(tmp_path: Path) -> None:
    files = [f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(file)
    rows = [",".join([file, *file.split("/")[:2]]) for file in files]
    assert load(write(tmp_path, "file,split,class", *rows)) == folder.load(tmp_path)


def test_all_problems_are_reported_at_once_with_their_lines(root: Path) -> None:
    write(
        root,
        "file,split,class,group",
        "one.png,train,a,",
        "two.png,val,a,",
        "two.png,train,,",
        "gone.png,train,a,",
        "./one.png,test,a,",
        "../one.png,train,a,",
        f"{root}/one.png,train,a,",
        ",train,a,",
        "sub/three.png",
    )
    with pytest.raises(DataError) as caught:
        load(root)
    assert caught.value.problems == [
        "manifest.csv line 3: unknown split 'val'; expected train or test",
        "manifest.csv line 4: empty class",
        "manifest.csv line 4: two.png is listed already in line 3",
        f"manifest.csv line 5: no file gone.png in {root}",
        "manifest.csv line 6: ./one.png is listed already in line 2",
        f"manifest.csv line 7: ../one.png is outside {root}; expected a path inside it",
        f"manifest.csv line 8: {root}/one.png is outside {root}; expected a path inside it",
        "manifest.csv line 9: empty file",
        "manifest.csv line 10: unknown split ''; expected train or test",
        "manifest.csv line 10: empty class",
    ]


def test_line_numbers_count_lines_of_the_file(root: Path) -> None:
    write(root, "file,split,class,note", 'one.png,train,a,"two', 'lines"', "", "two.png,x,a,")
    with pytest.raises(DataError, match="line 5: unknown split 'x'"):
        load(root)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,label", "line 1: missing columns split, class; .* got file,label"),
        ("file;split;class", "line 1: missing columns file, split, class; .* got file;split;class"),
        ("", "missing columns file, split, class; .* got nothing"),
        ("file,split,class", "no images listed"),
    ],
)
def test_headers(header: str, message: str, root: Path) -> None:
    with pytest.raises(DataError, match=rf"manifest\.csv.*{message}"):
        load(write(root, header))


def test_unreadable_csv(root: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*manifest\.csv: No such file"):
        load(root)
    (root / "manifest.csv").write_bytes(b"file,split,class\n\xff\xfe,train,a\n")
    with pytest.raises(DataError, match="is not a CSV in UTF-8"):
        load(root)


def test_further_columns_are_kept_where_asked_for(root: Path) -> None:
    path = write(root, "file,split,class,sex,age", "one.png,train,a,f,40-59", "two.png,test,a,,60+")
    assert [sample.columns for sample in load(path).samples] == [(), ()]
    test, train = read(path, columns=["age", "sex"]).samples
    assert train.columns == (("age", "40-59"), ("sex", "f"))
    assert test.columns == (("age", "60+"), ("sex", ""))
    with pytest.raises(DataError, match=r"missing columns site, which are asked for"):
        read(path, columns=["sex", "site"])
    long = write(root, "file,split,class,sex", f"one.png,train,a,{'x' * 33}")
    with pytest.raises(DataError, match=r"line 2: sex 'x+' is longer than 32 bytes"):
        read(long, columns=["sex"])

"""Annotation lists and class-name files: what is read, and the one line of every error."""

import json
import re

import pytest

from video_datasets.annotations import AnnotationError, VideoRecord, labels_text, read_annotations, read_class_names


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_reads_lines_with_spaces_blank_lines_bom_and_windows_ends(tmp_path):
    path = write(tmp_path / "list.txt", "\ufeffa b/c d.mp4 3\r\n\r\n\tv_x.avi\t0\r\nwith\u2028separator.mp4 12\r\n")
    assert read_annotations(path) == [
        VideoRecord("a b/c d.mp4", 3),
        VideoRecord("v_x.avi", 0),
        VideoRecord("with\u2028separator.mp4", 12),
    ]


def test_reads_json(tmp_path):
    entries = [{"filename": "x y.mp4", "label": [4]}, {"filename": "z.webm", "label": 0}]
    path = write(tmp_path / "list.json", json.dumps(entries))
    assert read_annotations(path, num_classes=5) == [VideoRecord("x y.mp4", 4), VideoRecord("z.webm", 0)]


def test_reads_several_classes_a_video(tmp_path):
    path = write(tmp_path / "list.txt", "a b.mp4 3,0\nc.mp4 -\nd.mp4\t2,1\t0.5\t2\ne.mp4 4\n")
    entries = [{"filename": "a b.mp4", "label": [3, 0]}, {"filename": "c.mp4", "label": []}]
    found = read_annotations(path, 5, multi_label=True)
    assert [(record.path, record.labels) for record in found] == [
        ("a b.mp4", (3, 0)),
        ("c.mp4", ()),
        ("d.mp4#t=0.5,2", (2, 1)),
        ("e.mp4", (4,)),
    ]
    json_path = write(tmp_path / "list.json", json.dumps(entries))
    assert read_annotations(json_path, 5, multi_label=True) == found[:2]
    assert [labels_text(record.labels) for record in found] == ["3,0", "-", "2,1", "4"]
    for name in (path, json_path):
        with pytest.raises(AnnotationError, match="'a b.mp4' has 3,0, one class is needed here; .* loss=sigmoid"):
            read_annotations(name, 5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4 1,5", "label 5 of 'a.mp4' is out of range, labels are 0..4"),
        ("a.mp4 1,1", "'a.mp4' has the label 1 twice"),
        ("a.mp4 1,", "the label '1,' is not an integer"),
        ("a.mp4 1,2\na.mp4 3", "'a.mp4' is listed with label 3, before with label 1,2"),
    ],
)
def test_wrong_lines_of_several_classes(tmp_path, line, message):
    with pytest.raises(AnnotationError, match=re.escape(message)):
        read_annotations(write(tmp_path / "list.txt", line), 5, multi_label=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", "", "{path}: the list has no videos"),
        ("list.txt", "\n \n", "{path}: the list has no videos"),
        ("list.txt", "a.mp4 0\nb.mp4\n", "{path}:2: expected `path label`, found 'b.mp4'"),
        ("list.txt", "a.mp4 0\n\nb.mp4 x1\n", "{path}:3: expected `path label`, the label 'x1' is not an integer"),
        ("list.txt", "a.mp4 1.0\n", "{path}:1: expected `path label`, the label '1.0' is not an integer"),
        ("list.txt", "a.mp4 1_0\n", "{path}:1: expected `path label`, the label '1_0' is not an integer"),
        ("list.txt", "a.mp4 \u0663\n", "{path}:1: expected `path label`, the label '\u0663' is not an integer"),
        ("list.txt", "a.mp4 0\rb.mp4 x\r", "{path}:2: expected `path label`, the label 'x' is not an integer"),
        ("list.json", "[" * 200_000, "{path}: is not JSON: is nested too deeply"),
        ("list.txt", "a.mp4 7\n", "{path}:1: label 7 of 'a.mp4' is out of range, labels are 0..6"),
        ("list.txt", "a.mp4 -1\n", "{path}:1: label -1 of 'a.mp4' is out of range, labels are 0..6"),
        ("list.txt", "a.mp4 1\nb.mp4 1\na.mp4 1\n", "{path}:3: 'a.mp4' is listed again; first at {path}:1"),
        (
            "list.txt",
            "a.mp4 1\na.mp4 2\n",
            "{path}:2: 'a.mp4' is listed with label 2, before with label 1; first at {path}:1",
        ),
        ("list.json", '{"a": 1}', '{path}: expected a list of {{"filename": ..., "label": [...]}}'),
        ("list.json", '[\n{"filename": }\n]', "{path}:2: is not JSON: Expecting value"),
        ("list.json", '[{"label": [1]}]', '{path}: entry 0: has no "filename"'),
        ("list.json", '["a.mp4"]', '{path}: entry 0: has no "filename"'),
        (
            "list.json",
            '[{"filename": "a", "label": [1, 2]}]',
            "{path}: entry 0: 'a' has 1,2, one class is needed here; training and evaluation take any number of "
            "classes with loss=sigmoid",
        ),
        (
            "list.json",
            '[{"filename": "a", "label": true}]',
            "{path}: entry 0: the \"label\" of 'a' must be one integer, found True",
        ),
    ],
)
def test_wrong_lists_are_one_clear_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, num_classes=7)
    assert str(caught.value) == message.format(path=path)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(AnnotationError, match=r"none\.txt: cannot be read: No such file"):
        read_annotations(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"ab\xff\xfe")
    with pytest.raises(AnnotationError, match=r"binary\.txt: is not UTF-8 text \(byte 2\)"):
        read_annotations(tmp_path / "binary.txt")


def test_numbers_of_thousands_of_digits_and_giant_files(tmp_path, monkeypatch):
    path = write(tmp_path / "list.json", '[{"filename": "a", "label": ' + "9" * 5000 + "}]")
    with pytest.raises(AnnotationError, match=r"list\.json: is not JSON: Exceeds the limit"):
        read_annotations(path)
    monkeypatch.setattr("video_datasets.text_files.MAX_BYTES", 1 << 20)
    path = write(tmp_path / "list.txt", "a.mp4 0\n" * 200_000)
    with pytest.raises(AnnotationError, match=r"list\.txt: is larger than 1 MB"):
        read_annotations(path)


def test_lists_with_the_line_ends_of_old_macs(tmp_path):
    path = write(tmp_path / "list.txt", "a b.mp4 0\rc.mp4 1\r")
    assert read_annotations(path) == [VideoRecord("a b.mp4", 0), VideoRecord("c.mp4", 1)]


def test_class_names_by_id_from_both_formats(tmp_path):
    names = ["abseiling", "massaging person's head, slowly", 'fold "it"']
    csv_path = write(
        tmp_path / "labels.csv",
        '\ufeffid,name\r\n2,"fold ""it"""\r\n0,abseiling\r\n\r\n1,"massaging person\'s head, slowly"\r\n',
    )
    json_path = write(tmp_path / "labels.json", json.dumps({str(i): names[i] for i in (1, 0, 2)}))
    assert read_class_names(csv_path) == names
    assert read_class_names(json_path) == names
    headless = write(tmp_path / "headless.csv", "0,a\n1,b\n")
    assert read_class_names(headless) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "", "{path}: the file has no classes"),
        ("labels.csv", "id,name\n", "{path}: the file has no classes"),
        ("labels.csv", "label,text\n0,a\n", "{path}:1: the id 'label' is not an integer"),
        (
            "labels.csv",
            "id,name\n0,a\n2,b\n",
            "{path}: the ids of 2 classes are 0..1, but 1 is missing and 2 is used",
        ),
        (
            "labels.csv",
            "id,name\n1,a\n2,b\n",
            "{path}: the ids of 2 classes are 0..1, but 0 is missing and 2 is used",
        ),
        ("labels.csv", "id,name\n0,a\n0,b\n", "{path}:3: class 0 is named twice, 'a' and 'b'"),
        ("labels.csv", "id,name\n0,a\n1,a\n", "{path}:3: classes 0 and 1 share the name 'a'"),
        ("labels.csv", "id,name\n0, \n", "{path}:2: class 0 has an empty name"),
        (
            "labels.csv",
            "id,name\n0,a, b\n",
            "{path}:2: expected `id,name` (quotes around a name with commas), found 3 cells",
        ),
        ("labels.json", "[1]", '{path}: expected an object {{"0": "name", ...}}'),
        ("labels.json", '{"x": "a"}', "{path}: the id 'x' is not an integer"),
        ("labels.json", '{"0": "a", "0": "b"}', "{path}: class 0 is named twice, 'a' and 'b'"),
        ("labels.json", '{"0": ["a"]}', "{path}: the name of class 0 is not text: ['a']"),
    ],
)
def test_wrong_class_names_are_one_clear_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(AnnotationError) as caught:
        read_class_names(path)
    assert str(caught.value) == message.format(path=path)

"""The files of a run: what an interruption leaves is kept, what it cut short is dropped, what is foreign is refused."""

import json

import pytest

from intsmooth_ref.certify import results
from intsmooth_ref.errors import ResultFileError

COLUMNS = ("idx", "label", "predict", "radius", "correct")


def record(index):
    return {"idx": index, "label": 3, "predict": 3, "radius": "0.123456", "correct": 1, "seed": 2**64 - 1}


def written(path, indices, seconds=0.5):
    with results.ResultFiles(path, COLUMNS) as files:
        for index in indices:
            files.append(record(index), seconds)
    return path


def test_the_table_is_what_the_smoothing_scripts_read(tmp_path):
    table = written(tmp_path / "a.tsv", [0, 20], seconds=3723.25)
    assert table.read_text() == (
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
        "0\t3\t3\t0.123456\t1\t1:02:03.250000\n"
        "20\t3\t3\t0.123456\t1\t1:02:03.250000\n"
    )
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(0), record(20)]


@pytest.mark.parametrize("cut_table", [0, 1, 30, 45])
@pytest.mark.parametrize("cut_records", [0, 1, 40, 110])
def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path, cut_table, cut_records):
    whole = written(tmp_path / "whole.tsv", range(4))
    part = written(tmp_path / "part.tsv", range(3))
    for path, cut in ((part, cut_table), (results.records_path(part), cut_records)):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - cut])
    with results.ResultFiles(part, COLUMNS) as files:
        assert [each["idx"] for each in files.records] == list(range(len(files.records)))
        for index in range(len(files.records), 4):
            files.append(record(index), 0.5)
    assert part.read_bytes() == whole.read_bytes()
    assert results.records_path(part).read_bytes() == results.records_path(whole).read_bytes()


def test_lines_that_are_complete_are_not_written_again(tmp_path):
    table = written(tmp_path / "a.tsv", range(2))
    inode = table.stat().st_ino
    table.write_bytes(table.read_bytes() + b"2\t3")
    with results.ResultFiles(table, COLUMNS) as files:
        assert len(files.records) == 2
    assert table.stat().st_ino == inode and table.read_text().count("\n") == 3


def test_earlier_results_are_moved_aside_both_files_by_one_number(tmp_path):
    table = written(tmp_path / "a.tsv", [0])
    (tmp_path / "a.jsonl.1").write_text("older")
    transcript = tmp_path / "t.jsonl"
    files = results.files_of(table, transcript)
    records = tmp_path / "a.jsonl"
    assert files == [table, records, transcript]
    assert results.move_aside(files) == {table: tmp_path / "a.tsv.2", records: tmp_path / "a.jsonl.2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.1", "a.jsonl.2", "a.tsv.2"]
    assert results.move_aside(files) == {}


@pytest.mark.parametrize(
    ("table", "records", "message"),
    [
        ("something else\n", "", "found the header 'something else'"),
        ("idx\tlabel\tpredict\tcorrect\ttime\n", "", "found the header"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n1\t2\n", '{"idx":0}\n', "expected image 0"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t2\n", "no json\n", "line 1: found 'no json'"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t2\n", "[1]\n", "line 1"),
        (b"\xff\xfe\n", "", "bytes that are no text"),
    ],
)
def test_foreign_files_are_refused_and_stay_as_they_are(tmp_path, table, records, message):
    path = tmp_path / "a.tsv"
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    results.records_path(path).write_text(records)
    before = path.read_bytes(), results.records_path(path).read_bytes()
    with pytest.raises(ResultFileError, match=message):
        results.ResultFiles(path, COLUMNS)
    assert before == (path.read_bytes(), results.records_path(path).read_bytes())


def test_a_file_that_cannot_be_is_refused_in_one_line(tmp_path):
    (tmp_path / "folder.tsv").mkdir()
    for path, message in (
        (tmp_path / "missing" / "a.tsv", "No such file or directory"),
        (tmp_path / "folder.tsv", "is no regular file"),
        (tmp_path / "a.jsonl", "expected .tsv"),
    ):
        with pytest.raises(ResultFileError, match=message) as error:
            results.ResultFiles(path, COLUMNS)
        assert "\n" not in str(error.value)


def test_a_run_with_other_parameters_or_images_is_not_resumed(tmp_path):
    records, table = [record(0), record(1)], tmp_path / "a.tsv"
    results.check_continues(records, [{"idx": 0, "seed": 2**64 - 1}, {"idx": 1}, {"idx": 2}], table)
    with pytest.raises(ResultFileError, match="line 1: was begun with seed 18446744073709551615, .* with seed 8"):
        results.check_continues(records, [{"seed": 8}, {}], table)
    with pytest.raises(ResultFileError, match="line 2: was begun with idx 1, .* with idx 20"):
        results.check_continues(records, [{"idx": 0}, {"idx": 20}], table)
    with pytest.raises(ResultFileError, match="holds 2 images already, more than the 1"):
        results.check_continues(records, [{}], table)

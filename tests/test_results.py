"""The files of a run: what an interruption leaves is kept, what it cut short is dropped, what is foreign is refused."""

import io
import json
import os

import pytest

from intsmooth_ref.certify import results
from intsmooth_ref.certify.smoothing import SmoothedClassifier
from intsmooth_ref.certify.transcript import canonical_line
from intsmooth_ref.errors import ResultFileError
from threshold_model import flat_image, threshold_model

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
    line = '{"idx":%d,"label":3,"predict":3,"radius":"0.123456","correct":1,"seed":18446744073709551615}\n'
    assert (tmp_path / "a.jsonl").read_text() == line % 0 + line % 20
    assert results.table_line(record(0), COLUMNS, 0.1234567).endswith("\t0:00:00.123457")


def test_every_line_is_on_the_disk_before_the_next_is_computed(tmp_path):
    with results.ResultFiles(tmp_path / "a.tsv", COLUMNS) as files:
        for index in range(3):
            files.append(record(index), 0.5)
            assert len(files.records) == index + 1
            assert (tmp_path / "a.tsv").read_text().count("\n") == index + 2
            assert (tmp_path / "a.jsonl").read_text().count("\n") == index + 1


def test_a_line_is_written_whole_where_the_system_takes_it_piece_by_piece(tmp_path, monkeypatch):
    class Slow(io.FileIO):
        def write(self, data):
            return super().write(data[:7])

    monkeypatch.setattr("builtins.open", lambda path, mode, buffering: Slow(path, mode.replace("b", "")))
    with results.ResultFiles(tmp_path / "a.tsv", ()) as files:
        files.append(record(0), 0.5)
    monkeypatch.undo()
    assert json.loads((tmp_path / "a.jsonl").read_text()) == record(0)


def test_a_run_is_known_by_its_first_record(tmp_path):
    table = tmp_path / "a.tsv"
    assert results.read_run(table) is None
    results.records_path(table).write_text('{"idx":0')  # cut short
    assert results.read_run(table) is None
    assert results.read_run(written(tmp_path / "b.tsv", [4, 5])) == record(4)
    (tmp_path / "c.jsonl").mkdir()
    with pytest.raises(ResultFileError, match="c.jsonl: cannot be read: Is a directory"):
        results.read_run(tmp_path / "c.tsv")


@pytest.fixture(scope="module")
def certified():
    """Records and certificates of two images."""
    classifier, found = SmoothedClassifier(threshold_model(), "0.25", seed=3, engine="reference"), []
    for index in range(2):
        certificate = classifier.certify(flat_image(150), 10, 20, index=index)
        document = classifier.document(certificate, "0" * 64, label=1)
        of_image = {"idx": index, "label": 1, "predict": certificate.prediction, "radius": certificate.radius,
                    "radius_sq": certificate.radius_sq, "selection_votes": list(certificate.selection_votes),
                    "estimation_votes": list(certificate.estimation_votes), "correct": 1}  # fmt: skip
        of_run = {"image_sha256": "0" * 64, "n0": 10, "n": 20, "alpha": "1/1000", "noise": "discrete_gaussian",
                  "sigma_levels": "255/4", "seed": 3, "model_sha256": document.model_sha256}  # fmt: skip
        found.append(({**of_image, **of_run}, canonical_line(document)))
    return found


def all_written(folder, certified):
    folder.mkdir(exist_ok=True)
    with results.ResultFiles(folder / "a.tsv", COLUMNS, folder / "t.jsonl") as files:
        for each, certificate in certified[len(files.records) :]:
            files.append(each, 0.5, certificate)
    return [(folder / name).read_bytes() for name in ("a.tsv", "a.jsonl", "t.jsonl")]


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4, 5])
def test_whichever_file_a_failure_leaves_behind_the_run_goes_on_to_the_same_bytes(
    writes, certified, tmp_path, monkeypatch
):
    write_line, left = results._write_line, [None] * writes

    def failing(file, data):
        if not left:
            raise OSError(28, "No space left on device")
        left.pop()
        write_line(file, data)

    monkeypatch.setattr(results, "_write_line", failing)
    with pytest.raises(ResultFileError, match=f"No space left on device; {writes // 3} images are complete"):
        all_written(tmp_path, certified)
    monkeypatch.undo()
    assert all_written(tmp_path, certified) == all_written(tmp_path / "whole", certified)


@pytest.mark.parametrize(
    "name",
    ["idx", "label", "image_sha256", "model_sha256", "seed", "n0", "n", "alpha", "noise", "sigma_levels", "bound",
     "targets", "familywise", "predict", "radius_sq", "selection_votes", "estimation_votes"],
)  # fmt: skip
def test_certificates_that_are_not_those_of_the_records_are_refused(name, certified, tmp_path):
    all_written(tmp_path, certified)
    others = [{**each, name: 7 if name == "idx" else "7"} for each, _ in certified]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in others))
    rows = [results.table_line(each, COLUMNS, 0.5) for each in others]
    (tmp_path / "a.tsv").write_text("\n".join(["\t".join([*COLUMNS, "time"]), *rows, ""]))
    message = f"t.jsonl: line 1: found image 0, expected the certificate of image . of this run: its {name} is .*7"
    with pytest.raises(ResultFileError, match=message):
        results.ResultFiles(tmp_path / "a.tsv", COLUMNS, tmp_path / "t.jsonl")


@pytest.mark.parametrize("more", [0, 1])
def test_of_a_transcript_that_is_longer_the_rest_is_dropped_and_of_a_shorter_one_nothing_is_made(
    more, certified, tmp_path
):
    all_written(tmp_path, certified)
    lines = (tmp_path / "a.tsv").read_bytes().splitlines(True)
    if more:
        (tmp_path / "a.tsv").write_bytes(b"".join(lines[:-1]))
        with results.ResultFiles(tmp_path / "a.tsv", COLUMNS, tmp_path / "t.jsonl") as files:
            assert len(files.records) == 1
        assert (tmp_path / "t.jsonl").read_bytes() == certified[0][1]
        assert (tmp_path / "a.jsonl").read_text().count("\n") == 1
    else:
        (tmp_path / "t.jsonl").write_bytes(certified[0][1])
        with pytest.raises(ResultFileError, match="t.jsonl: holds 1 certificates, expected the 2 of"):
            results.ResultFiles(tmp_path / "a.tsv", COLUMNS, tmp_path / "t.jsonl")


@pytest.mark.parametrize("cut_table", [0, 1, 30, 45])
@pytest.mark.parametrize("cut_records", [0, 1, 40, 110])
def test_an_interrupted_run_continues_to_the_same_bytes_and_no_other_files_do(tmp_path, cut_table, cut_records):
    whole = written(tmp_path / "whole.tsv", range(4))
    part = written(tmp_path / "part.tsv", range(3))
    for path, cut in ((part, cut_table), (results.records_path(part), cut_records)):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - cut])
    left = part.read_bytes(), results.records_path(part).read_bytes()
    if left[1].count(b"\n") - (left[0].count(b"\n") - 1) not in (0, 1):  # the records are written before the table
        with pytest.raises(ResultFileError, match="part.jsonl: holds . records, expected the . of .*part.tsv, or one"):
            results.ResultFiles(part, COLUMNS)
        assert left == (part.read_bytes(), results.records_path(part).read_bytes())
        return
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


def test_earlier_results_are_moved_to_a_number_that_no_file_of_a_run_has_had(tmp_path):
    table = written(tmp_path / "a.tsv", [0])
    (tmp_path / "t.jsonl.1").write_text("a transcript of a run before")
    moved = results.move_aside(results.files_of(table, tmp_path / "t.jsonl"))
    assert moved == {table: tmp_path / "a.tsv.2", tmp_path / "a.jsonl": tmp_path / "a.jsonl.2"}


@pytest.mark.parametrize(
    ("table", "records", "message"),
    [
        ("something else\n", "", "found the header 'something else'"),
        ("idx\tlabel\tpredict\tcorrect\ttime\n", "", "found the header"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n1\t2\n", '{"idx":0}\n', "expected image 0"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t2\n", "no json\n", "line 1: found 'no json'"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t2\n", "[1]\n", "line 1"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t2\n", '{"a":1}\n', "line 1: found"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t2\n", '{"idx":0}\nno json\n', "line 2: found 'no json'"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n12\t2\n", '{"idx":10}\n', "line 2: found .*expected image 10"),
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
    seed = {"seed": 2**64 - 1}
    results.check_continues(records, [{"idx": 0, **seed}, {"idx": 1, **seed}, {"idx": 2, **seed}], table)
    with pytest.raises(ResultFileError, match="line 1: was begun with seed 18446744073709551615, .* with seed 8"):
        results.check_continues(records, [{"seed": 8}, {}], table)
    with pytest.raises(ResultFileError, match="line 1: was begun with the default bound, .* with bound 'two-class':"):
        results.check_continues(records, [{"idx": 0, "bound": "two-class"}, {}], table)
    two_class = [{**each, "bound": "two-class"} for each in records]
    with pytest.raises(ResultFileError, match="line 1: was begun with bound 'two-class', .* with the default bound:"):
        results.check_continues(two_class, [{"idx": 0, **seed}, {"idx": 1, **seed}], table)
    with pytest.raises(ResultFileError, match="line 2: was begun with idx 1, .* with idx 20"):
        results.check_continues(records, [{"idx": 0, **seed}, {"idx": 20}], table)
    with pytest.raises(ResultFileError, match="holds 2 images already, more than the 1"):
        results.check_continues(records, [{}], table)


def test_what_is_there_is_read_before_anything_is_opened_for_writing(certified, tmp_path):
    all_written(tmp_path, certified)
    with open(tmp_path / "a.tsv", "ab") as file:
        file.write(b"2\t1")
    before = (tmp_path / "a.tsv").read_bytes()
    files = results.ResultFiles(tmp_path / "a.tsv", COLUMNS, tmp_path / "t.jsonl")
    assert files.begun == 2 and (tmp_path / "a.tsv").read_bytes() == before
    with files:
        assert (tmp_path / "a.tsv").read_bytes() == before[:-3]


@pytest.mark.parametrize("rows, records", [(0, 0), (1, 1), (0, 1)])
def test_a_line_that_only_some_files_have_is_dropped_only_if_it_is_of_this_run(rows, records, certified, tmp_path):
    all_written(tmp_path, certified[: rows + 1])
    for name, kept in (("a.tsv", rows + 1), ("a.jsonl", records)):
        (tmp_path / name).write_bytes(b"".join((tmp_path / name).read_bytes().splitlines(True)[:kept]))
    files = results.ResultFiles(tmp_path / "a.tsv", COLUMNS, tmp_path / "t.jsonl")
    assert (len(files.records), files.begun) == (rows, rows + 1)
    found = {"predict", "radius", "radius_sq", "selection_votes", "estimation_votes", "correct"}
    known = [{name: each[name] for name in each if name not in found} for each, _ in certified]
    files.check_continues(known[: files.begun])
    other = {**known[rows], "sigma_levels": "255/2"}
    with pytest.raises(ResultFileError, match=f"line {rows + 1}: .*sigma_levels .*255/.*255/"):
        files.check_continues([*known[:rows], other])
    with pytest.raises(ResultFileError, match=f"a.tsv: holds {rows + 1} images already, more than the {rows} asked"):
        files.check_continues(known[:rows])


@pytest.mark.parametrize("name", ["a.tsv", "a.jsonl", "t.jsonl"])
def test_a_file_without_a_complete_line_must_begin_as_a_file_of_a_run_does(name, certified, tmp_path):
    whole = dict(zip(("a.tsv", "a.jsonl", "t.jsonl"), all_written(tmp_path / "whole", certified)))
    for content in (b"", b"{"[: name != "a.tsv"], whole[name][:5], whole[name].splitlines()[0]):
        (tmp_path / name).write_bytes(content)
        assert results.ResultFiles(tmp_path / "a.tsv", COLUMNS, tmp_path / "t.jsonl").begun == 0
    for content in (b"notes", b"\xff\xfe", whole[name][1:20]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ResultFileError, match=f"{name}: found .*, expected results of this command"):
            results.ResultFiles(tmp_path / "a.tsv", COLUMNS, tmp_path / "t.jsonl")
        assert (tmp_path / name).read_bytes() == content


def test_a_transcript_without_a_table_is_always_a_new_file(certified, tmp_path):
    (tmp_path / "t.jsonl").write_bytes(certified[0][1])
    with pytest.raises(ResultFileError, match="t.jsonl: is there already, expected a new file"):
        results.ResultFiles(None, (), tmp_path / "t.jsonl")
    with results.ResultFiles(None, (), tmp_path / "u.jsonl") as files:
        files.append(certified[0][0], 0.5, certified[0][1])
    assert (tmp_path / "u.jsonl").read_bytes() == certified[0][1]


def test_two_names_of_one_file_are_seen_through(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    table, through_link = tmp_path / "folder" / "a.tsv", tmp_path / "link" / "a.tsv"
    for path in (table, through_link, tmp_path / "link" / ".." / "folder" / "a.tsv"):
        with pytest.raises(ResultFileError, match="a.tsv: stands for two files of this run, the table and the transcr"):
            results.files_of(table, path)
    assert results.files_of(table, tmp_path / "a.tsv")[-1] == tmp_path / "a.tsv"
    table.write_text("")
    for link in (tmp_path / "b.jsonl", tmp_path / "t.jsonl"):
        link.hardlink_to(table)
        with pytest.raises(ResultFileError, match=f"{link.name}: stands for two files of this run"):
            results.files_of(table, link)
    (tmp_path / "b.tsv").symlink_to(table)
    with pytest.raises(ResultFileError, match="b.jsonl: stands for two files of this run, the table and the records"):
        results.files_of(tmp_path / "b.tsv", None)
    with pytest.raises(ResultFileError, match="a.tsv: is read by this run"):
        results.files_of(table, None, [tmp_path / "missing", through_link])


@pytest.mark.skipif(os.geteuid() == 0, reason="whoever may write everywhere is never refused")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ResultFileError, match="closed/a.tsv: cannot be written: Permission denied"):
        results.files_of(tmp_path / "closed" / "a.tsv", None)


def test_if_one_file_cannot_be_moved_aside_none_is(tmp_path, monkeypatch):
    files = [tmp_path / "a.tsv", tmp_path / "a.jsonl", tmp_path / "t.jsonl"]
    for path in files:
        path.write_text(path.name)
    rename = type(tmp_path).rename

    def failing(path, target):
        if target.name == "t.jsonl.1":
            raise OSError(30, "Read-only file system")
        return rename(path, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(ResultFileError, match="t.jsonl: was there, cannot be moved aside: Read-only file system"):
        results.move_aside(files)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {path.name: path.name for path in files}

"""Caltech-101: archives and folder give the same images, and which of them are test depends on names alone."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from damage import damaged
from PIL import Image

from intsmooth_ref.data_tools import caltech101, converter, image_folder
from intsmooth_ref.dataset import Dataset, load_dataset

ARCHIVE = "101_ObjectCategories.tar.gz"

#: Class and number of images. "Faces" comes before "ant": its first byte is the smaller one.
CLASSES = {"BACKGROUND_Google": 12, "Faces": 23, "Faces_easy": 10, "ant": 9}


def coloured(number: int, label: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    """An image that says which one it is: red is its number, green its class."""
    return Image.new("RGB", size, (number, label, 7))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


FILES = {
    f"{name}/image_{number:04}.jpg": png(coloured(number, label))  # lossless, whatever the suffix says
    for label, (name, count) in enumerate(CLASSES.items())
    for number in range(1, count + 1)
}
STRANGERS = {"BACKGROUND_Google/tmp": b"", "ant/._image_0001.jpg": b"fork", ".DS_Store": b"", ".hidden/a.jpg": b"x"}


def tar_gz(files: dict[str, bytes], folder: str = "101_ObjectCategories") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.GNU_FORMAT) as archive:
        for name in reversed(list(files)):  # the order of the archive must not matter
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def source_of(form: str, tmp_path: Path) -> Path:
    files = {**FILES, **STRANGERS}
    if form == "folder":
        return written(tmp_path / "101_ObjectCategories", files)
    path = tmp_path / ("caltech-101.zip" if form == "zip" else ARCHIVE)
    inner = tar_gz(files)
    macos = {"caltech-101/Annotations.tar": b"no", f"__MACOSX/caltech-101/._{ARCHIVE}": b"fork"}
    path.write_bytes(zipped({f"caltech-101/{ARCHIVE}": inner, **macos}) if form == "zip" else inner)
    return path


def convert(source: Path, *options: str) -> tuple[Dataset, Dataset]:
    output = source.parent / "out.h5"
    assert caltech101.main([str(source), str(output), "--overwrite", *options]) == 0
    return load_dataset(output, "train"), load_dataset(output, "test")


def refused(capsys: pytest.CaptureFixture[str], source: Path, *options: str) -> str:
    """The last line that a run which must fail says; it leaves nothing behind."""
    before = sorted(source.parent.iterdir())
    assert caltech101.main([str(source), str(source.parent / "out.h5"), *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    assert sorted(source.parent.iterdir()) == before
    return captured.err.splitlines()[-1]


def identities(dataset: Dataset) -> list[tuple[int, int]]:
    """Class and number of each image, read from its colours."""
    return [(int(green), int(red)) for red, green, _ in dataset.images[:, 0, 0]]


# --- which images, in which order


@pytest.mark.parametrize("form", ["folder", "tar.gz", "zip"])
def test_each_form_gives_every_image_in_order_of_class_and_name(tmp_path: Path, form: str) -> None:
    train, test = convert(source_of(form, tmp_path))
    everything = [(1, number) for number in range(1, 24)] + [(2, number) for number in range(1, 11)]
    everything += [(3, number) for number in range(1, 10)]
    assert identities(train) == [each for each in everything if each[1] not in (10, 20)]
    assert identities(test) == [(1, 10), (1, 20), (2, 10)]
    for dataset in (train, test):
        assert dataset.class_names == ("Faces", "Faces_easy", "ant")
        assert dataset.labels.tolist() == [green - 1 for green, _ in identities(dataset)]
        assert dataset.images.shape[1:] == (64, 64, 3)
        assert all((image == image[0, 0]).all() for image in dataset.images)


def test_the_background_is_kept_where_asked(tmp_path: Path) -> None:
    train, test = convert(source_of("tar.gz", tmp_path), "--keep-background")
    assert train.class_names == tuple(CLASSES)
    assert (identities(train)[0], identities(test)[0], train.labels[0]) == ((0, 1), (0, 10), 0)
    assert "with BACKGROUND_Google" in train.provenance


@pytest.mark.parametrize("every", [2, 3, 9])
def test_every_kth_image_of_a_class_is_test(tmp_path: Path, every: int) -> None:
    train, test = convert(source_of("folder", tmp_path), "--test-every", str(every))
    assert [number for label, number in identities(test) if label == 1] == list(range(every, 24, every))
    assert {*identities(train), *identities(test)} == {
        (label, number) for label in (1, 2, 3) for number in range(1, list(CLASSES.values())[label] + 1)
    }
    assert not {*identities(train)} & {*identities(test)}


def test_images_count_by_the_order_of_their_names_not_by_the_numbers_in_them(tmp_path: Path) -> None:
    names = ["b.png", "image_0007.png", "a.PNG", "image_10.jpg"]
    files = {f"cat/{name}": png(coloured(index, 0)) for index, name in enumerate(names)}
    train, test = convert(written(tmp_path / "photos", files), "--test-every", "2")
    assert (identities(train), identities(test)) == ([(0, 2), (0, 1)], [(0, 0), (0, 3)])  # a b image_0007 image_10


def test_an_unreadable_image_is_named_and_moves_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {**FILES, "Faces/image_0003.jpg": b"damaged", "Faces/image_0020.jpg": b"damaged"}
    source = tmp_path / ARCHIVE
    source.write_bytes(tar_gz(files))
    train, test = convert(source)
    assert identities(test) == [(1, 10), (2, 10)] and len(identities(train)) == 38
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("left out: Faces/image_0003.jpg: found no image of a known format")
    assert lines[1].startswith("left out: Faces/image_0020.jpg: ")
    assert lines[2:] == ["left out: 2 of 42 files"]
    assert "38 files, 1 left out" in train.provenance and "2 files, 1 left out" in test.provenance


def test_a_split_without_a_readable_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a/1.png": png(coloured(1, 1)), "a/2.png": b"damaged"}
    line = refused(capsys, written(tmp_path / "photos", files), "--test-every", "2")
    assert line == "error: split 'test': found 1 file and no readable image; expected one at least"


def test_classes_too_small_for_a_test_image_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, source_of("folder", tmp_path), "--test-every", "24")
    found = "42 images of 3 classes, none of them test"
    assert line == f"error: found {found}; expected classes of 24 images, or a smaller --test-every"


# --- pixels


def test_images_are_decoded_as_image_folder_does_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = {f"a/{index}.jpg": random.integers(0, 256, (40, 50, 3)).astype(np.uint8) for index in range(4)}
    for name, pixels in images.items():
        (tmp_path / "photos" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / name, quality=80)
    train, test = convert(tmp_path / "photos", "--test-every", "2", "--size", "20x30")
    output = tmp_path / "folder.h5"
    assert image_folder.main([str(tmp_path / "photos"), str(output), "--size", "20x30"]) == 0
    assert np.array_equal(load_dataset(output).images[[0, 2]], train.images)
    assert np.array_equal(load_dataset(output).images[[1, 3]], test.images)


def test_grey_originals_become_rgb(tmp_path: Path) -> None:
    files = {"a/1.jpg": png(Image.new("L", (5, 5), 93)), "a/2.jpg": png(Image.new("RGB", (5, 5), (1, 2, 3)))}
    train, test = convert(written(tmp_path / "photos", files), "--test-every", "2")
    assert (train.images[0, 0, 0].tolist(), test.images[0, 0, 0].tolist()) == ([93, 93, 93], [1, 2, 3])


# --- what the file says


def test_the_provenance_names_archive_rule_decoder_and_files(tmp_path: Path) -> None:
    source = source_of("zip", tmp_path)
    _, test = convert(source, "--size", "8x8")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    names = ("Faces/image_0010.jpg", "Faces/image_0020.jpg", "Faces_easy/image_0010.jpg")
    lines = "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in names)
    rule = "test is what stands at each multiple of 10 in the order of names of a class, train the rest"
    start = f"caltech101: archive 'caltech-101.zip' of SHA-256 {digest}, without BACKGROUND_Google; {rule}; "
    assert test.provenance.startswith(start + "3 files, 0 left out; RGB, resized to 8x8 by LANCZOS; decoded by Pillow")
    assert test.provenance.endswith(hashlib.sha256(lines.encode()).hexdigest())


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    source, outputs = source_of("zip", tmp_path), (tmp_path / "one.h5", tmp_path / "two.h5")
    for output in outputs:
        assert caltech101.main([str(source), str(output)]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


# --- bad sources


def forged_method(content: bytes) -> bytes:
    """A zip archive whose directory says that its first member is compressed by bzip2."""
    start = content.index(b"PK\1\2")
    return content[: start + 10] + b"\x0c" + content[start + 11 :]


SMALL = tar_gz({"ant/image_0001.jpg": png(coloured(1, 1))})
BAD_SOURCES = {
    "no archive": (b"<html>", "found a damaged archive ("),
    "zip without the archive": (zipped({"a": b""}), f"found 0 files named {ARCHIVE}; expected one in the zip archive"),
    "zip with two": (zipped({f"a/{ARCHIVE}": SMALL, f"b/{ARCHIVE}": SMALL}), f"found 2 files named {ARCHIVE}"),
    "zip cut off": (zipped({ARCHIVE: SMALL})[:-30], "found a damaged archive ("),
    "bzip2 in zip": (zipped({ARCHIVE: SMALL}, zipfile.ZIP_BZIP2), "found an unusual compression; expected a deflated"),
    "bzip2 by forgery": (forged_method(zipped({ARCHIVE: SMALL})), "found an unusual compression; expected a deflated"),
    "another folder": (tar_gz(FILES, "256_ObjectCategories"), "found no image; expected 101_ObjectCategories/CLASS/"),
    "archive cut off": (SMALL[:-40], "found a damaged archive ("),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_archive_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, message = BAD_SOURCES[name]
    (tmp_path / "archive").write_bytes(content)
    line = refused(capsys, tmp_path / "archive")
    assert line.startswith(f"error: {tmp_path / 'archive'}: {message}")


def test_a_damaged_zip_archive_is_read_or_refused_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant in damaged(zipped({ARCHIVE: SMALL}, zipfile.ZIP_STORED), 300):
        (tmp_path / "archive").write_bytes(variant)
        line = refused(capsys, tmp_path / "archive")  # at best it has one image, and none for test
        assert line.startswith(f"error: {tmp_path / 'archive'}: found ") or "found 1 images of 1 classes" in line


def test_a_zip_bomb_is_given_up_at_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb.zip").write_bytes(zipped({ARCHIVE: bytes(1 << 24)}))
    monkeypatch.setattr(caltech101, "MAX_ARCHIVE_BYTES", 1 << 20)
    line = refused(capsys, tmp_path / "bomb.zip")
    assert line == f"error: {tmp_path / 'bomb.zip'}: found more than 1048576 bytes of {ARCHIVE}; expected fewer"


def test_a_folder_above_the_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "caltech-101", {f"101_ObjectCategories/{name}": FILES[name] for name in FILES})
    line = refused(capsys, source)
    assert "found 101_ObjectCategories/BACKGROUND_Google/image_0001.jpg; expected CLASS/IMAGE" in line


def test_a_source_without_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: found no image; expected CLASS/IMAGE" in refused(capsys, tmp_path / "empty")
    assert refused(capsys, tmp_path / "no").endswith("no: found no such file; expected one to read")


# --- the program


@pytest.mark.parametrize("arguments", [["--test-every", "1"], ["--test-every", "ten"], ["--size", "64"]])
def test_wrong_options_end_in_status_2(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        caltech101.main([str(tmp_path), "out.h5", *arguments])
    assert stop.value.code == 2


def test_an_interrupted_run_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = source_of("zip", tmp_path), tmp_path / "out.h5"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for module, step in ((caltech101, "tar_members"), (image_folder, "decoded"), (converter, "save_dataset")):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, interrupted)
            assert caltech101.main([str(source), str(output)]) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert list(tmp_path.iterdir()) == [source]
    convert(source)


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "intsmooth_ref.data_tools.caltech101", source_of("tar.gz", tmp_path)]
    done = subprocess.run([*command, tmp_path / "o.h5"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'o.h5'}: 39 images, 64x64x3, 3 classes, split 'train'\nSHA-256 of the")

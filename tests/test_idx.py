"""IDX files: pixels and labels arrive as they are, and a header that promises something else is refused."""

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from damage import damaged

from intsmooth_ref.data_tools import converter, idx
from intsmooth_ref.dataset import load_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
LABELS = [3, 0, 2, 2, 1]


def image_file(images: np.ndarray) -> bytes:
    """The page of MNIST: magic number 2051, numbers of images, rows and columns, all big-endian; pixels row by row."""
    count, rows, columns = images.shape
    pixels = bytes(int(images[n, y, x]) for n in range(count) for y in range(rows) for x in range(columns))
    return struct.pack(">IIII", 2051, count, rows, columns) + pixels


def label_file(labels: list[int]) -> bytes:
    """Magic number 2049, number of items, the labels."""
    return struct.pack(">II", 2049, len(labels)) + bytes(labels)


GOOD_IMAGES, GOOD_LABELS = image_file(IMAGES), label_file(LABELS)


def written(folder: Path, images: bytes = GOOD_IMAGES, labels: bytes = GOOD_LABELS, test: bool = False) -> list[str]:
    """Write a pair of files; returns the arguments that name them."""
    prefix, option = ("t10k", "--test-") if test else ("train", "--")
    paths = folder / f"{prefix}-images-idx3-ubyte", folder / f"{prefix}-labels-idx1-ubyte"
    for path, content in zip(paths, (images, labels)):
        path.write_bytes(content)
    return [f"{option}images", str(paths[0]), f"{option}labels", str(paths[1])]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one line that a run which must fail says; it leaves nothing behind."""
    before = sorted(folder.iterdir())
    assert idx.main([str(folder / "out.h5"), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    return captured.err.rstrip("\n")


# --- what arrives


@pytest.mark.parametrize("packed", [False, True])
def test_every_pixel_and_label_arrives(tmp_path: Path, packed: bool) -> None:
    pack = gzip.compress if packed else bytes
    files = written(tmp_path, pack(GOOD_IMAGES), pack(GOOD_LABELS))
    assert idx.main([str(tmp_path / "out.h5"), *files]) == 0
    dataset = load_dataset(tmp_path / "out.h5")
    assert np.array_equal(dataset.images, IMAGES[..., np.newaxis])
    assert (dataset.labels.tolist(), dataset.class_names, dataset.split) == (LABELS, (), "train")


def test_two_pairs_become_train_and_test(tmp_path: Path) -> None:
    train = written(tmp_path)
    test = written(tmp_path, image_file(IMAGES[::-1]), label_file(LABELS[::-1]), test=True)
    assert idx.main([str(tmp_path / "out.h5"), *train, *test, "--class-names", "zero, one,two,T-shirt/top"]) == 0
    for split, step in (("train", 1), ("test", -1)):
        dataset = load_dataset(tmp_path / "out.h5", split)
        assert np.array_equal(dataset.images[..., 0], IMAGES[::step])
        assert dataset.labels.tolist() == LABELS[::step]
        assert dataset.class_names == ("zero", "one", "two", "T-shirt/top")


def test_a_test_pair_may_stand_alone(tmp_path: Path) -> None:
    assert idx.main([str(tmp_path / "out.h5"), *written(tmp_path, test=True)]) == 0
    assert load_dataset(tmp_path / "out.h5").split == "test"


def test_labels_up_to_255_are_kept_where_classes_have_no_names(tmp_path: Path) -> None:
    assert idx.main([str(tmp_path / "out.h5"), *written(tmp_path, labels=label_file([0, 9, 26, 128, 255]))]) == 0
    assert load_dataset(tmp_path / "out.h5").labels.tolist() == [0, 9, 26, 128, 255]


def test_the_provenance_names_both_files_and_their_hashes(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD_IMAGES, mtime=0)
    assert idx.main([str(tmp_path / "out.h5"), *written(tmp_path, packed)]) == 0
    assert load_dataset(tmp_path / "out.h5").provenance == (
        f"idx: images of 'train-images-idx3-ubyte', SHA-256 {hashlib.sha256(packed).hexdigest()}; "
        f"labels of 'train-labels-idx1-ubyte', SHA-256 {hashlib.sha256(GOOD_LABELS).hexdigest()}; "
        "all of them, in their order"
    )


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    files = written(tmp_path)
    for name in ("one.h5", "two.h5"):
        assert idx.main([str(tmp_path / name), *files]) == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


# --- what is refused


def header(*extents: int, kind: int = 0x08, dimensions: int | None = None, zeros: bytes = b"\0\0") -> bytes:
    count = len(extents) if dimensions is None else dimensions
    return zeros + bytes([kind, count]) + struct.pack(f">{len(extents)}I", *extents)


BAD_IMAGES = {
    "nothing": (b"", "found the first bytes ''; expected 0000: an IDX file"),
    "three bytes": (b"\0\0\x08", "found the first bytes '000008'; expected 0000: an IDX file"),
    "a PNG file": (b"\x89PNG\r\n\x1a\n" * 9, "found the first bytes '89504e47'; expected 0000: an IDX file"),
    "one zero byte": (header(1, 1, 1, zeros=b"\0\1") + b"x", "found the first bytes '00010803'; expected 0000"),
    "little-endian": (struct.pack("<IIII", 2051, 1, 1, 1) + b"x", "found the first bytes '03080000'; expected 0000"),
    "floats": (header(1, 1, 1, kind=0x0D) + bytes(4), "found elements of type 0x0d; expected 0x08, unsigned bytes"),
    "signed": (header(1, 1, 1, kind=0x09) + b"x", "found elements of type 0x09; expected 0x08, unsigned bytes"),
    "labels": (GOOD_LABELS, "found 1 dimensions; expected 3: (images, height, width)"),
    "four dimensions": (header(5, 4, 3, 1) + IMAGES.tobytes(), "found 4 dimensions; expected 3: (images, height, wid"),
    "half a header": (header(5, 4, dimensions=3) + b"\0\0", "found a header that is cut off; expected extents of (ima"),
    "no extents": (header(dimensions=3), "found a header that is cut off; expected extents of (images, height, width)"),
    "a pixel short": (GOOD_IMAGES[:-1], "found 59 bytes of data; expected 60 for its extents (5, 4, 3)"),
    "a pixel more": (GOOD_IMAGES + b"\0", "found more data; expected 60 for its extents (5, 4, 3)"),
    "no image": (header(0, 28, 28), "found extents (0, 28, 28); expected 1 to"),
    "no column": (header(5, 28, 0), "found extents (5, 28, 0); expected 1 to"),
    "2^96 pixels": (header(*[0xFFFFFFFF] * 3) + b"x", "found extents (4294967295, 4294967295, 4294967295); expected"),
    "3 GiB promised": (header(3 << 10, 1 << 10, 1 << 10), "found 0 bytes of data; expected 3221225472 for its ext"),
    "half of gzip": (gzip.compress(GOOD_IMAGES)[:-12], "found a damaged archive (Compressed file ended before"),
    "gzip with a wrong checksum": (gzip.compress(GOOD_IMAGES)[:-8] + bytes(8), "found a damaged archive (CRC check"),
    "gzip with more": (gzip.compress(GOOD_IMAGES) + b"more", "found a damaged archive (Not a gzipped file"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, message = BAD_IMAGES[name]
    arguments = written(tmp_path, content)
    tracemalloc.start()
    line = refused(capsys, tmp_path, *arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.startswith(f"error: {tmp_path / 'train-images-idx3-ubyte'}: {message}")
    assert peak < 1 << 22


def test_a_gzip_bomb_costs_no_more_than_its_header_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = written(tmp_path, gzip.compress(GOOD_IMAGES + bytes(1 << 26)))
    tracemalloc.start()
    line = refused(capsys, tmp_path, *arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.endswith("found more data; expected 60 for its extents (5, 4, 3)")
    assert peak < 1 << 22


def test_damage_is_noticed_or_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gzip has a checksum of its content: what is converted all the same is what was meant."""
    for variant in damaged(gzip.compress(GOOD_IMAGES), 200):
        status = idx.main([str(tmp_path / "out.h5"), "--overwrite", *written(tmp_path, variant)])
        captured = capsys.readouterr()
        if status == 0:
            assert np.array_equal(load_dataset(tmp_path / "out.h5").images[..., 0], IMAGES)
        else:
            assert (status, captured.err.count("\n")) == (1, 1) and "found" in captured.err


def test_labels_that_belong_to_other_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, tmp_path, *written(tmp_path, labels=label_file(LABELS[1:])))
    assert line.endswith("train-labels-idx1-ubyte: found 4 labels; expected 5, one an image")


def test_a_label_without_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, tmp_path, *written(tmp_path), "--class-names", "a,b,c")
    assert line == "error: split 'train': found label 3 of image 0; expected 0 to 2, or -1 for unknown"
    assert "found the class name ''" in refused(capsys, tmp_path, *written(tmp_path), "--class-names", "a,,b,c")


def test_two_sizes_in_one_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = written(tmp_path) + written(tmp_path, image_file(IMAGES[:, 1:]), test=True)
    line = refused(capsys, tmp_path, *arguments)
    assert line.endswith("found images of sizes [(4, 3), (3, 3)]; expected one size in train and test")


@pytest.mark.parametrize("position", [1, 3])
def test_an_input_is_never_replaced_by_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], position: int
) -> None:
    arguments = written(tmp_path)
    source = Path(arguments[position])
    before = source.read_bytes()
    assert idx.main([f"{tmp_path}/./{source.name}", *arguments, "--overwrite"]) == 1
    assert capsys.readouterr().err.endswith("is read by this command; expected another name for what it writes\n")
    assert source.read_bytes() == before


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = written(tmp_path)
    (tmp_path / "folder").mkdir()
    line = refused(capsys, tmp_path, *arguments[:3], str(tmp_path / "folder"))
    assert line == f"error: {tmp_path / 'folder'}: found no regular file; expected one to read"
    line = refused(capsys, tmp_path, *arguments[:3], str(tmp_path / "nowhere"))
    assert line == f"error: {tmp_path / 'nowhere'}: found no such file; expected one to read"


def test_a_file_larger_than_a_dataset_may_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idx, "MAX_PIXEL_BYTES", 59)
    assert "found more than 59 bytes; expected a smaller file" in refused(capsys, tmp_path, *written(tmp_path))
    packed = gzip.compress(image_file(np.zeros((5, 4, 3), np.uint8)))
    assert len(packed) < 59
    line = refused(capsys, tmp_path, *written(tmp_path, packed))
    assert line.endswith("found extents (5, 4, 3); expected 1 to 59 bytes in all")


# --- the program


@pytest.mark.parametrize("arguments", [[], ["--images", "a"], ["--test-labels", "a"], ["--images", "a", "--nothing"]])
def test_wrong_arguments_end_in_status_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        idx.main(["out.h5", *arguments])
    assert stop.value.code == 2 and "usage: python -m intsmooth_ref.data_tools.idx" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = [str(tmp_path / "out.h5"), *written(tmp_path)]
    before = sorted(tmp_path.iterdir())
    for module, step in ((idx, "taken"), (converter, "save_dataset")):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, interrupted)
            assert idx.main(arguments) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert sorted(tmp_path.iterdir()) == before
    assert idx.main(arguments) == 0


def test_what_exists_is_kept_without_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.h5").write_bytes(b"precious")
    line = refused(capsys, tmp_path, *written(tmp_path))
    assert line.endswith("out.h5: found a file already; expected none, or the option --overwrite")
    assert (tmp_path / "out.h5").read_bytes() == b"precious"


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "intsmooth_ref.data_tools.idx", str(tmp_path / "o.h5"), *written(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    digest = hashlib.sha256(b"intsmooth-ref images 1 5 4 3 1\n" + IMAGES.tobytes()).hexdigest()
    assert done.stdout == (
        f"{tmp_path / 'o.h5'}: 5 images, 4x3x1, no labels, split 'train'\nSHA-256 of the pixels {digest}\n"
    )

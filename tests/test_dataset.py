"""Datasets: the pixels that were frozen are the pixels that are certified."""

from __future__ import annotations

import hashlib
import io
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, Callable

import h5py
import numpy as np
import pytest

from damage import damaged, run_elsewhere, unsealed
from intsmooth_ref import dataset as dataset_module
from intsmooth_ref.dataset import Dataset, load_dataset, save_dataset
from intsmooth_ref.errors import DatasetError

README = Path(__file__).parents[1] / "weights" / "README.md"


def example(split: str = "test", seed: int = 1) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 256, (4, 3, 5, 2), dtype=np.uint8)
    return Dataset(images, np.array([0, 2, -1, 1]), ("cat", "dog", "bird é"), f"made for a test, seed {seed}", split)


def description(dataset: Dataset) -> tuple[Any, ...]:
    """All that a dataset says, ready to be compared."""
    images, labels = dataset.images, dataset.labels
    return (
        str(images.dtype), images.shape, images.tobytes(), str(labels.dtype), labels.tolist(), dataset.class_names,
        dataset.provenance, dataset.split,
    )  # fmt: skip


def refusal(path: Path, split: str | None = None) -> str:
    with pytest.raises(DatasetError) as caught:
        load_dataset(path, split)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "expected" in message
    return message


def saved(path: Path) -> Path:
    save_dataset(path, [example()])
    return path


# --- what a dataset is ------------------------------------------------------------------------------------------------


def test_the_hash_of_the_images_is_the_one_that_the_specification_shows() -> None:
    images = np.array([1, 2, 3, 255], np.uint8).reshape(2, 1, 2, 1)
    found = re.search(r"<!-- images -->\n```\n.*\n([0-9a-f]{64})\n```", README.read_text(encoding="utf-8"))
    assert found is not None
    assert hashlib.sha256(b"intsmooth-ref images 1 2 1 2 1\n\x01\x02\x03\xff").hexdigest() == found[1]
    assert Dataset(images, np.array([-1, -1]), (), "", "test").sha256 == found[1]


def test_hashes_cover_header_and_content() -> None:
    images = np.array([1, 2, 3, 255], np.uint8).reshape(2, 1, 2, 1)
    dataset = Dataset(images, np.array([1, -1]), ("a", "é"), "", "test")
    labels = b"intsmooth-ref labels 1 2 2\n" + bytes([1] + [0] * 7 + [255] * 8) + "a\né\n".encode()
    assert dataset.labels_sha256 == hashlib.sha256(labels).hexdigest()
    assert dataset.image_sha256(1) == hashlib.sha256(b"intsmooth-ref image 1 1 2 1\n\x03\xff").hexdigest()


def test_the_layout_in_memory_does_not_reach_the_hash() -> None:
    images = example().images
    turned = np.asfortranarray(images)
    assert Dataset(turned, np.zeros(4, np.int64), (), "", "x").sha256 == example().sha256


@pytest.mark.parametrize("index", [-1, 4])
def test_an_image_that_is_not_there_has_no_hash(index: int) -> None:
    with pytest.raises(DatasetError, match=f"found image index {index}; expected 0 to 3"):
        example().image_sha256(index)


def test_the_arrays_of_a_dataset_are_read_only(tmp_path: Path) -> None:
    for dataset in (example(), load_dataset(saved(tmp_path / "images.h5"))):
        assert not dataset.images.flags.writeable and not dataset.labels.flags.writeable


@pytest.mark.parametrize(
    "change, found",
    [
        ({"images": np.zeros((1, 2, 2), np.uint8)}, r"images of uint8 and shape \(1, 2, 2\)"),
        ({"images": np.zeros((1, 2, 2, 1), np.int8)}, "images of int8"),
        ({"images": np.zeros((1, 2, 2, 1))}, "images of float64"),
        ({"images": np.zeros((0, 2, 2, 1), np.uint8)}, r"shape \(0, 2, 2, 1\)"),
        ({"images": np.zeros((1, 2, 0, 1), np.uint8)}, r"shape \(1, 2, 0, 1\)"),
        ({"labels": np.zeros(2, np.int64)}, r"labels of int64 and shape \(2,\)"),
        ({"labels": np.zeros(1, np.int32)}, "labels of int32"),
        ({"labels": np.array([-2])}, "label -2 of image 0"),
        ({"labels": np.array([2])}, "label 2 of image 0; expected 0 to 1"),
        ({"labels": np.array([1 << 16]), "class_names": ()}, "label 65536 of image 0; expected 0 to 65535"),
        ({"class_names": ("a", "")}, "the class name ''"),
        ({"class_names": ("a", "b\n")}, "the class name 'b"),
        ({"split": "a/b"}, "no name"),
        ({"split": ""}, "no name"),
    ],
)
def test_a_dataset_that_breaks_a_rule_is_refused(change: dict[str, Any], found: str) -> None:
    whole = {
        "images": np.zeros((1, 2, 2, 1), np.uint8), "labels": np.array([0]), "class_names": ("a", "b"),
        "provenance": "", "split": "test",
    }  # fmt: skip
    Dataset(**whole)
    with pytest.raises(DatasetError, match=f"split .*: found (images of uint8 and )?{found}"):
        Dataset(**{**whole, **change})


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def test_a_dataset_that_was_saved_is_loaded_the_same(tmp_path: Path) -> None:
    save_dataset(tmp_path / "one.h5", [example("train", 2), example("test", 1)])
    save_dataset(tmp_path / "two.h5", [example("test", 1), example("train", 2)])
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert description(load_dataset(tmp_path / "one.h5", "train")) == description(example("train", 2))
    assert description(load_dataset(tmp_path / "one.h5")) == description(example("test", 1))


def test_the_file_is_laid_out_as_the_specification_says(tmp_path: Path) -> None:
    with h5py.File(saved(tmp_path / "images.h5"), "r") as file:
        assert dict(file.attrs) == {"format": b"intsmooth-ref images", "format_version": 1}
        assert list(file) == ["test"] and sorted(file["test"]) == ["class_names", "images", "labels"]
        assert sorted(file["test"].attrs) == ["labels_sha256", "provenance", "sha256"]
        assert file["test/images"].dtype == np.uint8 and file["test/labels"].dtype == "<i8"
        assert file["test"].attrs["sha256"].decode() == example().sha256


def test_the_only_split_is_the_default(tmp_path: Path) -> None:
    save_dataset(tmp_path / "images.h5", [example("validation")])
    assert load_dataset(tmp_path / "images.h5").split == "validation"


def test_a_split_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    save_dataset(path, [example("train"), example("validation")])
    assert "found no split 'test'; expected one of train, validation" in refusal(path)
    assert "found no split 'all'; expected one of train, validation" in refusal(path, "all")


@pytest.mark.parametrize("datasets", [[], [example(), example()]], ids=["none", "twice"])
def test_splits_are_at_least_one_and_differ(tmp_path: Path, datasets: list[Dataset]) -> None:
    with pytest.raises(DatasetError, match="images.h5: found . splits; expected one at least, each of another name"):
        save_dataset(tmp_path / "images.h5", datasets)


def replace(path: str, data: np.ndarray) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[path]
        file[path] = data

    return edit


BROKEN: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "format": (lambda f: f.attrs.__setitem__("format", "intsmooth-ref model"), "/: found a file of format 'intsmooth-"),
    "version": (lambda f: f.attrs.__setitem__("format_version", 2), "version 2; expected"),
    "unknown attribute": (lambda f: f.attrs.__setitem__("author", "me"), "/: found the unknown attribute 'author'"),
    "unknown array": (lambda f: f.__setitem__("test/x", np.zeros(1, "i1")), "/test: found the unknown array 'x'"),
    "no split": (lambda f: f.__delitem__("test"), "found no split; expected one at least"),
    "no labels": (lambda f: f.__delitem__("test/labels"), "/test: found no array 'labels'"),
    "pixel": (lambda f: f["test/images"].__setitem__((0, 0, 0, 0), 99), "/test: found images of SHA-256"),
    "label": (lambda f: f["test/labels"].__setitem__(0, 1), "/test: found labels of SHA-256"),
    "label out of range": (lambda f: f["test/labels"].__setitem__(0, 3), "label 3 of image 0; expected 0 to 2"),
    "class name": (replace("test/class_names", np.array([b"a", b"b", b"c"])), "/test: found labels of SHA-256"),
    "int8 pixels": (replace("test/images", np.zeros((4, 3, 5, 2), "i1")), "/test: found array 'images' of int8"),
    "int32 labels": (replace("test/labels", np.zeros(4, "i4")), "/test: found array 'labels' of int32"),
    "too few labels": (replace("test/labels", np.zeros(3, "i8")), "labels of int64 and shape (3,)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_named_with_file_and_split(tmp_path: Path, case: str) -> None:
    edit, found = BROKEN[case]
    with h5py.File(unsealed(saved(tmp_path / "images.h5")), "r+") as file:
        edit(file)
    assert found in refusal(tmp_path / "images.h5")


# --- NumPy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_file_holds_images_of_unknown_class(tmp_path: Path, order: Any) -> None:
    images = example().images
    np.save(tmp_path / "images.npy", np.array(images, order=order))
    dataset = load_dataset(tmp_path / "images.npy")
    assert np.array_equal(dataset.images, images) and dataset.sha256 == example().sha256
    assert dataset.labels.tolist() == [-1] * 4 and dataset.class_names == () and dataset.split == "all"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["uint8", ">i4", "int64"])
def test_an_npz_file_may_hold_labels_and_class_names(tmp_path: Path, save: Any, dtype: str) -> None:
    labels = np.array([0, 2, 1, 1], dtype=dtype)
    save(tmp_path / "images.npz", images=example().images, labels=labels, class_names=["a", "b", "é"])
    dataset = load_dataset(tmp_path / "images.npz")
    assert np.array_equal(dataset.images, example().images)
    assert dataset.labels.tolist() == [0, 2, 1, 1] and dataset.class_names == ("a", "b", "é")


def test_an_npz_file_may_hold_images_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=example().images)
    assert load_dataset(tmp_path / "images.npz").labels.tolist() == [-1] * 4


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 4), ()])
def test_another_rank_is_refused_because_it_is_ambiguous(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "images.npy", np.zeros(shape, np.uint8))
    assert "expected uint8 (N, H, W, C): grey images have C = 1" in refusal(tmp_path / "images.npy")


@pytest.mark.parametrize(
    "array, found",
    [
        (np.zeros((1, 2, 2, 1)), "an array of float64"),
        (np.zeros((1, 2, 2, 1), np.int32), "images of int32"),
        (np.array([{"a": 1}], dtype=object), "an array of object"),
        (np.zeros((0, 2, 2, 1), np.uint8), "shape (0, 2, 2, 1)"),
    ],
)
def test_an_npy_file_of_anything_else_is_refused(tmp_path: Path, array: np.ndarray, found: str) -> None:
    np.save(tmp_path / "images.npy", array, allow_pickle=True)
    assert f"found {found}" in refusal(tmp_path / "images.npy") or found in refusal(tmp_path / "images.npy")


def header(shape: tuple[int, ...]) -> bytes:
    """The header of a `.npy` file that promises uint8 of this shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_a_header_that_promises_more_than_the_file_is_refused_before_it_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    for shape in ((1 << 20, 1 << 10, 1 << 10, 3), (2, 3, 4, 5), (1, -1, -1, 1), (1 << 70, 0, 1, 1)):
        path.write_bytes(header(shape) + bytes(100))
        refusal(path)
    path.write_bytes(header((1, 2, 2, 1)) + bytes(5))
    assert "more data than its shape needs" in refusal(path)


def archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_file_of_anything_else_is_refused(tmp_path: Path) -> None:
    path, images = tmp_path / "images.npz", header((1, 2, 2, 1)) + bytes(4)
    assert "no member 'images.npy'" in refusal(archive(path, []))
    assert "the member 'extra.npy'" in refusal(archive(path, [("images.npy", images), ("extra.npy", images)]))
    assert "the member 'images.npy'" in refusal(archive(path, [("images.npy", images), ("images.npy", images)]))
    np.savez(path, images=np.zeros((1, 2, 2, 1), np.uint8), labels=np.array([2**63], np.uint64))
    assert "a label too large" in refusal(path)
    np.savez(path, images=np.zeros((1, 2, 2, 1), np.uint8), labels=np.array(["a"]))
    assert "labels of <U1" in refusal(path)
    np.savez(path, images=np.zeros((1, 2, 2, 1), np.uint8), class_names=np.array([1]))
    assert "class names of int64" in refusal(path)


def test_an_npz_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "MAX_BYTES", 10**6)
    path = archive(tmp_path / "images.npz", [("images.npy", header((1, 10**4, 10**4, 1)) + bytes(10**8))])
    assert path.stat().st_size < 10**6
    tracemalloc.start()
    assert "an array of 100000000 bytes; expected at most 1000000" in refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 10**6


def test_numpy_files_have_no_splits(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", example().images)
    assert "a NumPy file, where split 'train' is asked" in refusal(tmp_path / "images.npy", "train")
    assert load_dataset(tmp_path / "images.npy", "all").split == "all"


# --- what is no dataset -----------------------------------------------------------------------------------------------


def test_image_files_and_folders_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "photo.JPG").write_bytes(b"\xff\xd8")
    paths = (tmp_path, tmp_path / "photo.JPG", tmp_path / "missing.png")
    for path, what in zip(paths, ("a folder", "an image file", "an image file")):
        message = refusal(path)
        assert what in message and "python -m intsmooth_ref.data_tools.image_folder FOLDER OUT.h5" in message


@pytest.mark.parametrize("name", ["images.h5", "images.npy", "images.npz", "images"])
def test_a_missing_file_is_one_line(tmp_path: Path, name: str) -> None:
    assert "found no such file" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["images.h5", "images.npy", "images.npz"])
@pytest.mark.parametrize("content", [b"", b"no dataset", b"\x93NUMPY\x01\x00\xff\xff{'descr'", b"PK\x03\x04"])
def test_a_file_of_something_else_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


# --- damage -----------------------------------------------------------------------------------------------------------


def load_damaged(path: Path, corruptions: int, whole: bool) -> None:
    """Every damaged variant is refused, or gives the same images and labels; with `whole`, the same everything."""
    original = description(load_dataset(path))
    for variant in damaged(path.read_bytes(), corruptions):
        path.write_bytes(variant)
        try:
            found = description(load_dataset(path))
        except DatasetError as refused:
            assert str(refused).startswith(f"{path}: ")
        else:
            assert found[:6] == original[:6] and (found == original or not whole)


def test_a_damaged_file_is_refused_or_read_in_full(tmp_path: Path) -> None:
    run_elsewhere(load_damaged, saved(tmp_path / "images.h5"), 300, whole=True)


@pytest.mark.slow
@pytest.mark.skipif(h5py.version.hdf5_version_tuple < (2, 0, 0), reason="older libraries crash on some of these files")
def test_a_damaged_file_without_a_seal_never_gives_other_images(tmp_path: Path) -> None:
    run_elsewhere(load_damaged, unsealed(saved(tmp_path / "images.h5")), 300, whole=False)


@pytest.mark.slow
def test_a_damaged_zip_archive_never_gives_other_images(tmp_path: Path) -> None:
    """Each member has a check sum; `.npy` files have none, and whoever certifies one is told the hash."""
    np.savez_compressed(tmp_path / "images.npz", images=example().images, labels=example().labels)
    run_elsewhere(load_damaged, tmp_path / "images.npz", 500, whole=False)

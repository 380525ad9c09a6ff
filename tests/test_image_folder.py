"""The image folder converter: pixels arrive unchanged, in a fixed order, and bad files are named, not fatal."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from intsmooth_ref.data_tools import image_folder
from intsmooth_ref.dataset import Dataset, load_dataset

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def plain(colour: Any, mode: str = "RGB", size: tuple[int, int] = (4, 4)) -> Image.Image:
    """An image of one colour, `size` (width, height)."""
    return Image.new(mode, size, colour)


def convert(folder: Path, *options: str) -> Dataset:
    output = folder.parent / "out.h5"
    assert image_folder.main([str(folder), str(output), "--overwrite", *options]) == 0
    return load_dataset(output)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a run which must fail says."""
    assert image_folder.main([str(each) for each in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()[-1]


def palette_image(index: int) -> Image.Image:
    """An image whose pixels all point to one entry of a palette: black, red, black, (237, 28, 36)."""
    image = plain(index, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 0, 237, 28, 36])
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


# --- order and labels


def test_classes_and_images_are_in_the_order_of_their_bytes(folder: Path) -> None:
    for index, name in enumerate(["Zebra/b.png", "ape/2.png", "ape/10.png", "ape/deep/1.png", "\u00e9mu/x.png"]):
        save(folder / name, plain((index, 0, 0)))
    dataset = convert(folder)
    assert dataset.class_names == ("Zebra", "ape", "\u00e9mu")
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 2, 1, 3, 4]  # "10.png" < "2.png" < "deep/1.png"
    assert dataset.labels.tolist() == [0, 1, 1, 1, 2]


def test_flat_takes_the_folder_itself_without_labels(folder: Path) -> None:
    save(folder / "b.png", plain(RED))
    save(folder / "a.png", plain(BLUE))
    save(folder / "sub" / "c.png", plain(GREEN))
    dataset = convert(folder, "--flat", "--split", "photos")
    assert (dataset.labels.tolist(), dataset.class_names, dataset.split) == ([-1, -1], (), "photos")
    assert dataset.images[:, 0, 0].tolist() == [list(BLUE), list(RED)]


def test_hidden_files_and_other_suffixes_are_left_out(folder: Path) -> None:
    save(folder / "a" / "1.png", plain(RED))
    save(folder / ".git" / "2.png", plain(RED))
    save(folder / "a" / ".thumbnails" / "3.png", plain(RED))
    (folder / "a" / "._1.png").write_bytes(b"resource fork")
    (folder / "a" / "notes.txt").write_text("no image")
    dataset = convert(folder)
    assert (len(dataset.images), dataset.class_names) == (1, ("a",))


def test_two_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save(folder / "a" / "1.png", plain(RED))
    contents = []
    for name in ("one.h5", "two.h5"):
        assert image_folder.main([str(folder), str(tmp_path / name)]) == 0
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


# --- pixels


def noise_image(channels: int) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 256, (5, 7, channels)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_formats_keep_every_pixel(folder: Path, suffix: str) -> None:
    pixels = noise_image(3)
    save(folder / "a" / f"1{suffix.upper()}", Image.fromarray(pixels))
    assert np.array_equal(convert(folder).images[0], pixels)


def test_grey_is_repeated_in_rgb_and_kept_with_gray(folder: Path) -> None:
    pixels = noise_image(1)
    save(folder / "a" / "1.png", Image.fromarray(pixels[..., 0]))
    assert np.array_equal(convert(folder).images[0], np.repeat(pixels, 3, axis=2))
    assert np.array_equal(convert(folder, "--gray").images[0], pixels)


@pytest.mark.parametrize("options, expected", [((), [237, 28, 36]), (("--gray",), [91])])
def test_a_palette_is_looked_up(folder: Path, options: tuple[str, ...], expected: list[int]) -> None:
    save(folder / "a" / "1.png", palette_image(3))
    assert convert(folder, *options).images[0, 0, 0].tolist() == expected  # (299*237 + 587*28 + 114*36) / 1000 = 91.4


@pytest.mark.parametrize(
    "image, options, expected",
    [
        (plain((255, 0, 0, 0), "RGBA"), {}, [255, 255, 255]),
        (plain((200, 100, 0, 255), "RGBA"), {}, [200, 100, 0]),
        (plain((0, 0), "LA"), {}, [255, 255, 255]),
        (plain((10, 20, 30)), {"transparency": (10, 20, 30)}, [255, 255, 255]),
        (plain((11, 20, 30)), {"transparency": (10, 20, 30)}, [11, 20, 30]),
        (palette_image(1), {"transparency": 1}, [255, 255, 255]),
        (palette_image(1), {"transparency": 0}, [255, 0, 0]),
        (plain(1, "1"), {}, [255, 255, 255]),
    ],
)
def test_transparency_is_laid_over_white(
    folder: Path, image: Image.Image, options: dict[str, Any], expected: list[int]
) -> None:
    save(folder / "a" / "1.png", image, **options)
    assert convert(folder).images[0, 0, 0].tolist() == expected


def test_half_transparency_mixes_with_white(folder: Path) -> None:
    save(folder / "a" / "1.png", plain((0, 255, 51, 51), "RGBA"))  # a fifth of the colour, four fifths of white
    assert np.abs(convert(folder).images[0, 0, 0].astype(int) - [204, 255, 214]).max() <= 1


@pytest.mark.parametrize("value, expected", [(0, 0), (128, 0), (129, 1), (32768, 128), (65535, 255)])
def test_grey_of_16_bits_is_rounded_to_8(folder: Path, value: int, expected: int) -> None:
    # 65535 = 257 * 255, so the nearest grey level of v is the integer nearest to v / 257
    save(folder / "a" / "1.png", Image.fromarray(np.full((3, 3), value, dtype=np.uint16)))
    assert convert(folder, "--gray").images[0, 0, 0].tolist() == [expected]


def test_cmyk_becomes_rgb(folder: Path) -> None:
    save(folder / "a" / "1.tif", plain((0, 255, 255, 0), "CMYK"))
    assert convert(folder).images[0, 0, 0].tolist() == list(RED)


def test_the_exif_orientation_is_applied_before_the_size(folder: Path) -> None:
    image = Image.fromarray(np.repeat(np.array([[RED], [BLUE]], dtype=np.uint8), 3, axis=1))  # red above blue, 2x3
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    save(folder / "a" / "1.png", image, exif=exif)
    turned = convert(folder).images[0]
    assert turned.shape == (3, 2, 3)
    assert turned[0].tolist() == [list(BLUE), list(RED)]


def test_size_is_height_times_width(folder: Path) -> None:
    save(folder / "a" / "1.png", plain(RED, size=(30, 20)))
    save(folder / "a" / "2.png", plain(BLUE, size=(9, 50)))
    dataset = convert(folder, "--size", "8x12")
    assert dataset.images.shape == (2, 8, 12, 3)
    assert dataset.images[:, 3, 3].tolist() == [list(RED), list(BLUE)]


def test_images_of_two_sizes_need_a_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "a" / "1.png", plain(RED, size=(4, 3)))
    save(folder / "a" / "2.png", plain(RED, size=(5, 3)))
    line = refused(capsys, folder, folder.parent / "out.h5")
    assert line == (
        "error: a/2.png: found 3x5 pixels (height x width); expected 3x4 like a/1.png, or the option --size HxW"
    )
    assert not (folder.parent / "out.h5").exists()


def test_more_pixels_than_a_dataset_file_holds_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder / "a" / "1.png", plain(RED))
    save(folder / "a" / "2.png", plain(RED))
    monkeypatch.setattr(image_folder, "MAX_PIXEL_BYTES", 95)
    line = refused(capsys, folder, folder.parent / "out.h5")
    assert line.startswith("error: found 2 images of 48 bytes; expected 95 bytes in all at most")


# --- bad files


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def truncated(kind: str) -> bytes:
    content = encoded(Image.fromarray(noise_image(3)).resize((64, 64)), kind)
    return content[: len(content) * 2 // 3]


def damaged_png() -> bytes:
    content = bytearray(encoded(Image.fromarray(noise_image(3)), "PNG"))
    content[45] ^= 0xFF
    return bytes(content)


BAD_FILES: dict[str, Callable[[], bytes]] = {
    "empty.png": lambda: b"",
    "text.jpg": lambda: b"this is not an image",
    "short.png": lambda: truncated("PNG"),
    "short.jpg": lambda: truncated("JPEG"),
    "damaged.png": damaged_png,
    "float.tif": lambda: encoded(plain(0.5, "F"), "TIFF"),
    "script.png": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_and_left_out(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    save(folder / "a" / "good.png", plain(RED))
    save(folder / "b" / "good.png", plain(RED))
    (folder / "a" / name).write_bytes(BAD_FILES[name]())
    dataset = convert(folder)
    lines = capsys.readouterr().err.splitlines()
    assert len(dataset.images) == 2 and dataset.images[0, 0, 0].tolist() == list(RED)
    assert len(lines) == 2 and lines[0].startswith(f"left out: a/{name}: ") and " at 0x" not in lines[0]
    assert lines[1] == "left out: 1 of 3 files"
    assert "1 left out" in dataset.provenance


def test_a_decompression_bomb_is_named_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder / "a" / "good.png", plain(RED))
    save(folder / "a" / "large.png", plain(RED, size=(15, 10)))  # Pillow warns of this one
    save(folder / "a" / "larger.png", plain(RED, size=(25, 10)))  # and refuses this one
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(convert(folder).images) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines[:2]] == ["a/large.png", "a/larger.png"]
    assert lines[2] == "left out: 2 of 3 files"


def test_a_folder_of_bad_files_only_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "1.png").write_bytes(b"")
    line = refused(capsys, folder, folder.parent / "out.h5", "--flat")
    assert line == "error: split 'test': found 1 file and no readable image; expected one at least"


# --- what the file and the program say


def test_the_provenance_names_decoder_and_source_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "a" / "1.png", plain(RED))
    save(folder / "b" / "2.png", plain(BLUE))
    dataset = convert(folder)
    names = ("a/1.png", "b/2.png")
    lines = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert hashlib.sha256(lines.encode()).hexdigest() in dataset.provenance
    assert f"Pillow {Image.__version__}, libjpeg" in dataset.provenance
    assert str(folder.parent) not in dataset.provenance
    output = capsys.readouterr().out
    assert "2 images, 4x4x3, 2 classes, split 'test'" in output
    header = b"intsmooth-ref images 1 2 4 4 3\n"
    pixels = bytes(RED) * 16 + bytes(BLUE) * 16
    assert f"SHA-256 of the pixels {hashlib.sha256(header + pixels).hexdigest()}" in output


def test_an_output_that_exists_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "a" / "1.png", plain(RED))
    output = folder.parent / "out.h5"
    output.write_bytes(b"precious")
    line = refused(capsys, folder, output)
    assert line == f"error: {output}: found a file already; expected none, or the option --overwrite"
    assert output.read_bytes() == b"precious"


@pytest.mark.parametrize("flat", [True, False])
def test_a_folder_without_images_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], flat: bool) -> None:
    (folder / "empty_class").mkdir()
    line = refused(capsys, folder, folder.parent / "out.h5", *(["--flat"] if flat else []))
    assert line.startswith(f"error: {folder}: found no image; expected .png, ")


def test_a_missing_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, tmp_path / "nowhere", tmp_path / "out.h5")
    assert line == f"error: {tmp_path / 'nowhere'}: found no such folder; expected a folder of images"


def test_a_missing_output_folder_is_refused_before_any_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "nowhere" / "out.h5"
    line = refused(capsys, folder / "not there", output)
    assert line == f"error: {output}: found no folder {folder / 'nowhere'}; expected one that exists"


@pytest.mark.parametrize("name", ["a/1.png", "out.NPY", "out.npz"])
def test_an_output_that_is_an_image_or_would_be_read_as_another_file_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    save(folder / "a" / "1.png", plain(RED))
    before = (folder / "a" / "1.png").read_bytes()
    line = refused(capsys, folder, folder / name, "--overwrite")
    assert line == f"error: {folder / name}: found a name of another kind of file; expected one in .h5"
    assert (folder / "a" / "1.png").read_bytes() == before


# --- classes


def test_the_classes_are_named_on_the_screen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("line", "box", "disc"):
        save(folder / name / "1.png", plain(RED))
    convert(folder)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "classes: box, disc, line" and captured.err == ""
    for index in range(20):
        save(folder / f"x{index:02}" / "1.png", plain(RED))
    convert(folder)
    assert capsys.readouterr().out.splitlines()[-1].endswith(", x15, x16 and 3 more")


def test_folders_of_splits_are_not_taken_for_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Test/box", "Test/disc", "train/box", "train/disc"):
        save(folder / name / "1.png", plain(RED))
    line = refused(capsys, folder, folder.parent / "out.h5")
    part = folder / "Test"
    expected = f"one a class: convert {part} by itself, with --split Test"
    assert line == f"error: {folder}: found folders of splits (Test, train); expected {expected}"
    assert convert(part, "--split", "Test").class_names == ("box", "disc")


@pytest.mark.parametrize("name", ["test/1.png", "tent/a/1.png"])
def test_a_class_may_be_called_as_a_split_if_it_holds_images_or_stands_beside_others(folder: Path, name: str) -> None:
    save(folder / "train" / "deep" / "1.png", plain(RED))
    save(folder / name, plain(BLUE))
    assert convert(folder).class_names == tuple(sorted(["train", name.split("/")[0]]))


def test_an_image_beside_the_folders_in_a_split_makes_it_a_class(folder: Path) -> None:
    for name in ("test/a/1.png", "train/a/1.png", "train/0.png"):
        save(folder / name, plain(RED))
    assert convert(folder).class_names == ("test", "train")


def test_a_class_without_images_and_a_single_class_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder / "a" / "1.png", plain(RED))
    convert(folder)
    assert capsys.readouterr().err == "warning: found one class, 'a'; expected two at least to tell apart\n"
    (folder / "empty").mkdir()
    assert convert(folder).class_names == ("a", "empty")
    assert capsys.readouterr().err == "warning: found no image of the class 'empty'; it stays a class\n"


@pytest.mark.parametrize("arguments", [["--size", "32"], ["--size", "0x8"], ["--size", "8x99999"], ["--split", "a/b"]])
def test_wrong_options_end_in_status_2(folder: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        image_folder.main([str(folder), "out.h5", *arguments])
    assert stop.value.code == 2


def test_an_interruption_is_one_line_and_status_130(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    save(folder / "a" / "1.png", plain(RED))
    monkeypatch.setattr(image_folder, "decoded", interrupted)
    assert image_folder.main([str(folder), str(folder.parent / "out.h5")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (folder.parent / "out.h5").exists()


@pytest.mark.skipif(sys.platform == "win32" or sys.platform == "darwin", reason="file names are text there")
def test_names_that_are_no_text_are_escaped(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    save(folder / name / "1.png", plain(RED))
    assert convert(folder).class_names == ("caf\\xe9",)


def test_it_runs_as_a_module(folder: Path) -> None:
    save(folder / "a" / "1.png", plain(RED))
    save(folder / "b" / "1.png", plain(BLUE))
    command = [sys.executable, "-m", "intsmooth_ref.data_tools.image_folder", str(folder), str(folder.parent / "o.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SHA-256 of the pixels" in done.stdout

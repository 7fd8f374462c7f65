"""Lists of images: what is read, and each way in which a list can be wrong, in one line that says where."""

import json
import unicodedata

import numpy as np
import pytest
from image_cases import listing, write_folders, write_image

from landscape.data import load_dataset
from landscape.data.image_lists import read_image_list
from landscape.errors import LandscapeError

COUNTS = {"ant": 4, "bee": 3, "cow": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("images"), COUNTS)


def write_list(path, lines, *, end="\n", encoding="utf-8"):
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def read(tmp_path, root, lines, **options):
    return read_image_list(write_list(tmp_path / "list.txt", lines, **options), root)


@pytest.mark.parametrize("options", [{}, {"end": "\r\n"}, {"encoding": "utf-8-sig"}, {"end": "\n\n\r\n"}])
def test_line_ends_marks_and_empty_lines_do_not_matter(tmp_path, root, options):
    found = read(tmp_path, root, [*listing(root, COUNTS), "", "  "], **options)
    assert list(found.files.names) == [line.split()[0] for line in listing(root, COUNTS)]
    assert found.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert found.labels.dtype == np.int64


@pytest.mark.parametrize(
    "name", ["a b/c  d.png", "été/früh ☀.png", "日本/写真 1.png", "x\u00a0y/z\u2028.png", "tab\there.png"]
)
def test_names_may_hold_spaces_and_any_letters(tmp_path, name):
    write_image(tmp_path / name)
    for separator in (" ", "\t", "   "):
        found = read(tmp_path, tmp_path, [f"{name}{separator}0"])
        assert found.files.names == (name,)


def test_an_accent_may_be_stored_apart_from_its_letter(tmp_path):
    apart, composed = unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")
    write_image(tmp_path / apart)
    found = read(tmp_path, tmp_path, [f"{composed} 0"])
    assert found.files.names == (apart,)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ant/00.jpg 0", "ant/01.jpg"], "line 2: expected 'relative/path label' .* got 'ant/01.jpg'"),
        (["ant/00.jpg 0", "", "ant/01.jpg -1"], "line 3: expected .* a whole number from 0 .* got 'ant/01.jpg -1'"),
        (["ant/00.jpg 1.5"], "line 1: .* got 'ant/00.jpg 1.5'"),
        (["ant/00.jpg,0"], "line 1: .* got 'ant/00.jpg,0'"),
        (["ant/00.jpg ²"], "line 1: .* whole number"),
        (["ant/00.jpg 0", "ant/01.jpg 99"], r"line 2: 'ant/01.jpg' has label 99, out of range for 2 images"),
        (["ant/00.jpg 0", f"ant/01.jpg {10**30}"], "line 2: .* out of range"),
        (
            ["ant/00.jpg 0", "ant/01.jpg 0", "ant/00.jpg 0", "ant/00.jpg 1"],
            "line 3: 'ant/00.jpg' is also line 1, one of 2 repeats",
        ),
        (
            ["ant/00.jpg 0", "ant/7.jpg 0", "owl/0.jpg 1"],
            "line 2: 'ant/7.jpg' is missing, one of 2 of 3 listed images that are not below",
        ),
        ([], "the list is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path, root, lines, message):
    with pytest.raises(LandscapeError, match=f"list.txt.*{message}") as caught:
        read(tmp_path, root, lines)
    assert "\n" not in str(caught.value)


def test_what_is_no_list_is_said(tmp_path, root):
    with pytest.raises(LandscapeError, match="is a folder: expected a list"):
        read_image_list(root, root)
    with pytest.raises(LandscapeError, match=r"cannot read the list .*none.txt"):
        read_image_list(tmp_path / "none.txt", root)
    for encoding in ("latin-1", "utf-16"):
        with pytest.raises(LandscapeError, match=r"line [12]: not UTF-8"):
            read(tmp_path, root, ["ant/00.jpg 0", "é.jpg 0"], encoding=encoding)


def test_labels_of_a_test_list_are_those_of_the_training(tmp_path, root):
    train = write_list(tmp_path / "train.txt", listing(root, COUNTS)[:7])
    test = write_list(tmp_path / "test.txt", listing(root, COUNTS))
    with pytest.raises(
        LandscapeError, match=r"test.txt, line 8: 'cow/00.jpg' has label 2, out of range 0..1 \(and 1 more\)"
    ):
        load_dataset("image-list", data_dir=root, train_list=train, test_list=test)


def test_a_class_without_images_is_an_error(tmp_path, root):
    train = write_list(tmp_path / "train.txt", [line.replace(" 1", " 3") for line in listing(root, COUNTS)])
    with pytest.raises(LandscapeError, match=r"image-list: class 1 \('1'\) has no training example"):
        load_dataset("image-list", data_dir=root, train_list=train, test_list=train)
    with pytest.raises(LandscapeError, match=r"class 1 has no training example.* add a test_list"):
        load_dataset("image-list", data_dir=root, train_list=train)


def test_inaturalist_annotations(tmp_path, root):
    names = [line.split()[0] for line in listing(root, COUNTS)]
    record = {
        "images": [{"id": 100 + k, "file_name": name} for k, name in enumerate(names)],
        "annotations": [{"image_id": 100 + k, "category_id": "abc".index(name[0])} for k, name in enumerate(names)][
            ::-1
        ],
        "categories": [{"id": 1, "name": "Apis"}, {"id": 0, "name": "Lasius"}, {"id": 2, "name": "Bos"}],
    }
    path = tmp_path / "train2018.json"
    path.write_text(json.dumps(record))
    found = read_image_list(path, root)
    assert found.files.names == tuple(names)
    assert found.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert found.class_names == ("Lasius", "Apis", "Bos")
    record["images"][2]["file_name"] = "none.jpg"
    path.write_text(json.dumps(record))
    with pytest.raises(LandscapeError, match=r"train2018.json, image 3: 'none.jpg' is missing"):
        read_image_list(path, root)
    path.write_text(json.dumps({"images": record["images"], "annotations": []}))
    with pytest.raises(LandscapeError, match=r"annotation file of iNaturalist 2018 .* KeyError"):
        read_image_list(path, root)
    path.write_text("[")
    with pytest.raises(LandscapeError, match="annotation file of iNaturalist 2018"):
        read_image_list(path, root)


OUTSIDE = {
    "parent": lambda elsewhere, root: "../elsewhere/a.png",
    "absolute": lambda elsewhere, root: str(elsewhere / "a.png"),
    "linked folder": lambda elsewhere, root: "folder/a.png",
    "linked file": lambda elsewhere, root: "link.png",
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_images_outside_the_data_folder_are_read_only_if_that_is_asked_for(tmp_path, kind):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    write_image(root / "in.png")
    write_image(elsewhere / "a.png")
    (root / "folder").symlink_to(elsewhere)
    (root / "link.png").symlink_to(elsewhere / "a.png")
    (root / "alias.png").symlink_to(root / "in.png")
    name = OUTSIDE[kind](elsewhere, root)
    path = write_list(tmp_path / "list.txt", ["in.png 0", f"{name} 0"])
    with pytest.raises(LandscapeError, match=r"list\.txt, line 2: .* leads out of .*--allow-outside"):
        read_image_list(path, root)
    assert len(read_image_list(path, root, allow_outside=True).files) == 2
    # The folder itself may be a link, and names may wander inside it.
    (tmp_path / "data").symlink_to(root)
    with pytest.raises(LandscapeError):  # through a link that leads elsewhere, .. is elsewhere
        read_image_list(write_list(tmp_path / "other.txt", ["folder/../list.txt 0"]), tmp_path / "data")
    path = write_list(tmp_path / "list.txt", ["in.png 0", "alias.png 0"])
    assert len(read_image_list(path, tmp_path / "data").files) == 2

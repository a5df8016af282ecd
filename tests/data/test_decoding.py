import os

import numpy as np
import pytest
from PIL import Image

from tests.data.support import crops
from tvmatch.data.decoding import UnusablePicture, decode

RED, WHITE = (255, 0, 0), (255, 255, 255)


def decoded(tmp_path, image, suffix="png", size=8, **options) -> np.ndarray:
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **options)
    array, _, _ = decode(path, size)
    assert array.shape == (size, size, 3)
    assert array.dtype == np.uint8
    return array


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_gives_the_same_white(tmp_path, mode):
    white = Image.new("I;16", (8, 8), 65535) if mode == "I;16" else Image.new("RGB", (8, 8), "white").convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    assert (decoded(tmp_path, white, suffix) == 255).all()


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    levels = np.array([[0, 257], [32768, 65535]], np.uint16)
    array = decoded(tmp_path, Image.fromarray(levels), size=2)
    assert array[..., 0].tolist() == [[0, 1], [128, 255]]
    assert (array == array[..., :1]).all()


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_sixteen_bit_tiff_in_both_byte_orders(tmp_path, byte_order):
    picture = Image.fromarray(np.full((4, 4), 32768).astype(byte_order))
    assert (decoded(tmp_path, picture, "tif", size=4) == 128).all()


def test_values_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnusablePicture, match="from 70000 to 70000"):
        decode(tmp_path / "wide.tif", 4)
    with pytest.raises(UnusablePicture, match="floating-point"):
        decode(tmp_path / "float.tif", 4)


@pytest.mark.parametrize("kind", [np.int32, np.uint32])
def test_a_tiff_of_32_bits_does_not_become_black(tmp_path, kind):
    Image.fromarray(np.full((4, 4), 200, kind)).save(tmp_path / "wide.tif")
    with pytest.raises(UnusablePicture, match="from 200 to 200 in 32 bits, of unknown range; save it with 8 or 16"):
        decode(tmp_path / "wide.tif", 4)


def test_a_pgm_of_16_bits_is_no_wide_picture(tmp_path):
    (tmp_path / "picture.pgm").write_bytes(b"P5 2 2 65535\n" + np.full(4, 32768, ">u2").tobytes())
    assert (decode(tmp_path / "picture.pgm", 2)[0] == 128).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    array = decoded(tmp_path, Image.new("RGB", (8, 8), RED).convert("CMYK"), "jpg", quality=95)
    np.testing.assert_allclose(array.reshape(-1, 3).mean(0), RED, atol=4)


def test_transparency_lies_over_white(tmp_path):
    assert (decoded(tmp_path, Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == 255).all()
    half = decoded(tmp_path, Image.new("RGBA", (8, 8), (0, 0, 0, 128)))
    np.testing.assert_allclose(half, 127, atol=1)


def test_a_transparent_colour_lies_over_white(tmp_path):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, *RED])
    palette.paste(1, (4, 0, 8, 8))
    array = decoded(tmp_path, palette, "gif", transparency=0)
    assert array[0, 0].tolist() == list(WHITE)
    assert array[0, 7].tolist() == list(RED)
    array = decoded(tmp_path, Image.new("RGB", (8, 8), (1, 2, 3)), transparency=(1, 2, 3))
    assert (array == 255).all()


def test_a_transparent_level_of_sixteen_bits_lies_over_white(tmp_path):
    levels = np.array([[40, 41], [5000, 40]], np.uint16)  # 40 and 41 are the same of 8 bits
    array = decoded(tmp_path, Image.fromarray(levels), size=2, transparency=40)
    assert array[..., 0].tolist() == [[255, 0], [19, 255]]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (2, (0, 7)), (3, (7, 7)), (6, (0, 7)), (8, (7, 0))])
def test_the_exif_rotation_is_applied(tmp_path, orientation, corner):
    image = Image.new("RGB", (8, 8), "black")
    image.paste(WHITE, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = decoded(tmp_path, image, exif=exif)
    assert array[corner].tolist() == list(WHITE)
    assert (array[..., 0] > 0).sum() == 4


@pytest.mark.parametrize("width_and_height", [(16, 8), (8, 16)])
def test_the_centre_is_kept(tmp_path, width_and_height):
    image = Image.new("RGB", width_and_height, RED)
    width, height = width_and_height
    image.paste(WHITE, ((width - 8) // 2, (height - 8) // 2, (width + 8) // 2, (height + 8) // 2))
    assert (decoded(tmp_path, image) == 255).all()
    array, original, _ = decode(tmp_path / "picture.png", 4)
    assert (array == 255).all()
    assert original == width_and_height


def test_shrinking_averages_instead_of_dropping_pixels(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    np.testing.assert_allclose(decoded(tmp_path, Image.fromarray(board.astype(np.uint8))), 128, atol=12)


def test_a_sliver_is_not_blown_up(tmp_path):
    assert decoded(tmp_path, Image.new("L", (60000, 1), 9), size=64).max() == 9


def test_large_jpegs_are_right_though_decoded_small(tmp_path):
    image = Image.new("RGB", (512, 512), "black")
    image.paste(WHITE, (0, 0, 256, 512))
    array = decoded(tmp_path, image, "jpg", size=16, quality=95)
    assert array[:, :7].min() > 240
    assert array[:, 9:].max() < 15


def test_decoding_small_loses_no_detail_that_is_wanted(tmp_path):
    stripes = np.tile(np.repeat([0, 255], 8).astype(np.uint8), (256, 16))
    array = decoded(tmp_path, Image.fromarray(stripes), "jpg", size=64, quality=95)
    expected = np.tile(np.repeat([0, 255], 2), 16)
    np.testing.assert_allclose(array[..., 0], np.broadcast_to(expected, (64, 64)), atol=50)


def test_several_frames_are_reported(tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    array, _, several_frames = decode(tmp_path / "a.gif", 8)
    assert several_frames
    assert (array == 0).all()


def test_a_png_whose_second_half_was_never_written_is_no_picture(tmp_path):
    Image.fromarray(crops(1, 64)[0][0]).save(tmp_path / "picture.png")
    content = (tmp_path / "picture.png").read_bytes()
    half = content[: len(content) // 2].ljust(len(content), b"\0")  # as after a crash: the size is right
    (tmp_path / "picture.png").write_bytes(half)
    for encoded in (tmp_path / "picture.png", half):
        with pytest.raises(UnusablePicture, match=r"damaged: .*checksum.*IDAT"):
            decode(encoded, 64)


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnusablePicture, match="not a regular file"):
        decode(tmp_path / "pipe.png", 8)


def test_other_programs_are_never_started(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.eps")  # Pillow would hand it to Ghostscript
    (tmp_path / "picture.eps").rename(tmp_path / "picture.png")
    with pytest.raises(UnusablePicture, match="unknown format"):
        decode(tmp_path / "picture.png", 8)

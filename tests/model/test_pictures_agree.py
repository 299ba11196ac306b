"""The library fits a folder's pictures as the service does."""

import numpy as np
import pytest
from PIL import Image

from model.data import fit_picture
from service.contract.media.fitting import fit_square
from service.contract.media.pictures import open_picture


def _photo(width, height):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 17 * channel) for channel in (1, 2, 3)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (130, 90), (91, 130), (181, 127)])
def test_library_and_service_fit_a_picture_to_the_same_pixels(tmp_path, size):
    path = tmp_path / "photo.png"
    _photo(*size).save(path)
    served, _ = fit_square(open_picture(path.read_bytes()), 64)
    np.testing.assert_array_equal(fit_picture(path, 64), served)


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA", "P", "PA", "L", "1", "CMYK"])
def test_pictures_of_every_mode_are_read_alike(tmp_path, mode):
    photo = _photo(64, 64)
    alpha = photo.getchannel(1)
    pictures = {
        "I;16": lambda: Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257),
        "RGBA": lambda: Image.merge("RGBA", (*photo.split(), alpha)),
        "LA": lambda: Image.merge("LA", (photo.convert("L"), alpha)),
        "PA": lambda: Image.merge("RGBA", (*photo.split(), alpha)).quantize(16),
    }
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    pictures.get(mode, lambda: photo.convert(mode))().save(path)
    served, _ = fit_square(open_picture(path.read_bytes()), 64)
    np.testing.assert_array_equal(fit_picture(path, 64), served)


@pytest.mark.parametrize("size", [(640, 480), (1200, 1801)])
def test_large_pictures_differ_only_by_how_they_are_reduced_first(tmp_path, size):
    path = tmp_path / "photo.png"
    _photo(*size).save(path)
    served, _ = fit_square(open_picture(path.read_bytes()), 64)
    difference = fit_picture(path, 64).astype(int) - served
    assert np.abs(difference).mean() < 1.5
    assert abs(difference.mean()) < 0.1

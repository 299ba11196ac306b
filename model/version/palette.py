"""The colours of keypoints and boxes, the same in every picture that the product draws."""

from __future__ import annotations

# Seven of Okabe and Ito's colours, which differ for every kind of colour vision, then lighter and darker ones of these
# in an order in which neighbours differ most, also as people without red or green cones see them.
_HEX = """
e69f00 0072b2 f0e442 d55e00 56b4e9 cc79a7 009e73 803800 00446b f8f2a0 80ceb9 7a4964 f2cf80 005f45 eaae80 346c8c
aadaf4 908928 80b8d8 8a5f00 e6bcd3 512400 fbf7ca 573c00 d0eaf9 4e2e3f f1d9e6 002b44 f8e4b8 003c2c b8e4d8 214459
"""
PALETTE = tuple(map(bytes.fromhex, _HEX.split()))
BOX_RGB = (0xF0, 0xE4, 0x42)
"""The colour of a box around the thing, light on most pictures."""
_BOXES = (2, 4, 3, 5, 6, 0, 1)  # indices into the palette; the first is BOX_RGB


def box_rgb(animal: int) -> tuple[int, int, int]:
    """Return the RGB colour (0 to 255) of an animal's box; the eighth animal has that of the first."""
    return keypoint_rgb(_BOXES[animal % len(_BOXES)])


def keypoint_rgb(index: int) -> tuple[int, int, int]:
    """Return the RGB colour (0 to 255) of a keypoint; 32 differ."""
    red, green, blue = PALETTE[index % len(PALETTE)]
    return red, green, blue

"""Patches: an image becomes a sequence, so that a transformer can read it.

A transformer reads a sequence of vectors, and does not ask where they come from. To make one of an image, the vision
transformer (ViT) cuts it into square patches, as one cuts a sheet into stamps, and lays them in a row: the top row of
patches from left to right, then the row below it. What was text is then an image: a patch is a position.

The numbers of a patch become one row: first all of channel 0, row of pixels by row of pixels, then all of channel 1,
and so on. A linear layer makes a vector of it, which is why its axis is called `inputs` here.

    >>> import torch
    >>> pixels = torch.arange(16.0)
    >>> image = rearrange(pixels, "(image_height image_width) -> 1 1 image_height image_width", image_width=4)
    >>> image[0, 0]
    tensor([[ 0.,  1.,  2.,  3.],
            [ 4.,  5.,  6.,  7.],
            [ 8.,  9., 10., 11.],
            [12., 13., 14., 15.]])
    >>> patches(image, 2)[0]
    tensor([[ 0.,  1.,  4.,  5.],
            [ 2.,  3.,  6.,  7.],
            [ 8.,  9., 12., 13.],
            [10., 11., 14., 15.]])

One channel, four by four pixels, in patches of two by two: four positions of four numbers.

Height and width are multiples of `size`, and need not be equal. All of it is one call of `rearrange`: the axes `rows`
and `columns` count patches, `patch_height` and `patch_width` count pixels within one.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, paragraphs


@checked
def patches(
    images: Float[Tensor, "batch channels image_height image_width"], size: int
) -> Float[Tensor, "batch seq inputs"]:
    """Cut images into patches of `size` by `size` pixels, and make one position of each."""
    return rearrange(
        images,
        "batch channels (rows patch_height) (columns patch_width)"
        " -> batch (rows columns) (channels patch_height patch_width)",
        patch_height=size,
        patch_width=size,
    )


def cases() -> Iterator[Case]:
    """Higher than wide, a single patch, patches of one pixel."""
    yield Case(torch.randn(2, 3, 8, 6), 2)
    yield Case(torch.randn(1, 2, 5, 5), 5)
    yield Case(torch.randn(3, 1, 2, 3), 1)
    yield Case(torch.randn(1, 3, 3, 9), 3)


def a_position_is_one_square_of_the_image(patches: Callable[..., Tensor]) -> None:
    """All pixels of one square, in all channels, come to one position; no other position gets any of them."""
    image = torch.zeros(1, 3, 4, 6)
    image[..., 2:, 2:4] = 1.0
    places = [place for place, row in enumerate(patches(image, 2)[0].tolist()) if any(row)]
    if len(places) != 1:
        raise Fault(f"of 2 rows of 3 patches all were empty but one, and what it held came to seq {_listed(places)}")


def patches_are_read_like_a_page(patches: Callable[..., Tensor]) -> None:
    """From left to right, and then from top to bottom: in 2 rows of 3, the last of the first row is at seq 2."""
    image = torch.zeros(1, 1, 4, 6)
    image[..., :2, 4:] = 1.0
    places = [place for place, row in enumerate(patches(image, 2)[0].tolist()) if any(row)]
    if places != [2]:
        raise Fault(f"in 2 rows of 3, the patch at the end of the first row came to seq {_listed(places)}")


def a_patch_keeps_its_channels_together(patches: Callable[..., Tensor]) -> None:
    """Channel by channel: of 3 channels with 4 pixels each, the middle one has the numbers 4 to 7."""
    image = torch.zeros(1, 3, 2, 2)
    image[:, 1] = 1.0
    places = [place for place, number in enumerate(patches(image, 2)[0, 0].tolist()) if number]
    if places != [4, 5, 6, 7]:
        raise Fault(f"of 3 channels only the middle one was not empty; its numbers are at inputs {_listed(places)}")


def _listed(places: list[int]) -> str:
    return ", ".join(map(str, places))


exercise = Exercise(
    __name__,
    solution=(patches,),
    cases=cases,
    properties=(
        a_position_is_one_square_of_the_image,
        patches_are_read_like_a_page,
        a_patch_keeps_its_channels_together,
    ),
    hints=paragraphs(
        """
        A pattern may have brackets on both sides. On the left they say how an axis is to be cut, on the right which
        axes become one.

        The left side is `batch channels (rows patch_height) (columns patch_width)`: a patch's place is the slow part,
        the pixel within it the fast one. Both `patch_height` and `patch_width` are `size`.

        On the right there are three axes: `batch`, then the place of the patch, `(rows columns)`, then what it holds,
        `(channels patch_height patch_width)`. Pass `patch_height=size, patch_width=size`.
        """
    ),
    page="vit.html#ViTEncoder.embed",
    part_of="allformers.models.vit.vit.ViTEncoder.embed",
    prerequisites=("split-heads",),
)

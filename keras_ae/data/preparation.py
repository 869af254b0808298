"""How an import changed the pictures of a dataset; saved with the dataset and the models trained on it."""

import dataclasses

BACKGROUNDS = ("white", "black")


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How each picture was changed, besides scaling it to one size and making it grey or RGB.

    Attributes:
        background: "white" or "black", behind transparent pixels.
        crop: whether a picture of other proportions was cut at two opposite sides.
        stretch: whether a picture of other proportions was stretched.
    """

    background: str = "white"
    crop: bool = False
    stretch: bool = False

    def __post_init__(self):
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be white or black; got {self.background!r}")
        if type(self.crop) is not bool or type(self.stretch) is not bool:
            raise ValueError("crop and stretch are true or false")

    def to_dict(self):
        """The preparation as a dict of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Makes a preparation from such a dict.

        Raises:
            ValueError: the dict holds something else.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"it is no preparation of images ({error})") from error

"""What an import did to the pictures of a dataset, kept with it and with the models trained on it."""

import dataclasses

BACKGROUNDS = ("white", "black")


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What was done to each picture besides scaling it to the one size, and making it grey or RGB.

    Attributes:
        background: "white" or "black", behind transparent pixels.
        crop: what is over at two opposite sides of a picture of other proportions was cut off.
        stretch: a picture of other proportions was stretched.
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
        """A dict of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """The preparation in a dict.

        Raises:
            ValueError: it holds something else.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"it is no preparation of images ({error})") from error

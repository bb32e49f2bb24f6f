"""The photographs in the scikit-image package, for training without another data set.

"skimage:coffee,rocket" stands for these photographs wherever a folder of images is expected.
"""

from importlib.resources import files
from pathlib import Path

PREFIX = "skimage:"
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "hubble": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}


def photographs(name: str) -> list[Path]:
    """The paths of "skimage:NAME,NAME". Raises ValueError for a name that is not in PHOTOGRAPHS."""
    names = name.removeprefix(PREFIX).split(",")
    for unknown in set(names) - set(PHOTOGRAPHS):
        raise ValueError(f"{name}: {unknown!r} is no photograph of scikit-image; use some of {', '.join(PHOTOGRAPHS)}")
    return [Path(str(files("skimage") / "data" / PHOTOGRAPHS[known])) for known in names]

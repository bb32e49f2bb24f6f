"""The settings of a run that are paths."""

import dataclasses
import os

PATHS = ("trainpath", "lrpath", "valpath", "vallrpath", "judge_weights", "extractor_weights", "cache", "modelpath")


def absolute_paths(config):
    """A Config with its paths absolute, so that they mean the same in every working folder."""

    def absolute(path: str) -> str:
        return path if path.startswith("skimage:") else os.path.abspath(path)

    values = {name: getattr(config, name) for name in PATHS}
    values = {name: absolute(x) if isinstance(x, str) else x and tuple(map(absolute, x)) for name, x in values.items()}
    values["cache"] = config.cache if config.cache == "none" else values["cache"]
    return dataclasses.replace(config, **values)

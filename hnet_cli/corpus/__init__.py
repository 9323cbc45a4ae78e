"""From the user's files to a dataset, and from a dataset to batches."""

from hnet_cli.corpus.baseline import baselines
from hnet_cli.corpus.dataset import Dataset
from hnet_cli.corpus.detection import detect
from hnet_cli.corpus.loader import BOS, Batch, Batches, windows
from hnet_cli.corpus.named import sources_of
from hnet_cli.corpus.preparation import Summary, join, part_folder, prepare, whole_folder

__all__ = [
    "BOS",
    "Batch",
    "Batches",
    "Dataset",
    "Summary",
    "baselines",
    "detect",
    "join",
    "part_folder",
    "prepare",
    "sources_of",
    "whole_folder",
    "windows",
]

"""From the user's files to a dataset, and from a dataset to batches."""

from hnet_cli.corpus.baselines import baselines
from hnet_cli.corpus.dataset import Dataset
from hnet_cli.corpus.detect import detect
from hnet_cli.corpus.loader import BOS, Batch, Batches, windows
from hnet_cli.corpus.prepare import Summary, prepare

__all__ = ["BOS", "Batch", "Batches", "Dataset", "Summary", "baselines", "detect", "prepare", "windows"]

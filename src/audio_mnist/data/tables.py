"""Tables that a person wrote: a csv as text."""

import csv
import warnings
from pathlib import Path

import pandas as pd

from audio_mnist.errors import DataError

OPTIONAL = ("label", "speaker", "split", "fold")  # columns that some tables have


def cell(text: str) -> str:
    """Return a text as a csv cell that no spreadsheet takes for a formula.

    >>> cell("=1+1"), cell("-1"), cell("yes")
    ("'=1+1", '-1', 'yes')
    """
    formula = text.startswith(("=", "@", "\t", "\r")) or (text.startswith(("+", "-")) and not _is_number(text))
    return f"'{text}" if formula else text


def safe(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with its text columns passed through `cell`."""
    texts = {str(name): table[name].map(cell) for name in table.select_dtypes(["object", "string"])}
    return table.assign(**texts)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(path: Path, key: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a csv as text, "" for an empty cell.

    Args:
        path: the file.
        key: config key that names it, for messages.
        columns: columns that it must have.

    Returns:
        The rows that are not empty. Row i stands on line i + 2 of the file.

    Raises:
        DataError: the file is missing, is not a csv, lacks a column or has it twice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                skipinitialspace=True,
                skip_blank_lines=False,  # dropped below, so that line numbers are the file's
                index_col=False,  # or a column too many would become an index
                encoding="utf-8-sig",
            )
    except pd.errors.ParserWarning:
        raise DataError(
            f"{key}={path}: lines have more values than the header has columns; quote a path that has a comma, "
            "and end no line with one"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{key}={path}: no such file") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{key}={path}: not a readable csv ({str(error).strip()})") from None
    names = _header(path)
    twice = sorted({name for name in names if name and names.count(name) > 1} & {*columns, *OPTIONAL})
    if twice:
        raise DataError(f"{key}={path}: {names.count(twice[0])} columns are named {twice[0]!r}; keep one of them")
    table.columns = [str(c).strip() for c in table.columns]
    missing = [c for c in columns if c not in table]
    if missing:
        raise DataError(f"{key}={path}: column {missing[0]!r} is missing; found {', '.join(table.columns)}")
    table = table.fillna("").apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise DataError(f"{key}={path}: the csv lists no clips")
    return table


def _header(path: Path) -> list[str]:
    """Return the column names as the file has them; pandas renames repeated ones."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [name.strip() for name in next(csv.reader(file, skipinitialspace=True), [])]

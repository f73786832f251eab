"""Convert Stack Exchange dumps (XML, one row per line) to labelled text, in constant memory."""

from __future__ import annotations

import re
from collections import Counter
from html import unescape
from pathlib import Path
from random import Random
from xml.etree.ElementTree import ParseError

import pandas as pd
from defusedxml.common import DefusedXmlException, DTDForbidden
from defusedxml.ElementTree import fromstring

MAX_ROW_BYTES = 2**24
FRAME = re.compile(rb"(\xef\xbb\xbf)?(<\?xml [^<>]*\?>)?\s*(</?posts>)?\s*")  # lines that contain no row
DECLARATION = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)  # also if the declaration spans several lines
MAX_REPORTED = 5  # maximum number of broken rows to print


class PostsError(Exception):
    """The posts cannot be read; the message states the file, the line and the reason."""


def write_tsv(xml: Path, tsv: Path, about: str) -> Counter:
    """Write the id, label and text of each question, one per line; return the number of rows of each kind.

    The label is 1 for a question with the tag ``about``. Broken rows are skipped and counted, the first few printed.
    Raise PostsError for a row that is too long, for a DOCTYPE or ENTITY, or if all questions have the same label.
    """
    counts = Counter(questions=0, positive=0, answers=0, broken=0)
    with xml.open("rb") as lines, tsv.open("w", encoding="utf-8", newline="\n") as output:
        output.write("id\tlabel\ttext\n")
        number = 0
        while line := lines.readline(MAX_ROW_BYTES):
            number += 1
            if len(line) == MAX_ROW_BYTES:
                raise PostsError(f"{xml}, line {number}: longer than {MAX_ROW_BYTES} bytes; expected one row per line.")
            if FRAME.fullmatch(line):
                continue
            try:
                question = _question(line, about)
            except DefusedXmlException:
                raise PostsError(f"{xml}, line {number}: DOCTYPE and ENTITY declarations are not allowed.") from None
            except (ParseError, KeyError, ValueError) as error:
                counts["broken"] += 1
                if counts["broken"] <= MAX_REPORTED:
                    print(f"line {number} is broken and was skipped: {error!r}")
                continue
            if question is None:
                counts["answers"] += 1
                continue
            counts["questions"] += 1
            counts["positive"] += question[1]
            output.write("{}\t{}\t{}\n".format(*question))
    if not counts["positive"] or counts["positive"] == counts["questions"]:
        raise PostsError(f"{xml}: {dict(counts)}; expected questions with the tag {about}, and questions without it.")
    return counts


def _question(line: bytes, about: str) -> tuple[int, int, str] | None:
    """Return the id, label and text of a question, or None for any other post."""
    if DECLARATION.search(line):
        raise DTDForbidden(None, None, None)
    row = fromstring(line, forbid_dtd=True)
    if row.tag != "row":
        raise ValueError(f"<{row.tag}>")
    if row.get("PostTypeId", "1") != "1":
        return None
    text = unescape(re.sub(r"<[^<>]*>", " ", f"{row.attrib['Title']} {row.attrib['Body']}"))
    label = about in re.split(r"[<>|]+", row.attrib["Tags"])
    return int(row.attrib["Id"]), int(label), " ".join(text.split())


def split(tsv: Path, train: Path, test: Path, test_fraction: float, seed: int) -> None:
    """Split a file's lines at random into two files; both get the header."""
    random = Random(seed)  # noqa: S311 - not security-relevant
    with tsv.open("rb") as lines, train.open("wb") as training, test.open("wb") as testing:
        header = next(lines)
        training.write(header)
        testing.write(header)
        for line in lines:
            (testing if random.random() < test_fraction else training).write(line)


def read(tsv: Path) -> pd.DataFrame:
    """Return a file's posts, with the columns id, label and text."""
    return pd.read_csv(tsv, sep="\t", quoting=3, dtype={"text": str}, keep_default_na=False)

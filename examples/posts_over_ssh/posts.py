"""Posts of Stack Exchange's dumps: from XML with a row a line to text with a label, in constant memory."""

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

LONGEST_ROW = 2**24  # bytes
FRAME = re.compile(rb"(\xef\xbb\xbf)?(<\?xml [^<>]*\?>)?\s*(</?posts>)?\s*")  # the lines that are no rows
DECLARATION = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)  # also one that continues in the next line
REPORTED = 5  # broken rows


class PostsError(Exception):
    """Posts cannot be read; the text says why, and where."""


def write_tsv(xml: Path, tsv: Path, about: str) -> Counter:
    """Write id, label and text of each question, a line each; return the counts, broken rows among them.

    The label is 1 for a question with the tag ``about``. A broken row is left out, counted, and for the first few
    printed with its line. Raises PostsError for a document type, a row that is too long, and when no row is a question.
    """
    counts = Counter(questions=0, positive=0, answers=0, broken=0)
    with xml.open("rb") as lines, tsv.open("w", encoding="utf-8", newline="\n") as output:
        output.write("id\tlabel\ttext\n")
        number = 0
        while line := lines.readline(LONGEST_ROW):
            number += 1
            if len(line) == LONGEST_ROW:
                raise PostsError(f"{xml}, line {number}: longer than {LONGEST_ROW} bytes, so not one row a line.")
            if FRAME.fullmatch(line):
                continue
            try:
                question = _question(line, about)
            except DefusedXmlException:
                raise PostsError(f"{xml}, line {number}: a document type or an entity, which no dump has.") from None
            except (ParseError, KeyError, ValueError) as problem:
                counts["broken"] += 1
                if counts["broken"] <= REPORTED:
                    print(f"line {number} is broken and left out: {problem!r}")
                continue
            if question is None:
                counts["answers"] += 1
                continue
            counts["questions"] += 1
            counts["positive"] += question[1]
            output.write("{}\t{}\t{}\n".format(*question))
    if not counts["positive"] or counts["positive"] == counts["questions"]:
        raise PostsError(f"{xml}: {dict(counts)}; a question needs posts with the tag {about}, and others.")
    return counts


def _question(line: bytes, about: str) -> tuple[int, int, str] | None:
    """Return id, label and text of a row; None for an answer, which has no tags."""
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
    """Write each line of a file to one of two others, by chance; both start with the header."""
    random = Random(seed)  # noqa: S311 - a split is no secret
    with tsv.open("rb") as lines, train.open("wb") as training, test.open("wb") as testing:
        header = next(lines)
        training.write(header)
        testing.write(header)
        for line in lines:
            (testing if random.random() < test_fraction else training).write(line)


def read(tsv: Path) -> pd.DataFrame:
    """Return the posts of a file: the columns id, label and text."""
    return pd.read_csv(tsv, sep="\t", quoting=3, dtype={"text": str}, keep_default_na=False)

"""100,000 real posts from Stack Overflow, extracted for an older DVC tutorial."""

from __future__ import annotations

import tarfile
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory

import pooch

URL = "https://s3-us-west-2.amazonaws.com/dvc-share/so/100K/Posts.xml.tgz"
ARCHIVE_MD5 = "5988519f8465218abb23ce0e0e8b1384"
POSTS_MD5 = "cfdaa4bba57fa07d81ff96685a9aab2c"


def write_xml(file: Path, url: str = URL, archive_md5: str = ARCHIVE_MD5, posts_md5: str = POSTS_MD5) -> None:
    """Download the archive and write its Posts.xml to a file; raise ValueError if an md5 does not match."""
    with TemporaryDirectory() as folder:
        archive = pooch.retrieve(url, f"md5:{archive_md5}", path=folder)
        with tarfile.open(archive) as members, file.open("wb") as output:
            copyfileobj(members.extractfile("Posts.xml"), output)
    if pooch.file_hash(file, "md5") != posts_md5:
        raise ValueError(f"The md5 of Posts.xml in {url} is {pooch.file_hash(file, 'md5')}; expected {posts_md5}")

"""The real posts: 100,000 of Stack Overflow, cut out for an older tutorial on DVC."""

from __future__ import annotations

import tarfile
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory

import pooch

ADDRESS = "https://s3-us-west-2.amazonaws.com/dvc-share/so/100K/Posts.xml.tgz"
ARCHIVE_MD5 = "5988519f8465218abb23ce0e0e8b1384"
POSTS_MD5 = "cfdaa4bba57fa07d81ff96685a9aab2c"


def write_xml(file: Path, address: str = ADDRESS, archive_md5: str = ARCHIVE_MD5, posts_md5: str = POSTS_MD5) -> None:
    """Download the archive and write its Posts.xml to a file; raise ValueError if one of them has another md5."""
    with TemporaryDirectory() as folder:
        archive = pooch.retrieve(address, f"md5:{archive_md5}", path=folder)
        with tarfile.open(archive) as members, file.open("wb") as output:
            copyfileobj(members.extractfile("Posts.xml"), output)
    if pooch.file_hash(file, "md5") != posts_md5:
        raise ValueError(f"The md5 of Posts.xml in {address} is {pooch.file_hash(file, 'md5')}, and not {posts_md5}")

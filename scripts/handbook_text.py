#!/usr/bin/env python3
"""Extracts English text for calibration and held-out evaluation from a Debian package.

The Debian Administrator's Handbook (debian-handbook, GPL-2+ or CC-BY-SA-3.0) is downloaded with
apt-get and unpacked in a temporary folder; nothing is installed. Whole chapters go to
OUT_DIR/calibration.txt and the others, about a sixth of the text, to OUT_DIR/heldout.txt: one
paragraph a line, an empty line between.

The same package gives the same files. A second call finds them and needs no network.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

PAGES = Path("usr/share/doc/debian-handbook/html/en-US")
# Of different kinds: for beginners, for administrators, for users and for developers.
HELDOUT_CHAPTERS = (
    "installation",
    "network-infrastructure",
    "workstation",
    "debian-packaging",
)
VOID_TAGS = {"area", "br", "col", "hr", "img", "input", "link", "meta"}
BLOCK_TAGS = {
    "blockquote",
    "dd",
    "dl",
    "dt",
    "li",
    "ol",
    "p",
    "pre",
    "table",
    "td",
    "th",
    "tr",
}
BLOCK_TAGS |= {"div", "h1", "h2", "h3", "h4", "h5", "h6", "ul"}
# Prose only: no listings (pre), no bare addresses (url), no navigation.
SKIPPED_TAGS = {"head", "pre", "script", "style"}
SKIPPED_CLASSES = {"docnav", "toc", "url"}
SKIPPED_IDS = {"banner", "title"}
CHAPTER_CLASSES = {"chapter", "preface", "appendix"}


class PageText(HTMLParser):
    """Collects the paragraphs of one page, without navigation; knows whether it opens a chapter."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self.opens_chapter = False
        self.links: list[str] = []
        self._text: list[str] = []
        self._skipped_depth = 0

    def handle_starttag(self, tag, attrs):
        if tag in VOID_TAGS:
            return
        attributes = dict(attrs)
        classes = set((attributes.get("class") or "").split())
        self.opens_chapter |= tag == "div" and bool(classes & CHAPTER_CLASSES)
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        unwanted = tag in SKIPPED_TAGS or classes & SKIPPED_CLASSES
        if self._skipped_depth or unwanted or attributes.get("id") in SKIPPED_IDS:
            self._skipped_depth += 1
        if tag in BLOCK_TAGS:
            self.end_paragraph()

    def handle_startendtag(self, tag, attrs):
        pass  # <a id="…" /> and the like: no text, no depth

    def handle_endtag(self, tag):
        if tag in VOID_TAGS:
            return
        if self._skipped_depth:
            self._skipped_depth -= 1
        if tag in BLOCK_TAGS:
            self.end_paragraph()

    def handle_data(self, data):
        if not self._skipped_depth:
            self._text.append(data)

    def end_paragraph(self):
        text = re.sub(r"\s+", " ", "".join(self._text)).strip()
        self._text.clear()
        if text:
            self.paragraphs.append(text)


def parse_page(path: Path) -> PageText:
    page = PageText()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    page.end_paragraph()
    return page


def read_chapters(pages: Path) -> dict[str, list[str]]:
    """Paragraphs by chapter, both in the order of the book."""
    in_order = dict.fromkeys(
        link.split("#")[0] for link in parse_page(pages / "index.html").links
    )
    chapters, chapter = {}, None
    for name in in_order:
        path = pages / name
        if not name.endswith(".html") or name == "index.html" or not path.exists():
            continue
        page = parse_page(path)
        if page.opens_chapter:
            chapter = path.stem
        if chapter is not None:
            chapters.setdefault(chapter, []).extend(page.paragraphs)
    return chapters


def download(folder: Path) -> Path:
    """Fetches the package of this Debian release into `folder`."""
    print("downloading the Debian package debian-handbook (35 MB)")
    # Root's apt would download as another user, who cannot write here, and warn about it.
    command = [
        "apt-get",
        "-qq",
        "-o",
        "APT::Sandbox::User=root",
        "download",
        "debian-handbook",
    ]
    subprocess.run(command, cwd=folder, check=True)
    return next(folder.glob("debian-handbook_*.deb"))


def write_text(path: Path, chapters: list[list[str]]) -> int:
    """Writes under a temporary name, then renames. Returns the number of characters."""
    text = (
        "\n\n".join(paragraph for chapter in chapters for paragraph in chapter) + "\n"
    )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return len(text)


def extract(deb: Path | None, calibration: Path, heldout: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        package = deb or download(folder)
        subprocess.run(["dpkg", "-x", package.resolve(), folder / "tree"], check=True)
        chapters = read_chapters(folder / "tree" / PAGES)
    absent = [name for name in HELDOUT_CHAPTERS if name not in chapters]
    if absent:
        raise ValueError(f"{package.name}: no chapters {absent}, only {list(chapters)}")
    kept = [text for name, text in chapters.items() if name not in HELDOUT_CHAPTERS]
    held = [text for name, text in chapters.items() if name in HELDOUT_CHAPTERS]
    print(
        f"{calibration}: {write_text(calibration, kept):,} characters, {len(kept)} chapters"
    )
    print(
        f"{heldout}: {write_text(heldout, held):,} characters, {', '.join(HELDOUT_CHAPTERS)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out_dir", type=Path, help="folder for calibration.txt and heldout.txt"
    )
    parser.add_argument(
        "--deb", type=Path, help="a package file at hand instead of a download"
    )
    args = parser.parse_args()
    calibration, heldout = (
        args.out_dir / "calibration.txt",
        args.out_dir / "heldout.txt",
    )
    if calibration.exists() and heldout.exists():
        for path in (calibration, heldout):
            print(
                f"{path} is there already, {len(path.read_text(encoding='utf-8')):,} characters"
            )
        return 0
    if args.deb and not args.deb.is_file():
        print(f"handbook_text: {args.deb}: no such file", file=sys.stderr)
        return 3
    args.out_dir.mkdir(parents=True, exist_ok=True)
    try:
        extract(args.deb, calibration, heldout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"handbook_text: {error}", file=sys.stderr)
        print(
            "handbook_text: needs Debian; is `apt-get update` due? or give --deb",
            file=sys.stderr,
        )
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

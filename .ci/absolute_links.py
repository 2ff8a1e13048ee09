"""Make a page's relative links and images absolute. PyPI shows the README without the repository's other files.

Usage: python .ci/absolute_links.py README.md owner/name v1.2.3
"""

import re
import sys
from pathlib import Path

CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"(!\[[^\]]*\]|\])\((?![\w+.-]+:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, ref: str) -> str:
    """Point relative links to a repository's pages on GitHub, and relative images to its raw files.

    Args:
        text: Markdown of a page in the repository's root.
        repository: ``owner/name``.
        ref: The tag, branch or commit whose files are meant.
    """

    def replaced(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}(https://github.com/{repository}/{kind}/{ref}/{match[2]})"

    parts = CODE.split(text)
    parts[::2] = [TARGET.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    path, repository, ref = sys.argv[1:]
    page = Path(path)
    page.write_text(absolute(page.read_text(encoding="utf-8"), repository, ref), encoding="utf-8")

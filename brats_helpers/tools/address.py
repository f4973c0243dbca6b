"""Write the repository's GitHub address into the README and the notebooks, or remove it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ..basics.errors import BratsError
from ..basics.files import write_file
from .series import NAMES, ROOT, check_repository, sync

GITHUB = "https://github.com/"
COLAB = "https://colab.research.google.com/github/{0}/blob/main/notebooks/{1}.ipynb"
BINDER = "https://mybinder.org/v2/gh/{0}/main?labpath=notebooks/{1}.ipynb"


def from_remote(folder: Path = ROOT) -> str:
    """Read OWNER/NAME from the git remote `origin`; BratsError if it is not on GitHub."""
    asked = subprocess.run(["git", "-C", str(folder), "remote", "get-url", "origin"],
                           capture_output=True, text=True)
    found = re.search(r"github\.com[:/]([^/\s]+/[^/\s]+?)(?:\.git)?/?\s*$", asked.stdout)
    if not found:
        raise BratsError(f"the git remote 'origin' of {folder} is not on GitHub: give the address, "
                         "as in `python -m brats_helpers address OWNER/NAME`.")
    return found[1]


def set_address(address: str, folder: Path = ROOT) -> list[Path]:
    """Write OWNER/NAME wherever it belongs, or remove it if empty; return the changed files."""
    check_repository()
    if address and not re.fullmatch(r"[\w.-]+/[\w.-]+", address):
        raise BratsError(f"{address!r} is not an address on GitHub: give OWNER/NAME.")
    changed = []
    names = ["README.md", "pyproject.toml", *(f"notebooks/{name}.py" for name in NAMES)]
    for path in (folder / name for name in names):
        before = path.read_text(encoding="utf-8")
        after = with_address(before, path.stem, address)
        if after != before:
            write_file(path, after)
            changed.append(path)
    if folder == ROOT and changed:
        sync()
    return changed


def with_address(text: str, name: str, address: str) -> str:
    """Return the text of the README, of pyproject.toml or of a notebook with another address."""
    url = GITHUB + address if address else ""
    if name == "README":
        links = [f"[![Open in {where}](docs/{where.lower()}.svg)]({link.format(address, NAMES[0])})"
                 for where, link in (("Colab", COLAB), ("Binder", BINDER)) if address]
        inner = "".join(f"{link}\n" for link in links)
        return re.sub(r"(<!-- badges -->\n).*?(<!-- /badges -->)", rf"\g<1>{inner}\2", text,
                      flags=re.DOTALL)
    if name == "pyproject":
        text = re.sub(r"\[project\.urls\]\nRepository = .*\n\n", "", text)
        table = f'[project.urls]\nRepository = "{url}"\n\n' if address else ""
        return text.replace("[tool.setuptools]\n", f"{table}[tool.setuptools]\n", 1)
    opened = (f" | open in [Colab]({COLAB.format(address, name)}) or "
              f"[Binder]({BINDER.format(address, name)})") if address else ""
    text = re.sub(r"^(# \*\*0\d of 05\*\*.*?)(?: \| open in \[Colab.*)?$", rf"\1{opened}", text,
                  count=1, flags=re.MULTILINE)
    return re.sub(r'^( *address = )".*?"', rf'\1"{url}"', text, count=1, flags=re.MULTILINE)

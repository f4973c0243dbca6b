"""A small static site: the executed notebooks and the guides as pages that need neither a kernel nor the network.

nbconvert renders the notebooks (`series.page_of`) and mistune the guides; ours are the bar at the top, the glossary,
collected from the notebooks' own tables of terms, and the search, which looks through every heading and paragraph.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import mistune
import nbformat

from ..basics.files import atomic_path
from .series import FOLDER, NAMES, ROOT, check_repository, page_of

GUIDES = {"index": ("Start", "README.md"), "teaching": ("For teachers", "docs/teaching.md"),
          "benchmarks": ("Benchmarks", "benchmarks/README.md"), "measured": ("", "benchmarks/results.md"),
          "patients": ("", "benchmarks/real_cohort.md"), "gpu": ("", "benchmarks/gpu_nvidia_h200.md"),
          "contributing": ("Contributing", "CONTRIBUTING.md")}           # a page without a title is not in the bar
STYLE = """
body{margin:0;color:#222;font:16px/1.55 system-ui,sans-serif}
main{max-width:46rem;margin:0 auto;padding:1rem}
main img{max-width:100%} main table{border-collapse:collapse;display:block;overflow-x:auto}
main td,main th{border:1px solid #ccc;padding:.25rem .6rem;text-align:left}
main pre{background:#f5f5f5;padding:.6rem;overflow-x:auto}
#bar{position:sticky;top:0;z-index:9;background:#0072B2;padding:.4rem 1rem;font:15px/1.6 system-ui,sans-serif;
display:flex;flex-wrap:wrap}
#bar a{color:#fff;margin-right:1rem;text-decoration:none;white-space:nowrap} #bar a[aria-current]{text-decoration:underline}
#bar input{padding:.15rem .4rem;border:0;border-radius:3px;width:10rem}
#found{background:#fff;max-height:60vh;overflow:auto;border-radius:3px;width:100%}
@media(max-width:600px){#bar{position:static}} #found a{color:#0072B2;display:block;padding:.3rem;
white-space:normal}"""
SEARCH = """
const words=document.getElementById('words'),found=document.getElementById('found');
words.oninput=()=>{const asked=words.value.toLowerCase().split(/\\s+/).filter(w=>w.length>1);found.replaceChildren();
if(!asked.length)return;
for(const [page,anchor,title,text] of INDEX.filter(e=>asked.every(w=>(e[2]+' '+e[3]).toLowerCase().includes(w))).slice(0,20)){
const a=document.createElement('a');a.href=page+(anchor?'#'+anchor:'');a.textContent=title+': '+text.slice(0,110);
found.append(a)}};"""
Entry = tuple[str, str, str, str]                     # page, anchor, heading, text


def build_site(out: Path) -> list[Path]:
    """Write the site into a folder; returns its pages."""
    check_repository()
    out = Path(out)
    pages = {f"{name}.html": page_of(FOLDER / f"{name}.ipynb") for name in NAMES}
    for name, (_, source) in GUIDES.items():
        body = mistune.create_markdown(escape=False, plugins=["table"])((ROOT / source).read_text(encoding="utf-8"))
        pages[f"{name}.html"] = _skeleton(_from_root(body, (ROOT / source).parent))
    pages["glossary.html"] = _skeleton(_glossary())
    pages = {name: _linked(_anchored(text)) for name, text in pages.items()}
    index = [entry for name, text in pages.items() for entry in _entries(name, text)]
    beside = [path for folder in ("docs", "benchmarks") for path in (ROOT / folder).iterdir()]
    for path in [path for path in beside if path.suffix in (".png", ".svg", ".json")]:
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / path.parent.name)
    for name, text in {"search.js": f"const INDEX={json.dumps(index)};{SEARCH}", **pages}.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(_with_bar(name, text) if name.endswith(".html") else text, encoding="utf-8")
    return [out / name for name in pages]


def _skeleton(body: str) -> str:
    return ("<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
            f"<title>3D brain tumor segmentation, step by step</title></head><body><main>{body}</main></body></html>")


def _with_bar(name: str, page: str) -> str:
    """The page with the bar at its top and the search behind it."""
    guides = {f"{n}.html": title for n, (title, _) in GUIDES.items() if title}
    notebooks = {f"{n}.html": n[:2] + " " + n[3:].replace("_", ", ") for n in NAMES}
    titles = {"index.html": "Start", **notebooks, "glossary.html": "Glossary", **guides}
    links = "".join(f"<a href='{target}'{' aria-current=page' if target == name else ''}>{title}</a>"
                    for target, title in titles.items())
    bar = (f"<style>{STYLE}</style><nav id='bar'>{links}<input id='words' type='search' placeholder='search' "
           "aria-label='search'><div id='found'></div></nav>")
    start = re.search(r"<body[^>]*>", page).end()
    return page[:start] + bar + page[start:].replace("</body>", "<script src='search.js'></script></body>")


def _anchored(page: str) -> str:
    """Headings with an id, so that the search can point at them."""
    def name(found: re.Match) -> str:
        anchor = re.sub(r"[^\w]+", "-", html.unescape(re.sub(r"<[^>]+>", "", found[2]))).strip("-").lower()
        return f"<h{found[1]} id='{anchor}'>{found[2]}</h{found[1]}>"
    return re.sub(r"<h([1-4])>(.*?)</h\1>", name, page, flags=re.DOTALL)


def _from_root(body: str, folder: Path) -> str:
    """Relative links as seen from the repository's root."""
    def seen(found: re.Match) -> str:
        target = (folder / found[2]).resolve()
        return f"{found[1]}{target.relative_to(ROOT)}" if target.is_relative_to(ROOT) and target.exists() else found[0]
    return re.sub(r"((?:href|src)=[\"'])([^\"'#:]+)", seen, body)


def _linked(page: str) -> str:
    """Links between files of the repository as links between pages; a file that has no page is named without a link."""
    page = page.replace("../../deployments/github-pages", "index.html")
    page = re.sub(r"(href=[\"'])(?:notebooks/)?(0\d_\w+)\.ipynb", r"\1\2.html", page)
    for name, (_, source) in GUIDES.items():
        page = re.sub(rf"(href=[\"'])(?:\.\./)?{re.escape(source)}", rf"\1{name}.html", page)
    def kept(found: re.Match) -> str:
        inside = (ROOT / found[1]).is_file() and not found[1].startswith(("docs/", "benchmarks/"))      # those are copied
        return "" if inside or found[1].startswith("../") else found[0]
    return re.sub(r" href=[\"']([^\"'#:]+)[\"']", kept, page)


def _entries(name: str, page: str) -> list[Entry]:
    """Every paragraph, list item and row of a page, under its heading."""
    found, anchor, title = [], "", ""
    block = r"<(h[1-4]|p|li|tr)\b(?:[^>]*?id=[\"']([^\"']+)[\"'])?[^>]*>(.*?)</\1>"
    for kind, identity, body in re.findall(block, page, re.DOTALL):
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("¶", "").split())
        if kind.startswith("h"):
            anchor, title = identity, text
        elif text:
            found.append((name, anchor, title, text))
    return found


def _glossary() -> str:
    """The terms of all notebooks, from the tables at their ends, in the order of the alphabet."""
    terms = []
    for number, name in enumerate(NAMES, 1):
        text = "\n".join(c.source for c in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells if c.cell_type == "markdown")
        table = text.split("| term | meaning |\n|---|---|\n")[1].split("\n\n")[0]
        terms += [(*(part.strip() for part in row.strip("|").split("|", 1)), number, name) for row in table.splitlines()]
    rows = "".join(f"<tr><td>{html.escape(term)}</td><td>{html.escape(meaning)}</td><td><a href='{name}.html'>{number:02d}"
                   "</a></td></tr>" for term, meaning, number, name in sorted(terms, key=lambda row: row[0].lower()))
    return f"<h1>Glossary</h1><table><tr><th>term</th><th>meaning</th><th>notebook</th></tr>{rows}</table>"

"""What can go stale in a page: commands, options, sessions, extras, modules, links, paths, Python blocks, messages.

Every check returns problems as text, so that a page that was made wrong on purpose can show that it sees them.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import itertools
import re
import runpy
import shlex
import sys
import types
from dataclasses import fields
from pathlib import Path

from markdown_it import MarkdownIt

import forecache
from forecache_adapters.settings import Settings
from forecache_docs.commands import commands as walk

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDERS = "adapters|benchmarks|cli|core|docs|lab|patches|pr_drafts|tests"
PLACEHOLDER = re.compile(r"/(?!README|LICENSE|NOTICE|CHANGELOG)[A-Z][A-Z-]+(?![a-z])")  # results/DEVICE-DATE.json
SHELL = ("", "bash", "sh", "console")


def pages():
    """Every page that a reader meets."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pr_drafts/README.md")]
    return [*found, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]


class Page:
    """A page taken apart: code blocks by language, inline code, link targets, headings."""

    def __init__(self, file, text=None):
        self.file = file
        self.text = file.read_text(encoding="utf-8") if text is None else text
        self.blocks, self.inline, self.links, self.headings = [], [], [], []
        tokens = MarkdownIt("commonmark").enable("table").parse(self.text)
        for before, token in zip([None, *tokens], tokens, strict=False):
            if token.type in ("fence", "code_block"):
                self.blocks.append((token.info.strip(), token.content))
            for child in token.children or ():
                if child.type == "code_inline":
                    self.inline.append(" ".join(child.content.split()))
                self.links += [str(value) for key, value in child.attrs.items() if key in ("href", "src")]
            if before is not None and before.type == "heading_open":
                self.headings.append("".join(child.content for child in token.children))


commands = functools.cache(walk)


# --- commands ---------------------------------------------------------------------------------------------------------
def command_lines(page):
    """Words of every command line, in blocks and in inline code; comments, prompts and line ends are gone."""
    lines = [span for span in page.inline if " " in span]
    for language, content in page.blocks:
        if language in SHELL:
            lines += content.replace("\\\n", " ").splitlines()
    for line in lines:
        try:
            words = shlex.split(re.sub(r"^\s*\$ ", "", line), comments=True)
        except ValueError:
            continue  # an apostrophe: prose
        for last, part in itertools.groupby(words, lambda word: word in ("&&", "|", ">", "...")):
            if not last:
                yield list(part)


@functools.cache
def options_of(files):
    """Every ``--option`` in a string of Python sources, and every parameter of a function as typer would name it."""
    found = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        found |= set(re.findall(r"[\"'`](--?[a-z][a-z-]*)\b", text))
        found |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): .*[,=]", text, re.MULTILINE)}
        if 'f"--{' in text:  # made in a loop over names
            found |= {f"--{name}" for name in re.findall(r'"([a-z][\w-]*)"', text)}
    return frozenset(found)


@functools.cache
def everywhere():
    """Options of the command line, of the modules and of the tools in the noxfile."""
    sources = tuple(file for folder in ("lab", "benchmarks", "cli") for file in sorted((ROOT / folder).rglob("*.py")))
    own = frozenset().union(*(command.flags for command in commands().values()))
    return own | options_of((*sources, ROOT / "noxfile.py"))


@functools.cache
def sessions():
    """Names of the sessions in the noxfile; nox itself need not be installed."""
    names, stand_in = [], types.ModuleType("nox")

    def session(function=None, *, name=None):
        if function is None:
            return functools.partial(session, name=name)
        names.append(name or function.__name__)
        return function

    stand_in.session, stand_in.options, stand_in.Session = session, types.SimpleNamespace(), object
    stand_in.command = types.SimpleNamespace(CommandFailed=Exception)
    before = sys.modules.get("nox")
    sys.modules["nox"] = stand_in
    try:
        runpy.run_path(str(ROOT / "noxfile.py"))
    finally:
        sys.modules.pop("nox")
        if before is not None:
            sys.modules["nox"] = before
    return frozenset(names)


def options_in(words):
    return [word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]


def of_forecache(words):
    """Problems of ``forecache WORDS``."""
    words = [word.strip("[]") for word in words]
    known, path = commands(), ()
    for word in words:
        choices = {name[len(path)] for name in known if name[: len(path)] == path and len(name) > len(path)}
        if not choices or word.startswith("-") or word.isupper():
            break
        wrong = [each for each in word.split("|") if each not in choices]
        if wrong:
            return [f"forecache {' '.join((*path, *wrong))}: no such command"]
        if "|" in word:
            return []
        path = (*path, word)
    flags = known[path].flags if path in known else {"--help"}
    unknown = [option for option in options_in(words) if option not in flags]
    return [f"forecache {' '.join(path)}: no option {option}" for option in unknown]


def of_nox(words):
    """Problems of ``nox WORDS``."""
    ours, theirs = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, [])
    named = [word for word in itertools.chain(*map(braces, ours)) if not word.startswith("-") and word.isidentifier()]
    if not {"-s", "-rs", "-Rs"} & set(ours) and "-s" not in words:
        named = []
    known = {name for name in named if name in sessions() or name == "NAME"}
    found = [f"nox -s {name}: no such session" for name in named if name not in known]
    return found + [f"nox: no option {option}" for option in options_in(theirs[1:]) if option not in everywhere()]


def braces(word):
    """``a_{b,c}``: ``a_b``, ``a_c``."""
    match = re.fullmatch(r"(\w*)\{([\w,]+)\}(\w*)", word)
    return [word] if match is None else [f"{match[1]}{each}{match[3]}" for each in match[2].split(",")]


def of_pip(words):
    """Problems of ``pip WORDS``: extras of this package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = re.findall(r"(?:^|\s)(?:\.|forecache)\[([\w,-]+)\]", " ".join(words))
    return [f"pip: no extra {each}" for text in asked for each in text.split(",") if each not in extras]


def of_python(words):
    """Problems of ``python WORDS``: modules, files, and options of modules of ours."""
    if words[:1] == ["-m"] and len(words) > 1:
        module = words[1]
        if not module.startswith(("forecache", "benchmarks")):
            return []
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            return [f"python -m {module}: no such module"]
        if module == "forecache_cli":
            return of_forecache(words[2:])
        folder = Path(spec.origin).parent
        files = (Path(spec.origin),) if Path(spec.origin).name != "__init__.py" else tuple(sorted(folder.rglob("*.py")))
        unknown = [option for option in options_in(words[2:]) if option not in options_of(files)]
        return [f"python -m {module}: no option {option}" for option in unknown]
    return [f"python {words[0]}: no such file"] if words and words[0].endswith(".py") and not exists(words[0]) else []


def exists(path):
    return (ROOT / path).exists()


TOOLS = {"forecache": of_forecache, "nox": of_nox, "pip": of_pip, "python": of_python}


def check_commands(page):
    """Problems of the command lines of a page, and of options named alone."""
    found = []
    for words in command_lines(page):
        if words and words[0] in TOOLS:
            found += TOOLS[words[0]](words[1:])
    alone = [span.split()[0].split("=")[0] for span in page.inline if re.match(r"--[a-z]", span)]
    found += [f"{option}: no command has it" for option in alone if option not in everywhere()]
    for span in page.inline:
        if re.fullmatch(r"\w+_\{[\w,]+\}", span):
            found += [f"{name}: no such session" for name in braces(span) if name not in sessions()]
    return found


# --- links and paths --------------------------------------------------------------------------------------------------
def anchors(page):
    """Anchors of a page's headings, as GitHub and the site make them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in page.headings}


def check_links(page):
    """Relative links that lead nowhere, and paths of the repository that do not exist."""
    found = []
    for link in page.links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.file.parent / path).resolve() if path else page.file
        if path and not target.exists():
            found.append(f"link {link}: there is no such file")
        elif anchor and target.suffix == ".md":
            other = page if target == page.file else Page(target)
            if anchor not in anchors(other):
                found.append(f"link {link}: there is no such heading")
    for path in re.findall(rf"(?<![\w./:\-*>])((?:{FOLDERS})/[\w./-]*\w)(?![\w/]*[<*{{])", page.text):
        if not exists(path) and not PLACEHOLDER.search(path):
            found.append(f"path {path}: does not exist")
    return found


# --- Python -----------------------------------------------------------------------------------------------------------
@functools.cache
def enable_of(adapter):
    """Names of the parameters of an adapter's ``enable``, and whether it takes settings beside them."""
    given = inspect.signature(importlib.import_module(f"forecache_adapters.{adapter}").enable).parameters.values()
    return {each.name for each in given}, any(each.kind is each.VAR_KEYWORD for each in given)


def settings(adapter):
    """What an adapter's ``**settings`` may hold."""
    if adapter != "cache_dit":
        return {each.name for each in fields(Settings)}
    source = (ROOT / "adapters" / "forecache_adapters" / "cache_dit" / "calibrator.py").read_text(encoding="utf-8")
    config = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Config")
    return {each.target.id for each in config.body if isinstance(each, ast.AnnAssign)} | {"calibrator_cache_type"}


def keywords_of(function, imported):
    """The keywords that a call in a block may have; ``None``: not ours."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        module = imported.get(function.value.id, "")
        adapter = module.removeprefix("forecache_adapters.")
        if module != adapter and function.attr in ("enable", "enabled"):
            try:
                named, more = enable_of(adapter)
            except ImportError:  # a hub that is not installed
                return None
            return named | (settings(adapter) if more else set())
        return None
    target = imported.get(function.id, "") if isinstance(function, ast.Name) else ""
    if not target.startswith("forecache."):
        return None
    value = getattr(forecache, target.removeprefix("forecache."), None)
    if value is None:
        return None
    named = inspect.signature(value).parameters
    more = value is forecache.calibrate
    return set(named) | (set(inspect.signature(forecache.Calibration).parameters) if more else set())


def check_python(page):
    """Blocks that do not compile, imports that fail, keywords that nothing of ours takes."""
    found = []
    for language, content in page.blocks:
        if language != "python":
            continue
        try:
            tree = ast.parse(content)
        except SyntaxError as error:
            found.append(f"python block: {error}")
            continue
        imported = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forecache"):
                for name in node.names:
                    imported[name.asname or name.name] = f"{node.module}.{name.name}"
                    if not importable(node.module, name.name):
                        found.append(f"python block: {node.module} has no {name.name}")
        for node in ast.walk(tree):
            allowed = keywords_of(node.func, imported) if isinstance(node, ast.Call) else None
            if allowed is not None:
                wrong = [each.arg for each in node.keywords if each.arg and each.arg not in allowed]
                found += [f"python block: {ast.unparse(node.func)} takes no {name}" for name in wrong]
    return found


def importable(module, name):
    """Whether ``from module import name`` works, without importing a hub."""
    if module == "forecache_adapters":
        return importlib.util.find_spec(f"{module}.{name}") is not None
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


# --- messages ---------------------------------------------------------------------------------------------------------
@functools.cache
def strings(*folders):
    """Every string of the sources but docstrings, what is filled in left out, joined as Python joins neighbours."""
    texts = []
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.parent == Path(__file__).parent:
                continue
            nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    parts = [each.value if isinstance(each, ast.Constant) else "\0" for each in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    texts.append(node.value)
    return tuple(texts)


def quoted(page):
    """The messages that a page quotes, each with its parts between ``...``."""
    lines = re.findall(r"^- ((?:`[^`]+`(?:,\s+)?)+):", page.text, re.MULTILINE)
    for span in (" ".join(each.split()) for line in lines for each in re.findall(r"`([^`]+)`", line)):
        if re.search(r"\s", span):
            yield span, [part.strip() for part in span.removeprefix("error: ").split("...") if part.strip(" .,;:()")]


def check_messages(page):
    """Quoted messages that no string of ours can give: their parts between ``...`` must stand in one, in order."""
    said, found = strings("core", "adapters", "patches", "lab", "cli"), []
    for span, parts in quoted(page):
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        if not any(pattern.search(text) for text in said):
            found.append(f"message {span}: nothing says so")
    return found


def check_tested(page):
    """Quoted messages of which no test outside of this folder has three words in a row, or a whole shorter part."""
    tested = "\n".join(re.sub(r"\\(\W)", r"\1", text) for text in strings("tests"))
    found = []
    for span, parts in quoted(page):
        words = [part.strip(" .,;:()").split() for part in parts]
        runs = {" ".join(each[k : k + 3]) for each in words for k in range(max(1, len(each) - 2))}
        longest = max(len(run.split()) for run in runs)
        if not any(run in tested for run in runs if len(run.split()) == longest):
            found.append(f"message {span}: no test asks for it")
    return found

"""The pages in docs/ are true: their code runs, their commands and links exist, and messages are those of the library."""

import importlib.util
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from opq.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    """The Python code of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, one_thread):
    """Every block of the tutorial runs, one after another, and each of its files keeps at least nine tenths of the accuracy."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "tutorial"}
    for number, code in enumerate(blocks(ROOT / "docs" / "tutorial.md")):
        exec(compile(code, f"tutorial.md, block {number + 1}", "exec"), names)  # noqa: S102
    accuracy = names["accuracy"]
    dense = accuracy(names["network"])
    assert dense > 90
    for file in ("digits.opq", "digits20.opq", "digits30.opq"):
        assert accuracy(names["opq"].load(names["make_network"](), file)) > 0.9 * dense


def commands():
    """(page, command) of each line of a page that calls opq."""
    found = []
    for page in PAGES:
        if page.name == "log.md":  # of its day
            continue
        text = page.read_text()
        lines = re.findall(r"^    (?:\$ )?(opq [^\n#]*)", text, re.MULTILINE)
        lines += [code for code in re.findall(r"`(opq [^`]*)`", text) if len(shlex.split(code)) > 2]
        found += [(page.name, line.strip()) for line in lines]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_in_pages_exist(page, line):
    """Each command of a page has the options that it is called with."""
    name, *arguments = shlex.split(line)[1:]
    assert name in COMMANDS or name.isupper(), line
    if name not in COMMANDS:
        return
    command = import_module(f"opq.cli.{name}").command
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    used = [argument.split("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)]
    assert set(used) <= known, line


def test_links_lead_somewhere():
    """Each relative link of a page names a file, and each link to a heading a heading."""
    broken = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def anchors(page):
    """The anchors of the headings of a page, and its explicit ones."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'(?:id|name)="([^"]+)"', text))


def test_messages_are_those_of_the_library():
    """Each message of the troubleshooting page is a text of the library or of PyTorch."""
    source = " ".join(" ".join(path.read_text().split()) for path in (ROOT / "src" / "opq").rglob("*.py"))
    source = re.sub(r'" f?"', "", source)
    of_others = {"Missing key(s)", "Unexpected key(s)"}
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)[2:]
    phrases = [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", row)]
    assert len(phrases) > 15
    missing = [
        phrase for phrase in phrases if phrase not in of_others and not all(part in source for part in phrase.split("..."))
    ]
    assert missing == []


def test_the_options_page_is_that_of_the_commands():
    """`python docs/options.py` writes docs/options.md."""
    specification = importlib.util.spec_from_file_location("options_page", ROOT / "docs" / "options.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules.setdefault("options_page", module)
    specification.loader.exec_module(module)
    assert module.page() == (ROOT / "docs" / "options.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal(name):
    """Each help has an example or says what to do first, in lines of at most 80 characters."""
    command = import_module(f"opq.cli.{name}").command
    text = command.get_help(click.Context(command, info_name=f"opq {name}", terminal_width=80, max_content_width=80))
    assert max(map(len, text.splitlines())) <= 80
    assert "Example: opq" in text

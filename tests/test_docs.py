from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import make_cli_docs
import pytest
import typer.main

from trtcal.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/helpers/fuzz/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def repository_files() -> list[Path]:
    """What is committed or would be: everything that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@page
def test_a_relative_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), f"{page.name}: {target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target} names no heading"


@page
def test_a_python_block_is_python(page: Path) -> None:
    for block in code_blocks(page, "python"):
        ast.parse(block)


def test_the_example_of_the_cache_format_runs() -> None:
    (block,) = code_blocks(ROOT / "docs" / "cache-format.md", "python")
    exec(block, {})


@pytest.mark.parametrize("marker", ["<!-- quickstart -->", "<!-- tests -->"])
def test_ci_finds_the_readme_s_commands(marker: str) -> None:
    blocks = re.findall(rf"^{marker}\n+```bash\n(.*?)^```$", read(ROOT / "README.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1


def test_the_command_line_page_is_what_the_generator_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_cli_docs.py", "--check"])
    make_cli_docs.main()  # leaves with a message where the page is out of date


def test_methods_growth_rules_and_formats_have_their_tables() -> None:
    pages = "".join(map(read, PAGES))
    for name, table in make_cli_docs.TABLES.items():
        assert pages.count(f"<!-- table: {name} -->") == 1, name
        assert table() in pages, name


def test_a_page_that_is_out_of_date_is_named_and_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    old = "before\n<!-- table: methods -->\n| old |\n<!-- end of table -->\nafter\n"
    (tmp_path / "README.md").write_text(old)
    monkeypatch.setattr(make_cli_docs, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_cli_docs.py", "--check"])
    with pytest.raises(SystemExit, match=r"docs/cli\.md, README\.md: out of date"):
        make_cli_docs.main()
    assert read(tmp_path / "README.md") == old
    monkeypatch.setattr(sys, "argv", ["make_cli_docs.py"])
    make_cli_docs.main()
    table = make_cli_docs.methods()
    assert read(tmp_path / "README.md") == (
        f"before\n<!-- table: methods -->\n\n{table}\n<!-- end of table -->\nafter\n"
    )
    monkeypatch.setattr(sys, "argv", ["make_cli_docs.py", "--check"])
    make_cli_docs.main()


def test_every_command_stands_on_the_command_line_page() -> None:
    def commands(command: object, name: str) -> Iterator[str]:
        yield name
        for below, child in getattr(command, "commands", {}).items():
            yield from commands(child, f"{name} {below}")

    names = list(commands(typer.main.get_command(app), "trtcal"))
    assert len(names) > 1
    headings = re.findall(r"^## (.+)$", read(ROOT / "docs" / "cli.md"), re.MULTILINE)
    assert headings == names


def test_no_file_names_a_place_on_somebody_s_machine_or_a_package_index() -> None:
    # Spelled in pieces, so that this file does not find itself.
    places = ["/" + "home/", "/" + "root/", "/" + "Users/", "/" + "work/", "C:" + "\\Users"]
    indexes = [
        "pypi" + ".org",
        "python" + "hosted.org",
        "npmjs" + ".org",
        "pypi." + "nvidia",
        "deb." + "debian",
    ]
    found = []
    for file in repository_files():
        content = file.read_bytes()
        if b"\0" in content:
            continue
        found += [f"{file.relative_to(ROOT)}: {word}" for word in places + indexes if word.encode() in content]
    assert not found


def test_the_oldest_versions_tested_are_those_that_setup_py_admits() -> None:
    pins = dict(re.findall(r"^([a-z]+)==([0-9.]+)$", read(ROOT / "tests" / "lowest-versions.txt"), re.MULTILINE))
    requires = read(ROOT / "setup.py").split("install_requires=[")[1].split("]")[0]
    for name, bound in re.findall(r'"([a-z]+)>=([0-9.]+)"', requires):
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pins[name]), name

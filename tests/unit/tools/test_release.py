"""`make release`: what it refuses, what it makes of the changelog, and what it wants in a wheel and an sdist."""

from __future__ import annotations

import datetime
import re
import sys

import pytest

from tests.support.source_code import ROOT
from tools import release
from tools.hatch_build import KERNELS, MANYLINUX
from tools.release import (
    ReleaseError,
    check_description,
    check_platform_wheel,
    check_sdist,
    check_tree,
    check_wheel,
    dated,
    version_in,
)

DAY = datetime.date(2027, 1, 2)
TOP = "# Changelog\n\nText.\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n"
OLDER = "\n## [0.9.1] - 2026-12-01\n\n### Fixed\n\n- Another.\n\n## [0.9.0] - 2026-11-01\n\n- The first.\n"


def test_the_top_section_becomes_that_of_the_version():
    assert dated(TOP, "0.1.0", DAY) == TOP.replace("## [Unreleased]", "## [Unreleased]\n\n## [0.1.0] - 2027-01-02")
    assert dated(TOP + OLDER, "0.10.0", DAY).endswith(OLDER)


@pytest.mark.parametrize(
    ("changelog", "version", "problem"),
    [
        (TOP + OLDER, "0.9.1", "0.9.1 is released already: raise __version__"),
        (TOP + OLDER, "0.9.0", "0.9.0 is released already"),
        (TOP + OLDER, "0.8.9", "0.8.9 is not newer than 0.9.1"),
        (TOP.replace("- A thing.\n", "") + OLDER, "1.0.0", "has no line: say what changes"),
        (OLDER, "1.0.0", r"has to begin with the section \[Unreleased\].* its first is \[0.9.1\]"),
        ("# Changelog\n", "1.0.0", "its first is none"),
    ],
)
def test_a_changelog_that_cannot_be_released_is_refused(changelog, version, problem):
    with pytest.raises(ReleaseError, match=problem):
        dated(changelog, version, DAY)


def test_the_same_release_twice_is_refused():
    once = dated(TOP, "0.1.0", DAY)
    with pytest.raises(ReleaseError, match="no line"):
        dated(once, "0.1.0", DAY)
    with pytest.raises(ReleaseError, match="released already"):
        dated(once.replace("[Unreleased]\n", "[Unreleased]\n\n- New.\n"), "0.1.0", DAY)


def test_a_dirty_tree_and_a_tag_are_refused():
    check_tree("", "v0.0.9\nv0.1.0-rc1\n", "0.1.0")
    with pytest.raises(ReleaseError, match=r"Commit first.*: README.md, new.py changed"):
        check_tree(" M README.md\n?? new.py\n", "", "0.1.0")
    with pytest.raises(ReleaseError, match=r"4\.txt and 3 more changed"):
        check_tree("".join(f"?? {i}.txt\n" for i in range(8)), "", "0.1.0")
    with pytest.raises(ReleaseError, match=r"as the tag v0\.1\.0"):
        check_tree("", "v0.0.9\nv0.1.0\n", "0.1.0")


def test_a_version_has_three_numbers():
    assert version_in('"""x"""\n\n__version__ = "0.12.3"\n') == "0.12.3"
    for source in ('__version__ = "0.1"\n', '__version__ = "0.1.0.dev1"\n', ""):
        with pytest.raises(ReleaseError, match="three numbers"):
            version_in(source)


WHEEL = [f"{package}/{name}" for package in release.PACKAGES for name in ("__init__.py", "py.typed")]


def test_the_content_of_a_wheel():
    check_wheel([*WHEEL, "langchain_specdec-0.1.0.dist-info/METADATA"])
    with pytest.raises(ReleaseError, match=r"lacks tgi_launcher/py\.typed"):
        check_wheel(WHEEL[:-1])
    with pytest.raises(ReleaseError, match=r"does not belong there: tests/conftest\.py"):
        check_wheel([*WHEEL, "tests/conftest.py"])


def test_a_platform_wheel_has_its_libraries_and_its_tag():
    names = [*WHEEL, *(f"{KERNELS}/prebuilt/decoder-{number}.so" for number in range(2))]
    audit = f'x.whl is\nconsistent with the following platform tag: "{MANYLINUX}_x86_64".\n'
    check_platform_wheel(names, "x86_64", audit)
    with pytest.raises(ReleaseError, match="for x86_64 has 1 libraries, and not 2"):
        check_platform_wheel(names[:-1], "x86_64", audit)
    with pytest.raises(ReleaseError, match=r"does not find manylinux_2_24_x86_64(.|\n)*manylinux_2_36_x86_64"):
        check_platform_wheel(names, "x86_64", audit.replace(MANYLINUX, "manylinux_2_36"))


def test_the_content_of_an_sdist():
    files = ["pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", "PKG-INFO",
             "tests/conftest.py", "docs/index.md", "tools/hatch_build.py", "tools/old_glibc.cpp",
             "tools/release.py", *WHEEL]  # fmt: skip
    check_sdist(files)
    with pytest.raises(ReleaseError, match="lacks LICENSE"):
        check_sdist([name for name in files if name != "LICENSE"])
    with pytest.raises(ReleaseError, match="does not belong"):
        check_sdist([*files, "build/x"])


def test_files_have_no_address_on_an_index():
    check_description("[a](https://example.org/a.svg) and [b](#b)")
    with pytest.raises(ReleaseError, match=r"docs/images/demo\.svg, LICENSE"):
        check_description("![A\npicture](docs/images/demo.svg)\n\n[Licence](LICENSE)")


def test_the_readme_shows_on_an_index():
    """By the rules of pyproject.toml, as the build applies them."""
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no reader of TOML")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rules = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert [fragment["path"] for fragment in rules["fragments"]] == ["README.md"]
    readme = shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in rules["substitutions"]:
        shown = re.sub(rule["pattern"], rule["replacement"], shown)
    with pytest.raises(ReleaseError):
        check_description(readme)
    check_description(shown)
    assert "![" not in shown
    assert shown.count("](https://") == readme.count("](https://")
    # Nothing but pictures and addresses is gone.
    for kept in ("## Try it", "## Four promises", "- Quickstart: every feature", "## Licence\n\nApache-2.0."):
        assert kept in shown


def test_the_version_and_the_changelog_fit_now():
    """So that `make release` does not fail for a reason that was known all the time."""
    version = version_in((ROOT / "langchain_specdec/_version.py").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.*?)\]", changelog, re.MULTILINE)
    assert sections[0] == release.UNRELEASED
    assert version not in sections or sections[1] == version

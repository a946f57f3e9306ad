"""Drafts of submissions: stored without upstream text, built for git am, proven without and with the change."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toy_hub import FIXED, LOOP, NEWER, OLD, OURS, PR, TEST, Hub
from toy_upstream import git, snapshot
from typer.testing import CliRunner

import forecache_patches as patches
from forecache_cli.main import app
from forecache_patches import blobs, edits, hook
from forecache_patches.trees import trees

pytestmark = pytest.mark.usefixtures("bare_pytest")


@pytest.fixture
def hub(made: Hub, tmp_path: Path) -> Hub:
    """A copy of the drafts, for a test that changes them."""
    copy = object.__new__(Hub)
    copy.__dict__ |= made.__dict__ | {"folder": tmp_path, "drafts": tmp_path / "pr_drafts"}
    shutil.copytree(made.drafts, copy.drafts)
    return copy


def edits_file(hub: Hub) -> Path:
    return hub.drafts / "toy/loop-sign/change/edits.toml"


def test_no_upstream_line_is_stored_and_both_versions_are_known(made: Hub) -> None:
    text = edits_file(made).read_text()
    assert "x += i" in text and "x -= i" not in text and "range" not in text
    (edit,) = made.draft.edits("change")
    assert {blob: place.after for blob, place in edit.places.items()} == {
        blobs.blob_id(OLD): 3,
        blobs.blob_id(NEWER): 5,
    }
    for content in (OLD, NEWER):
        assert edits.edit_file(LOOP, content, [edit]) == content.replace(b"x -= i", b"x += i")
    assert edits.parse_edits("again", edits.format_edits([edit])) == (edit,)


def test_another_blob_or_other_lines_are_refused(made: Hub) -> None:
    (edit,) = made.draft.edits("change")
    with pytest.raises(patches.DraftError, match=r"is blob .*, the edits are for .*anchored anew"):
        edits.edit_file(LOOP, OLD + b"# moved on\n", [edit])
    wrong = replace(edit, places={blobs.blob_id(OLD): edits.Place(3, 1, "0" * 64)})
    with pytest.raises(patches.DraftError, match="lines 4 to 4 have not the sha256"):
        edits.edit_file(LOOP, OLD, [wrong])
    with pytest.raises(patches.DraftError, match="overlap"):
        edits.edit_file(LOOP, OLD, [edit, edit])


LINES = [b"%d\n" % i for i in range(12)]


@pytest.mark.parametrize(
    "lines",
    [
        [b"top\n", *LINES],
        [*LINES, b"end\n"],
        LINES[3:9],
        [*LINES[:2], b"a\n", b"\n", *LINES[5:8], *LINES[9:]],
    ],
)
def test_edits_store_any_change_of_lines(lines: list[bytes]) -> None:
    old, new = b"".join(LINES), b"".join(lines)
    found = edits.make_edits("f.py", old, new)
    assert edits.edit_file("f.py", old, edits.parse_edits("f", edits.format_edits(found))) == new


def test_edits_are_anchored_between_the_same_neighbours_or_not_at_all() -> None:
    old, new = b"".join(LINES), b"".join([*LINES[:4], b"ours\n", *LINES[7:]])
    other = b"".join([b"a\n", *LINES[:5], b"theirs\n", *LINES[5:]])
    (edit,) = edits.make_edits("f.py", old, new, [other])
    assert edits.edit_file("f.py", other, [edit]) == b"".join([b"a\n", *LINES[:4], b"ours\n", *LINES[7:]])
    for gone in (LINES[3], LINES[7]):
        with pytest.raises(patches.DraftError, match="around line 4 differs between the versions"):
            edits.make_edits("f.py", old, new, [other.replace(gone, b"")])


def test_build_makes_a_branch_and_a_patch_that_git_takes(made: Hub) -> None:
    root = made.checkout("build")
    before = snapshot(root)
    patch = patches.build(made.draft, root, branch="loop-sign")
    assert snapshot(root) == before and git(root, "status", "--porcelain") == ""
    assert git(root, "rev-parse", "HEAD") == made.pin == git(root, "rev-parse", "loop-sign~1")
    assert b"Subject: [PATCH] fix(loop): add\n" in patch and b"\nrun adds what it subtracted.\n" in patch
    assert b"From: someone <someone@example.org>" in patch
    (made.folder / "draft.patch").write_bytes(patch)
    git(root, "am", "-q", str(made.folder / "draft.patch"))
    assert (root / LOOP).read_bytes() == FIXED and (root / TEST).read_text() == OURS
    assert git(root, "diff", "loop-sign", "HEAD") == ""
    with pytest.raises(patches.CheckoutError, match="is for"):
        patches.build(made.draft, root)
    git(root, "checkout", "-q", made.pin)
    with pytest.raises(patches.DraftError, match="already has a branch loop-sign"):
        patches.build(made.draft, root, branch="loop-sign")


@pytest.mark.parametrize("base", patches.BASES)
def test_proof_holds_without_and_with(made: Hub, base: str) -> None:
    root = made.checkout("clean")
    proof = patches.prove(made.draft, base, root, made.fetch)
    assert proof.failures == []
    facts = "\n".join(proof.facts)
    assert "fails without the change: test_sum (1 of 1 cases)" in facts
    assert "controls pass without and with the change: 1" in facts
    assert "the hub's own tests pass with the change as without: 1" in facts
    assert ("git am" in facts) == (base == "pin") and ("toy 2.0" in facts) == (base == "newest")
    assert any(remark.startswith("absent was not run") for remark in proof.remarks)
    assert git(root, "status", "--porcelain") == ""


def test_proof_fails_for_tests_that_prove_nothing_and_for_a_broken_hub(hub: Hub) -> None:
    root = hub.checkout()
    hub.verify('own_tests = ["tests/api/test_own.py"]\nmust_fail = ["test_nothing_to_add", "test_gone"]\n')
    text = edits_file(hub).read_text()
    edits_file(hub).write_text(text.replace("x += i", "x += i\n        globals()['END'] = 2"))
    failures = "\n".join(patches.prove(hub.draft, "pin", root).failures)
    assert "the hub's own tests: tests/api/test_own.py::test_end" in failures
    assert "must fail without the change, but does not: tests/api/test_loop.py::test_nothing_to_add" in failures
    assert "must fail without the change, but does not: test_gone" in failures
    assert "fails without the change, but is not named in must_fail: tests/api/test_loop.py::test_sum" in failures


def test_what_does_not_fit_is_refused_and_says_why(hub: Hub) -> None:
    root = hub.checkout()
    (root / LOOP).write_bytes(NEWER)
    with pytest.raises(patches.CheckoutError, match="changes that are not committed"), trees(hub.draft, "pin", root):
        pass
    git(root, "checkout", "-q", "--", ".")
    with pytest.raises(patches.DraftError, match="'pin' or 'newest'"), trees(hub.draft, "oldest", root):
        pass
    hub.write("toy/loop-sign/tests/api/test_own.py", "")
    with pytest.raises(patches.DraftError, match="is new in the draft, and already there"):
        hub.draft.tests(root)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("toy/loop-sign/PR.md", PR.replace("## Risks", "## Rest"), "no text in a section '## Risks'"),
        ("toy/loop-sign/PR.md", PR[2:], "must begin with '# <title>'"),
        ("toy/loop-sign/verify.toml", f'pin = "{"0" * 40}"\n', "was verified on 000000000000"),
        ("toy/hub.toml", 'wheel = "toy"\nroot = "src/other"\nstyle = {}\n', "a folder that ends in toy"),
    ],
)
def test_incomplete_drafts_are_refused(hub: Hub, path: str, text: str, message: str) -> None:
    hub.write(path, text)
    with pytest.raises(patches.DraftError, match=message):
        patches.load_draft(hub.drafts, "toy/loop-sign")


def test_figures_are_printed_from_both_trees(hub: Hub) -> None:
    root = hub.checkout()
    hub.write("toy/helper.py", "WORD = 'sum'\n")
    hub.write(
        "toy/loop-sign/figures.py",
        "import pathlib, sys\nfrom helper import WORD\n"
        "for tree in sys.argv[1:]:\n    print(WORD, '+=' in pathlib.Path(tree, 'toy/loop.py').read_text())\n",
    )
    assert patches.numbers(hub.draft, "newest", root, hub.fetch) == "toy/loop-sign on toy 2.0\nsum False\nsum True\n"


def test_a_version_that_needs_nothing_is_left_as_it_is() -> None:
    text = (
        f'[[edit]]\npath = "{LOOP}"\ninsert = "        x += i\\n"\n[edit.at]\n'
        f'{blobs.blob_id(OLD)} = {{ delete = "4" }}\n{blobs.blob_id(NEWER)} = {{ absent = "adds since 2.0" }}\n'
    )
    made = edits.parse_edits("edits.toml", text)
    assert edits.edit_file(LOOP, OLD, made) == FIXED
    assert edits.edit_file(LOOP, NEWER, made) == NEWER
    assert edits.parse_edits("again", edits.format_edits(made)) == made
    with pytest.raises(patches.DraftError, match="unknown key"):
        edits.parse_edits("edits.toml", text.replace('absent = "adds since 2.0"', 'absent = "it", delete = "4"'))


def test_a_line_of_the_hub_is_not_stored_by_indenting_it() -> None:
    old = b"def run():\n    a_line_that_is_long_enough_to_be_theirs()\n"
    with pytest.raises(patches.DraftError, match="comes with other white space"):
        edits.make_edits(LOOP, old, old.replace(b"    a", b"    if True:\n        a"))
    with pytest.raises(patches.DraftError, match="comes with other white space"):
        edits.make_edits(LOOP, old.replace(b"\n", b"\r\n"), old)


def test_command_line(hub: Hub) -> None:
    root = hub.checkout()
    options = ["--drafts", str(hub.drafts)]
    run = CliRunner()
    listed = run.invoke(app, ["pr", "list", *options])
    assert listed.stdout == "toy/loop-sign: fix(loop): add\n"
    out = hub.folder / "out" / "draft.patch"
    built = run.invoke(app, ["pr", "build", "toy/loop-sign", "--checkout", str(root), "--out", str(out), *options])
    assert built.exit_code == 0 and b"fix(loop): add" in out.read_bytes()
    unknown = run.invoke(app, ["pr", "check", "toy/none", *options])
    assert unknown.exit_code == 1 and "known: toy/loop-sign" in unknown.stderr


COMMENTED = b"""    # This file was modified by forecache: what is attached scales i.
    # None: bit-identical to the original file.
    scale = None
"""
SPEAKING = b"""    # What is attached scales i.
    # None: unchanged, bit for bit.
    scale = None
"""


@pytest.fixture(scope="module")
def with_series(made: Hub) -> tuple[Path, str]:
    """Where the toy's series is, and its only patch."""
    upstream, root = patches.load_lock(made.drafts / "upstreams.toml")["toy"], made.folder / "series"
    edited = made.checkout("edited-hook")
    (edited / LOOP).write_bytes(OLD.replace(b"    x = 0\n", b"    x = 0\n" + COMMENTED))
    return root, patches.make(patches.load_series(upstream, root), edited, "hook").name


class Hooked:
    """The draft ``toy/hook``, which is the first patch of the toy's series."""

    def __init__(self, hub: Hub, root: Path, patch: str) -> None:
        self.hub, self.root, self.patch = hub, root, patch
        hub.write("toy/hook/PR.md", PR)
        test = f"assert 'scale = None' in (Path(__file__).parents[1] / '{LOOP}').read_text()\n"
        hub.write("toy/hook/tests/test_hook.py", f"from pathlib import Path\n\n\ndef test_hook():\n  {test}")
        self.verify(patch)

    def verify(self, patch: str) -> None:
        self.hub.write(
            "toy/hook/verify.toml", f'pin = "{self.hub.pin}"\npatch = "{patch}"\nmust_fail = ["test_hook"]\n'
        )

    @property
    def draft(self) -> patches.Draft:
        return patches.load_draft(self.hub.drafts, "toy/hook", self.root)


@pytest.fixture
def hooked(hub: Hub, with_series: tuple[Path, str]) -> Hooked:
    return Hooked(hub, *with_series)


def test_a_hook_is_the_first_patch_of_a_series_and_speaks_for_the_upstream(hooked: Hooked) -> None:
    root, draft = hooked.hub.checkout(), hooked.draft
    assert not (draft.folder / "change").exists()
    proof = patches.prove(draft, "pin", root)
    assert proof.failures == []
    facts = "\n".join(proof.facts)
    assert f"the code is that of {hooked.patch}, by its blob ids" in facts
    assert "fails without the change: test_hook (1 of 1 cases)" in facts
    (hooked.hub.folder / "hook.patch").write_bytes(patches.build(draft, root))
    git(root, "am", "-q", str(hooked.hub.folder / "hook.patch"))
    assert (root / LOOP).read_bytes() == OLD.replace(b"    x = 0\n", b"    x = 0\n" + SPEAKING)
    assert git(root, "diff", "--name-only", "HEAD~1").strip() == LOOP, "tests prove, and are not submitted"


def test_the_notice_that_a_licence_asks_for_stays(hooked: Hooked) -> None:
    upstream = hooked.draft.hub.upstream
    assert hook.in_upstream(upstream, COMMENTED) == SPEAKING
    assert hook.in_upstream(replace(upstream, modified_notice=True), COMMENTED) == COMMENTED
    code = b'note = "forecache: bit-identical to the original file"\n'
    assert hook.in_upstream(upstream, code) == code


def test_a_hook_of_other_code_or_blobs_is_refused(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    root, draft = hooked.hub.folder / "files", hooked.draft
    (root / LOOP).parent.mkdir(parents=True)
    (root / LOOP).write_bytes(OLD)
    (file,) = draft.hook.files
    wrong = replace(draft, hook=replace(draft.hook, files=(replace(file, post="0" * 40),)))
    with pytest.raises(patches.DraftError, match=f"{LOOP} becomes blob {file.post}, {hooked.patch} says 0000"):
        wrong.change(root)
    monkeypatch.setattr(hook, "in_upstream", lambda upstream, lines: lines.replace(b"None\n", b"0\n"))
    with pytest.raises(patches.DraftError, match=r"differs from .* in more than comments"):
        draft.change(root)
    for patch, new, message in (
        ("0002-other.patch", False, f"= '0002-other.patch': .* begins with {hooked.patch}"),
        ("", False, "toy/hook needs a folder change, or a patch in verify.toml, and has neither"),
        (hooked.patch, True, "has both"),
    ):
        hooked.verify(patch)
        if new:
            hooked.hub.write("toy/hook/change/new.py", "")
        with pytest.raises(patches.DraftError, match=message):
            hooked.draft  # noqa: B018


def test_drafts_of_this_repository_are_complete() -> None:
    folder = Path(__file__).parents[2] / "pr_drafts"
    for name in patches.draft_names(folder):
        draft = patches.load_draft(folder, name)
        assert draft.edits("change"), name
        for edit in draft.edits("change"):
            assert any(f"{edit.path}/".startswith(f"{each}/") for each in draft.hub.upstream.sparse), (name, edit.path)
    hooks = {name.partition("/")[0] for name in patches.draft_names(folder) if patches.load_draft(folder, name).hook}
    assert hooks == {"hunyuan21", "hunyuan2", "trellis", "trellis2", "fastsam3d"}
